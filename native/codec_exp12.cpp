// exp12: values of a group have few exponents. Four bits name one of fifteen in a row, sign and mantissa stay as they are.
// Compiled once for each instruction set (KVTIER_ISA): plain loops over lanes of 16 bits, no value leaves its lane, so
// they are made of the same vector instructions whatever the width. See codec_kernels.h for what may not be used here.
//
// A body: chunks | the odd byte, if the group has one | escapes (u16 which value, u8 its exponent).
// The last chunk is filled up with values that need no escape.
#include "codec_kernels.h"

namespace kvtier::KVTIER_ISA {
namespace {

using Word = uint16_t __attribute__((aligned(1), may_alias));

constexpr size_t kLanes = 32;        // words of the widest vector
constexpr size_t kLine = 64;         // bytes of the cache's
constexpr uint16_t kEscape = 15;     // the code of an exponent outside of the window
constexpr size_t kEscapeBytes = 3;
constexpr size_t kSamplesMax = 255;  // values of a group that choose its window; a byte counts them

// What a mode says: how, and the window's first exponent. With kEscape added it is still an exponent, so that a value that
// waits for its escape has the right sign.
enum How : uint32_t { kBf16 = 1, kFp16 = 2 };
constexpr uint32_t kBf16BaseMax = 240, kFp16BaseMax = 16;

constexpr uint32_t mode_of(How how, uint32_t base) { return how | base << 8; }

// bf16: s eeeeeeee mmmmmmm. A chunk is 128 values in four rows of lanes: one word has the codes of a lane's four values,
// two more have sign and mantissa of two each.
struct Bf16 {
  static constexpr How kHow = kBf16;
  static constexpr size_t kRows = 4, kValues = kRows * kLanes, kBytes = kValues * 12 / 8;
  static constexpr int kShift = 7;
  static constexpr uint16_t kExponents = 0x7F80;

  // Whether there is an escape.
  static inline bool pack(const Word* __restrict from, Word* __restrict to, uint16_t base) {
    const uint16_t first = base << kShift, limit = kEscape << kShift;
    uint16_t most = 0;
    for (size_t i = 0; i < kLanes; ++i) {
      const uint16_t a = from[i], b = from[kLanes + i], c = from[2 * kLanes + i], d = from[3 * kLanes + i];
      uint16_t ea = (a & kExponents) - first, eb = (b & kExponents) - first;
      uint16_t ec = (c & kExponents) - first, ed = (d & kExponents) - first;
      ea = ea < limit ? ea : limit;
      eb = eb < limit ? eb : limit;
      ec = ec < limit ? ec : limit;
      ed = ed < limit ? ed : limit;
      const uint16_t ab = ea > eb ? ea : eb, cd = ec > ed ? ec : ed, all = ab > cd ? ab : cd;
      most = most > all ? most : all;
      to[i] = ea >> 7 | eb >> 3 | ec << 1 | ed << 5;
      to[kLanes + i] = (a & 0x807F) | (b & 0x7F) << 7 | (b >> 1 & 0x4000);
      to[2 * kLanes + i] = (c & 0x807F) | (d & 0x7F) << 7 | (d >> 1 & 0x4000);
    }
    return most == limit;
  }

  static inline void unpack(const Word* __restrict from, Word* __restrict to, uint16_t base) {
    const uint16_t first = base << kShift, codes = kEscape << kShift;
    for (size_t i = 0; i < kLanes; ++i) {
      const uint16_t e = from[i], ab = from[kLanes + i], cd = from[2 * kLanes + i];
      to[i] = (ab & 0x807F) | static_cast<uint16_t>((e << 7 & codes) + first);
      to[kLanes + i] = (ab >> 7 & 0x7F) | (ab << 1 & 0x8000) | static_cast<uint16_t>((e << 3 & codes) + first);
      to[2 * kLanes + i] = (cd & 0x807F) | static_cast<uint16_t>((e >> 1 & codes) + first);
      to[3 * kLanes + i] = (cd >> 7 & 0x7F) | (cd << 1 & 0x8000) | static_cast<uint16_t>((e >> 5 & codes) + first);
    }
  }
};

// fp16: s eeeee mmmmmmmmmm. A chunk is 512 values in sixteen rows: fifteen bits each are left, so fifteen words have
// fifteen of a lane's values, and in their highest bits the sixteenth.
struct Fp16 {
  static constexpr How kHow = kFp16;
  static constexpr size_t kRows = 16, kValues = kRows * kLanes, kBytes = kValues * 15 / 8;
  static constexpr int kShift = 10;
  static constexpr uint16_t kExponents = 0x7C00;

  static inline uint16_t shorter(uint16_t value, uint16_t first, uint16_t limit) {
    uint16_t e = (value & kExponents) - first;
    e = e < limit ? e : limit;
    return e | (value & 0x3FF) | (value >> 1 & 0x4000);
  }

  static inline bool pack(const Word* __restrict from, Word* __restrict to, uint16_t base) {
    const uint16_t first = base << kShift, limit = kEscape << kShift;
    const Word* const last = from + 15 * kLanes;
    uint16_t most = 0;
    for (size_t i = 0; i < kLanes; ++i) {
      const uint16_t spread = shorter(last[i], first, limit), e = spread & limit;
      most = most > e ? most : e;
    }
    for (size_t row = 0; row < 15; ++row)
      for (size_t i = 0; i < kLanes; ++i) {
        const uint16_t value = shorter(from[row * kLanes + i], first, limit), e = value & limit;
        const uint16_t spread = shorter(last[i], first, limit);
        most = most > e ? most : e;
        to[row * kLanes + i] = value | (spread >> row & 1) << 15;
      }
    return most == limit;
  }

  static inline void unpack(const Word* __restrict from, Word* __restrict to, uint16_t base) {
    const uint16_t first = base << kShift;
    uint16_t spread[kLanes] = {};
    for (size_t row = 0; row < 15; ++row)
      for (size_t i = 0; i < kLanes; ++i) {
        const uint16_t value = from[row * kLanes + i];
        spread[i] |= value >> 15 << row;
        to[row * kLanes + i] = (value << 1 & 0x8000) | static_cast<uint16_t>((value & 0x3FFF) + first);
      }
    for (size_t i = 0; i < kLanes; ++i)
      to[15 * kLanes + i] = (spread[i] << 1 & 0x8000) | static_cast<uint16_t>((spread[i] & 0x3FFF) + first);
  }
};

template <typename Format>
constexpr size_t fixed_bytes(size_t size) {
  return (size / 2 + Format::kValues - 1) / Format::kValues * Format::kBytes + size % 2;
}

// The escapes of one chunk, in the order of its values; nullptr when they don't fit. Most rows have none.
template <typename Format>
uint8_t* add_escapes(const Word* chunk, size_t first_value, uint16_t base, uint8_t* at, const uint8_t* end) {
  const uint16_t first = base << Format::kShift, limit = kEscape << Format::kShift;
  for (size_t row = 0; row < Format::kValues; row += kLanes) {
    uint16_t most = 0;
    for (size_t i = 0; i < kLanes; ++i) {
      const uint16_t e = (chunk[row + i] & Format::kExponents) - first;
      most = most > e ? most : e;
    }
    if (most < limit) continue;
    for (size_t i = row; i < row + kLanes; ++i) {
      const uint16_t e = chunk[i] & Format::kExponents;
      if (static_cast<uint16_t>(e - first) < limit) continue;
      if (at + kEscapeBytes > end) return nullptr;
      at[0] = first_value + i;
      at[1] = (first_value + i) >> 8;
      at[2] = e >> Format::kShift;
      at += kEscapeBytes;
    }
  }
  return at;
}

template <typename Format>
size_t encode(const uint8_t* from, size_t size, uint8_t* to, uint32_t base) {
  const size_t values = size / 2;
  const Word* const all = reinterpret_cast<const Word*>(from);
  uint8_t* at = to;
  uint8_t* escapes = to + fixed_bytes<Format>(size);
  const uint8_t* const end = to + size - 1;  // a body is shorter than its group
  if (escapes > end) return kRaw;
  for (size_t first = 0; first < values; first += Format::kValues, at += Format::kBytes) {
    const Word* chunk = all + first;
    uint16_t filled[Format::kValues];
    if (values - first < Format::kValues) {
      for (size_t i = 0; i < Format::kValues; ++i) filled[i] = first + i < values ? chunk[i] : base << Format::kShift;
      chunk = filled;
    }
    // The next group, so that it is here when its turn comes. Past the block's end that does nothing.
    for (size_t line = 0; line < 2 * Format::kValues; line += kLine)
      __builtin_prefetch(from + 2 * first + line + kGroupBytes);
    if (!Format::pack(chunk, reinterpret_cast<Word*>(at), base)) continue;
    escapes = add_escapes<Format>(chunk, first, base, escapes, end);
    if (escapes == nullptr) return kRaw;
  }
  if (size % 2) *at = from[size - 1];
  return escapes - to;
}

#ifdef __SSE4_2__
// Decodes whole chunks, and computes the lanes of the next body between them: as many of its bytes as there are here.
template <typename Format>
void unpack_and_check(const uint8_t* body, size_t chunks, uint32_t base, uint8_t* to, NextBody* next) {
  using Eight = uint64_t __attribute__((aligned(1), may_alias));
  constexpr size_t kStep = Format::kBytes / 3, kLane = kCheckLane / sizeof(Eight);
  const uint8_t* ahead = next->bytes;
  uint64_t first = 0xFFFFFFFF, second = 0, third = 0;
  for (size_t chunk = 0; chunk < chunks; ++chunk, ahead += kStep) {
    const Eight* const words = reinterpret_cast<const Eight*>(ahead);
    for (size_t i = 0; i < kStep / sizeof(Eight); ++i) {
      first = __builtin_ia32_crc32di(first, words[i]);
      second = __builtin_ia32_crc32di(second, words[kLane + i]);
      third = __builtin_ia32_crc32di(third, words[2 * kLane + i]);
    }
    Format::unpack(reinterpret_cast<const Word*>(body) + chunk * Format::kBytes / 2,
                   reinterpret_cast<Word*>(to) + chunk * Format::kValues, base);
  }
  next->lanes[0] = first;
  next->lanes[1] = second;
  next->lanes[2] = third;
  next->is_checked = true;
}
#endif

template <typename Format>
bool decode(const uint8_t* body, size_t body_bytes, uint32_t base, uint8_t* to, size_t size, NextBody* next) {
  const size_t values = size / 2, fixed = fixed_bytes<Format>(size);
  if (body_bytes < fixed || (body_bytes - fixed) % kEscapeBytes) return false;
  Word* const all = reinterpret_cast<Word*>(to);
  const uint8_t* at = body;
  size_t first = 0;
#ifdef __SSE4_2__
  if (constexpr size_t kChunks = kCheckedAhead / Format::kBytes;
      kChunks * Format::kBytes == kCheckedAhead && values == kChunks * Format::kValues && next->size >= kCheckedAhead) {
    unpack_and_check<Format>(body, kChunks, base, to, next);
    first = values;
    at = body + kCheckedAhead;
  }
#endif
  for (; values - first >= Format::kValues; first += Format::kValues, at += Format::kBytes) {
    for (size_t line = 0; line < Format::kBytes; line += kLine) __builtin_prefetch(next->bytes + (at - body) + line);
    Format::unpack(reinterpret_cast<const Word*>(at), all + first, base);
  }
  if (first < values) {
    uint16_t filled[Format::kValues];
    Format::unpack(reinterpret_cast<const Word*>(at), reinterpret_cast<Word*>(filled), base);
    for (size_t i = 0; first + i < values; ++i) all[first + i] = filled[i];
    at += Format::kBytes;
  }
  if (size % 2) to[size - 1] = *at++;
  // Volatile: what is verified is what is used, whoever writes there.
  const volatile uint8_t* escape = at;
  for (const uint8_t* const end = body + body_bytes; escape < end; escape += kEscapeBytes) {
    const uint32_t low = escape[0], high = escape[1];
    const size_t which = low | high << 8;
    const uint16_t exponent = escape[2] << Format::kShift;
    if (which >= values || (exponent & ~Format::kExponents)) return false;
    all[which] = (all[which] & ~Format::kExponents) | exponent;
  }
  return true;
}

// How many samples lie in the window at `base`.
struct Window {
  uint32_t base;
  size_t inside;
};

// Of the windows with the most samples the middle one: there is more on either side than samples show.
template <size_t kBases>
Window best_window(const uint8_t* counts) {
  uint8_t inside[kBases] = {};
  for (size_t i = 0; i < kEscape; ++i)
    for (size_t base = 0; base < kBases; ++base) inside[base] += counts[base + i];
  uint16_t lowest = 0, highest = 0;  // which windows, behind how many
  for (size_t base = 0; base < kBases; ++base) {
    const uint16_t low = inside[base] << 8 | (255 - base), high = inside[base] << 8 | base;
    lowest = lowest > low ? lowest : low;
    highest = highest > high ? highest : high;
  }
  const uint32_t first = 255 - lowest % 256, last = highest % 256, middle = (first + last + 1) / 2;
  return {inside[middle] == lowest / 256 ? middle : first, static_cast<size_t>(lowest / 256)};
}

// The mode that promises the shortest body; 0: as it is.
uint32_t choose(const uint8_t* from, size_t size) {
  const size_t values = size / 2, step = (values / kSamplesMax + 1) | 1;  // odd: rows have an even number of values
  const Word* const all = reinterpret_cast<const Word*>(from);
  uint8_t parts[4][256], counts[256];  // in turns: neighbours are often equal, and then wait for each other
  for (size_t part = 0; part < 4; ++part)
    for (size_t i = 0; i < 256; ++i) parts[part][i] = 0;
  size_t samples = 0, i = 0;
  for (; i + 3 * step < values; i += 4 * step, samples += 4)
    for (size_t part = 0; part < 4; ++part) ++parts[part][all[i + part * step] >> 7 & 0xFF];
  for (; i < values; i += step, ++samples) ++parts[0][all[i] >> 7 & 0xFF];
  for (i = 0; i < 256; ++i) counts[i] = parts[0][i] + parts[1][i] + parts[2][i] + parts[3][i];
  const Window bf16 = best_window<kBf16BaseMax + 1>(counts);
  const size_t as_bf16 = fixed_bytes<Bf16>(size) + (samples - bf16.inside) * step * kEscapeBytes;
  if (as_bf16 < fixed_bytes<Fp16>(size)) return mode_of(kBf16, bf16.base);
  uint8_t upper[32];  // fp16's exponents are the upper five bits of bf16's
  for (i = 0; i < 32; ++i) {
    upper[i] = 0;
    for (size_t low = 0; low < 8; ++low) upper[i] += counts[8 * i + low];
  }
  const Window fp16 = best_window<kFp16BaseMax + 1>(upper);
  const size_t as_fp16 = fixed_bytes<Fp16>(size) + (samples - fp16.inside) * step * kEscapeBytes;
  if (as_bf16 <= as_fp16) return as_bf16 < size ? mode_of(kBf16, bf16.base) : 0;
  return as_fp16 < size ? mode_of(kFp16, fp16.base) : 0;
}

}  // namespace

size_t exp12_encode(CodecFormat, const uint8_t* from, size_t size, uint8_t* to, uint32_t* mode) {
  *mode = choose(from, size);
  const uint32_t base = *mode >> 8;
  if (*mode == 0) return kRaw;
  return (*mode & 0xFF) == kBf16 ? encode<Bf16>(from, size, to, base) : encode<Fp16>(from, size, to, base);
}

bool exp12_decode(CodecFormat, const uint8_t* body, size_t body_bytes, uint32_t mode, uint8_t* to, size_t size,
                  NextBody* next) {
  const uint32_t base = mode >> 8;
  if ((mode & 0xFF) == kBf16) return base <= kBf16BaseMax && decode<Bf16>(body, body_bytes, base, to, size, next);
  return (mode & 0xFF) == kFp16 && base <= kFp16BaseMax && decode<Fp16>(body, body_bytes, base, to, size, next);
}

}  // namespace kvtier::KVTIER_ISA
