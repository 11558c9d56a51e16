// expz's kernels: values parted into the byte that has their exponent and the other one. As codec_exp12.cpp is: compiled
// once for each instruction set, plain loops over lanes of 16 bits. A word of a plane has the bytes of two values.
#include "codec_kernels.h"

namespace kvtier::KVTIER_ISA {
namespace {

using Word = uint16_t __attribute__((aligned(1), may_alias));

constexpr size_t kLanes = 32;
static_assert(kPlaneChunk == 2 * kLanes);

// bf16: s eeeeeeee mmmmmmm. The other byte has sign and mantissa.
struct Bf16 {
  static inline void split(const Word* __restrict from, Word* __restrict exponents, Word* __restrict rest) {
    for (size_t i = 0; i < kLanes; ++i) {
      const uint16_t a = from[i], b = from[kLanes + i];
      exponents[i] = (a >> 7 & 0xFF) | (b << 1 & 0xFF00);
      rest[i] = (a & 0x807F) | (b & 0x7F) << 7 | (b >> 1 & 0x4000);
    }
  }
  static inline void join(const Word* __restrict exponents, const Word* __restrict rest, Word* __restrict to) {
    for (size_t i = 0; i < kLanes; ++i) {
      const uint16_t e = exponents[i], ab = rest[i];
      to[i] = (ab & 0x807F) | (e << 7 & 0x7F80);
      to[kLanes + i] = (ab >> 7 & 0x7F) | (ab << 1 & 0x8000) | (e >> 1 & 0x7F80);
    }
  }
};

// fp16: s eeeee mm | mmmmmmmm. Two bits of mantissa go with the exponent: they aren't all alike near its ends.
struct Fp16 {
  static inline void split(const Word* __restrict from, Word* __restrict exponents, Word* __restrict rest) {
    for (size_t i = 0; i < kLanes; ++i) {
      const uint16_t a = from[i], b = from[kLanes + i];
      exponents[i] = a >> 8 | (b & 0xFF00);
      rest[i] = (a & 0xFF) | b << 8;
    }
  }
  static inline void join(const Word* __restrict exponents, const Word* __restrict rest, Word* __restrict to) {
    for (size_t i = 0; i < kLanes; ++i) {
      const uint16_t e = exponents[i], ab = rest[i];
      to[i] = e << 8 | (ab & 0xFF);
      to[kLanes + i] = (e & 0xFF00) | ab >> 8;
    }
  }
};

template <typename Format>
void split(const Word* from, size_t values, Word* exponents, Word* rest) {
  for (; values >= kPlaneChunk; values -= kPlaneChunk, from += kPlaneChunk, exponents += kLanes, rest += kLanes)
    Format::split(from, exponents, rest);
  if (values == 0) return;
  uint16_t filled[kPlaneChunk];
  for (size_t i = 0; i < kPlaneChunk; ++i) filled[i] = from[i < values ? i : 0];
  Format::split(reinterpret_cast<const Word*>(filled), exponents, rest);
}

template <typename Format>
void join(const Word* exponents, const Word* rest, Word* to, size_t values) {
  for (; values >= kPlaneChunk; values -= kPlaneChunk, to += kPlaneChunk, exponents += kLanes, rest += kLanes)
    Format::join(exponents, rest, to);
  if (values == 0) return;
  uint16_t filled[kPlaneChunk];
  Format::join(exponents, rest, reinterpret_cast<Word*>(filled));
  for (size_t i = 0; i < values; ++i) to[i] = filled[i];
}

}  // namespace

void planes_split(bool is_bf16, const uint8_t* from, size_t values, uint8_t* exponents, uint8_t* rest) {
  const auto chosen = is_bf16 ? split<Bf16> : split<Fp16>;
  chosen(reinterpret_cast<const Word*>(from), values, reinterpret_cast<Word*>(exponents), reinterpret_cast<Word*>(rest));
}

void planes_join(bool is_bf16, const uint8_t* exponents, const uint8_t* rest, uint8_t* to, size_t values) {
  const auto chosen = is_bf16 ? join<Bf16> : join<Fp16>;
  chosen(reinterpret_cast<const Word*>(exponents), reinterpret_cast<const Word*>(rest), reinterpret_cast<Word*>(to),
         values);
}

}  // namespace kvtier::KVTIER_ISA
