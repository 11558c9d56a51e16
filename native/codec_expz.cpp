#include "codec_expz.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <new>

#include "codec_kernels.h"
#include "zstd_library.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kBf16 = 1, kFp16 = 2;  // modes
constexpr std::size_t kSamples = 4096;         // about so many values of a group decide what it is

constexpr std::size_t plane_bytes(std::size_t size) { return (size / 2 + kPlaneChunk - 1) / kPlaneChunk * kPlaneChunk; }

// The exponents of the group that a thread works on; and behind them, of one that is decoded, what zstandard made of them.
std::uint8_t* plane() noexcept {
  thread_local std::unique_ptr<std::uint8_t[]> memory;
  if (memory == nullptr) memory.reset(new (std::nothrow) std::uint8_t[plane_bytes(kZstdGroupBytes) + kZstdGroupBytes]);
  return memory.get();
}

// How many pairs of samples are equal: the more, the fewer bits an exponent has.
std::uint64_t equal_pairs(const std::array<std::uint32_t, 256>& counts) {
  std::uint64_t sum = 0;
  for (const std::uint64_t count : counts) sum += count * count;
  return sum;
}

// 0: there is nothing to gain. Values that are as likely as each other have a 256th of the pairs equal.
std::uint32_t choose(const std::uint8_t* from, std::size_t size) {
  const std::size_t values = size / 2, step = values / kSamples | 1;  // odd: rows have an even number of values
  std::array<std::uint32_t, 256> bf16{}, fp16{};
  std::uint64_t samples = 0;
  for (std::size_t i = 0; i < values; i += step, ++samples) {
    std::uint16_t value;
    std::memcpy(&value, from + 2 * i, sizeof value);
    ++bf16[value >> 7 & 0xFF];
    ++fp16[value >> 8];
  }
  const std::uint64_t as_bf16 = equal_pairs(bf16), as_fp16 = equal_pairs(fp16);
  if (std::max(as_bf16, as_fp16) * 128 < samples * samples) return 0;
  return as_bf16 >= as_fp16 ? kBf16 : kFp16;
}

using Split = void (*)(bool, const std::uint8_t*, std::size_t, std::uint8_t*, std::uint8_t*);
using Join = void (*)(bool, const std::uint8_t*, const std::uint8_t*, std::uint8_t*, std::size_t);

std::size_t encode(Split split, const std::uint8_t* from, std::size_t size, std::uint8_t* to, std::uint32_t* mode) {
  const std::size_t rest = plane_bytes(size), fixed = rest + size % 2;
  std::uint8_t* const exponents = plane();
  if (fixed >= size || exponents == nullptr) return kRaw;
  *mode = choose(from, size);
  if (*mode == 0) return kRaw;
  split(*mode == kBf16, from, size / 2, exponents, to);
  if (size % 2) to[rest] = from[size - 1];
  const std::size_t bytes = ZstdOfThread::get().compress(exponents, rest, to + fixed, size - 1 - fixed);
  return bytes == 0 ? kRaw : fixed + bytes;
}

bool decode(Join join, const std::uint8_t* body, std::size_t body_bytes, std::uint32_t mode, std::uint8_t* to,
            std::size_t size) {
  const std::size_t rest = plane_bytes(size), fixed = rest + size % 2;
  std::uint8_t* const exponents = plane();
  if ((mode != kBf16 && mode != kFp16) || body_bytes <= fixed || body_bytes > kZstdGroupBytes) return false;
  if (exponents == nullptr) return false;
  // Bytes that change while it reads them are more than zstandard promises to bear.
  std::uint8_t* const packed = exponents + plane_bytes(kZstdGroupBytes);
  std::memcpy(packed, body + fixed, body_bytes - fixed);
  if (!ZstdOfThread::get().decompress(packed, body_bytes - fixed, exponents, rest)) return false;
  join(mode == kBf16, exponents, body, to, size / 2);
  if (size % 2) to[size - 1] = body[rest];
  return true;
}

}  // namespace

const std::string* expz_reason() {
  const std::string& reason = Zstd::get().reason();
  return reason.empty() ? nullptr : &reason;
}

bool expz_is_ready() noexcept { return plane() != nullptr && ZstdOfThread::get().can_decompress(); }

#define KVTIER_EXPZ(isa)                                                                                               \
  size_t isa::expz_encode(CodecFormat, const uint8_t* from, size_t size, uint8_t* to, uint32_t* mode) {                \
    return encode(planes_split, from, size, to, mode);                                                                 \
  }                                                                                                                    \
  bool isa::expz_decode(CodecFormat, const uint8_t* body, size_t body_bytes, uint32_t mode, uint8_t* to, size_t size,  \
                        NextBody*) {                                                                                   \
    return decode(planes_join, body, body_bytes, mode, to, size);                                                      \
  }
KVTIER_CODEC_ISAS(KVTIER_EXPZ)
#undef KVTIER_EXPZ

}  // namespace kvtier
