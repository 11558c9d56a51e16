// int8, fp8 and int4: fewer bits for each value, and what was rounded away is gone. What has been through once stays as it
// is from then on: encoding what was decoded gives the same bytes, so a block may move between tiers as often as it likes.
//
//   int8   a row of values shares a scale, the bf16 that is nearest to largest/127; value = scale times -127..127
//   int4   the same with 7 and at most 32 values a row; the first half of a row in the low halves of its bytes
//   fp8    each value by itself as e4m3: 3 bits of mantissa, no infinity, at most 448, which larger ones become
//
// A body: scales (of int8 and int4) | values | the tail, less than a row, as it is.
// A group with a NaN, an infinity or a row too small or too large for its scale is refused.
//
// Compiled once for each instruction set (KVTIER_ISA), with no contraction of floating-point operations: each rounds by
// itself as IEEE 754 says, so all give the same bytes. See codec_kernels.h for what may not be used here.
//
// Why a scale stays: let the largest value be A, in units of the last place, and its row's scale S the integer nearest to
// A/127 in its own. Where 127 S lies in the binade in which a unit of S makes 128/127 of A's, the nearest to it is A again.
// In the other one half a unit of 127 S is less than half a unit of S. The same holds for 7 and 8/7.
#include "codec_kernels.h"

namespace kvtier::KVTIER_ISA {
namespace {

using Word = uint16_t __attribute__((aligned(1), may_alias));

constexpr uint32_t kWritten = 1;  // the only mode
constexpr uint16_t kMagnitude = 0x7FFF;
constexpr uint16_t kSmallestScale = 0x0080, kScaleInfinity = 0x7F80;  // bf16: of the normal ones
constexpr size_t kFewestInRow = 16;
// 1.5 * 2^23: added to a small float it leaves the nearest integer in the low bits.
constexpr float kToInteger = 12582912.0F;

inline uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }
inline float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

// With masks: the compiler makes no branch of it, and so a vector of the loop around it.
inline uint32_t either(bool first, uint32_t a, uint32_t b) {
  const uint32_t mask = -uint32_t{first};
  return (a & mask) | (b & ~mask);
}

// The upper bits of what is finite, to the nearest and to even.
template <int kLost>
inline uint32_t rounded(uint32_t bits) {
  return (bits + ((1U << (kLost - 1)) - 1) + (bits >> kLost & 1)) >> kLost;
}

struct Bf16 {
  static constexpr uint16_t kInfinity = 0x7F80;
  static inline float widen(uint16_t value) { return float_of(uint32_t{value} << 16); }
  static inline uint16_t narrow(float value) { return rounded<16>(bits_of(value)); }
};

// Subnormal ones go through a sum with a float whose last place is theirs: no arithmetic here meets a subnormal float,
// which some CPUs are slow with.
struct Fp16 {
  static constexpr uint16_t kInfinity = 0x7C00;
  static constexpr uint32_t kBias = 112;  // of a float's exponent, above fp16's
  static constexpr float kSmallestNormal = 0x1p-14F;

  static inline float widen(uint16_t value) {
    const uint32_t magnitude = (value & kMagnitude) << 13, sign = uint32_t{value} >> 15 << 31;
    const uint32_t normal = magnitude + (kBias << 23);
    const uint32_t subnormal = bits_of(float_of(magnitude + bits_of(kSmallestNormal)) - kSmallestNormal);
    return float_of(either(magnitude < 0x400U << 13, subnormal, normal) | sign);
  }

  static inline uint16_t narrow(float value) {
    const uint32_t magnitude = bits_of(value) & 0x7FFFFFFF, sign = bits_of(value) >> 31 << 15;
    const uint32_t normal = rounded<13>(magnitude) - (kBias << 10);
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5F) - bits_of(0.5F);
    return either(magnitude < bits_of(kSmallestNormal), subnormal, normal) | sign;
  }
};

// A group's rows: whole ones, and what is left.
struct Rows {
  size_t values, count, tail;
  Rows(size_t size, size_t values) : values(values), count(size / 2 / values), tail(size - count * values * 2) {}
};

inline void copy(const uint8_t* __restrict from, uint8_t* __restrict to, size_t size) {
  for (size_t i = 0; i < size; ++i) to[i] = from[i];
}

// --- int8 and int4 -------------------------------------------------------------------------------------------------

// Integers of a group lie one after the other; those of int8 where they stay.
struct Int8 {
  static constexpr int kMost = 127;
  static constexpr size_t row_values(size_t row) { return row; }
  static constexpr size_t bytes(size_t values) { return values; }

  static inline int8_t* place(uint8_t* body, int8_t*) { return reinterpret_cast<int8_t*>(body); }
  template <size_t kValues>
  static inline void pack(const int8_t*, size_t, uint8_t*) {}
  template <size_t kValues>
  static inline const int8_t* unpack(const uint8_t* body, size_t, int8_t*) {
    return reinterpret_cast<const int8_t*>(body);
  }
};

struct Int4 {
  static constexpr int kMost = 7;
  static constexpr size_t row_values(size_t row) { return row < 32 ? row : 32; }
  static constexpr size_t bytes(size_t values) { return values / 2; }

  static inline int8_t* place(uint8_t*, int8_t* beside) { return beside; }
  template <size_t kValues>
  static inline void pack(const int8_t* __restrict integers, size_t rows, uint8_t* __restrict to) {
    for (size_t row = 0; row < rows; ++row, integers += kValues, to += kValues / 2)
      for (size_t i = 0; i < kValues / 2; ++i)
        to[i] = (integers[i] & 0xF) | (static_cast<uint8_t>(integers[kValues / 2 + i]) & 0xF) << 4;
  }
  template <size_t kValues>
  static inline const int8_t* unpack(const uint8_t* __restrict from, size_t rows, int8_t* __restrict integers) {
    int8_t* at = integers;
    for (size_t row = 0; row < rows; ++row, at += kValues, from += kValues / 2)
      for (size_t i = 0; i < kValues / 2; ++i) {
        at[i] = ((from[i] & 0xF) ^ 8) - 8;
        at[kValues / 2 + i] = (from[i] >> 4 ^ 8) - 8;
      }
    return integers;
  }
};

// Whether each row has one: what it is, and what its values are multiplied with.
template <typename Element, int kMost, size_t kValues>
bool find_scales(const Word* __restrict from, size_t rows, Word* __restrict scales, float* __restrict inverse) {
  uint16_t largest[kGroupBytes / 2 / kFewestInRow];
  for (size_t row = 0; row < rows; ++row) {
    int16_t most = 0;  // signed: every instruction set compares those
    for (size_t i = 0; i < kValues; ++i) {
      const int16_t magnitude = from[row * kValues + i] & kMagnitude;
      most = most > magnitude ? most : magnitude;
    }
    largest[row] = most;
  }
  uint32_t wrong = 0;
  for (size_t row = 0; row < rows; ++row) {
    const uint16_t scale = Bf16::narrow(Element::widen(largest[row]) / kMost);
    const uint16_t back = Element::narrow(Bf16::widen(scale) * kMost);
    const bool is_zero = largest[row] == 0;
    wrong |= (largest[row] >= Element::kInfinity) | (back >= Element::kInfinity) | (!is_zero & (scale < kSmallestScale));
    scales[row] = scale;
    inverse[row] = is_zero ? 0.0F : 1.0F / Bf16::widen(scale);
  }
  return !wrong;
}

template <typename Element, size_t kValues>
inline void divide(const Word* __restrict from, size_t rows, const float* __restrict inverse, int8_t* __restrict to) {
  for (size_t row = 0; row < rows; ++row, from += kValues, to += kValues) {
    const float times = inverse[row];
    for (size_t i = 0; i < kValues; ++i) to[i] = bits_of(Element::widen(from[i]) * times + kToInteger);
  }
}

template <typename Element, size_t kValues>
inline void multiply(const int8_t* __restrict from, size_t rows, const Word* __restrict scales, Word* __restrict to) {
  for (size_t row = 0; row < rows; ++row, from += kValues, to += kValues) {
    const float scale = Bf16::widen(scales[row]);
    for (size_t i = 0; i < kValues; ++i) to[i] = Element::narrow(from[i] * scale);
  }
}

template <typename Format, typename Element, size_t kValues>
size_t encode_rows(const uint8_t* from, size_t size, uint8_t* to) {
  const Rows rows(size, kValues);
  const Word* const values = reinterpret_cast<const Word*>(from);
  float inverse[kGroupBytes / 2 / kFewestInRow];
  int8_t beside[kGroupBytes / 2];
  if (!find_scales<Element, Format::kMost, kValues>(values, rows.count, reinterpret_cast<Word*>(to), inverse))
    return kRefused;
  uint8_t* const body = to + rows.count * 2;
  uint8_t* const end = body + Format::bytes(rows.count * kValues);
  int8_t* const integers = Format::place(body, beside);
  divide<Element, kValues>(values, rows.count, inverse, integers);
  Format::template pack<kValues>(integers, rows.count, body);
  copy(from + size - rows.tail, end, rows.tail);
  return end + rows.tail - to;
}

template <typename Format, typename Element, size_t kValues>
bool decode_rows(const uint8_t* from, size_t from_bytes, uint8_t* to, size_t size) {
  const Rows rows(size, kValues);
  if (from_bytes != rows.count * 2 + Format::bytes(rows.count * kValues) + rows.tail) return false;
  const Word* const scales = reinterpret_cast<const Word*>(from);
  uint32_t wrong = 0;
  for (size_t row = 0; row < rows.count; ++row)
    wrong |= (scales[row] >= kScaleInfinity) | ((scales[row] != 0) & (scales[row] < kSmallestScale));
  if (wrong) return false;
  int8_t beside[kGroupBytes / 2];
  const int8_t* const integers = Format::template unpack<kValues>(from + rows.count * 2, rows.count, beside);
  multiply<Element, kValues>(integers, rows.count, scales, reinterpret_cast<Word*>(to));
  copy(from + from_bytes - rows.tail, to + size - rows.tail, rows.tail);
  return true;
}

// --- fp8 -----------------------------------------------------------------------------------------------------------

constexpr size_t kFloats = 64;                           // a row: so many have no tail
constexpr uint32_t kFloatBias = 120;                     // of a float's exponent, above e4m3's
constexpr uint32_t kLargestFloat8 = 0x7E;                // 448; 0x7F is NaN
constexpr float kSmallestFloat8 = 0x1p-6F;               // of the normal ones
constexpr float kFloat8Places = 0x1p14F;                 // its last place is that of the others

template <typename Element>
inline uint8_t float8_of(uint16_t value) {
  const uint32_t bits = bits_of(Element::widen(value)), magnitude = bits & 0x7FFFFFFF;
  const uint32_t normal = rounded<20>(magnitude) - (kFloatBias << 3);
  const uint32_t subnormal = bits_of(float_of(magnitude) + kFloat8Places) - bits_of(kFloat8Places);
  const uint32_t code = either(magnitude < bits_of(kSmallestFloat8), subnormal, normal);
  return either(code < kLargestFloat8, code, kLargestFloat8) | bits >> 31 << 7;
}

template <typename Element>
inline uint16_t value_of(uint8_t code) {
  const uint32_t magnitude = code & 0x7F, sign = uint32_t{code} >> 7 << 31;
  const uint32_t normal = (magnitude << 20) + (kFloatBias << 23);
  const uint32_t subnormal = bits_of(float_of(magnitude + bits_of(kFloat8Places)) - kFloat8Places);
  return Element::narrow(float_of(either(magnitude < 8, subnormal, normal) | sign));
}

// Whether all are finite.
template <typename Element>
inline bool to_float8(const Word* __restrict from, size_t rows, uint8_t* __restrict to) {
  int16_t most = 0;
  for (size_t i = 0; i < rows * kFloats; ++i) {
    const int16_t magnitude = from[i] & kMagnitude;
    most = most > magnitude ? most : magnitude;
  }
  for (size_t i = 0; i < rows * kFloats; ++i) to[i] = float8_of<Element>(from[i]);
  return most < Element::kInfinity;
}

template <typename Element>
inline void from_float8(const uint8_t* __restrict from, size_t rows, Word* __restrict to) {
  for (size_t i = 0; i < rows * kFloats; ++i) to[i] = value_of<Element>(from[i]);
}

template <typename Element>
size_t encode_floats(const uint8_t* from, size_t size, uint8_t* to) {
  const Rows rows(size, kFloats);
  if (!to_float8<Element>(reinterpret_cast<const Word*>(from), rows.count, to)) return kRefused;
  uint8_t* const end = to + rows.count * kFloats;
  copy(from + size - rows.tail, end, rows.tail);
  return end + rows.tail - to;
}

template <typename Element>
bool decode_floats(const uint8_t* from, size_t from_bytes, uint8_t* to, size_t size) {
  const Rows rows(size, kFloats);
  if (from_bytes != rows.count * kFloats + rows.tail) return false;
  from_float8<Element>(from, rows.count, reinterpret_cast<Word*>(to));
  copy(from + from_bytes - rows.tail, to + size - rows.tail, rows.tail);
  return true;
}

// --- by element and row --------------------------------------------------------------------------------------------

template <typename Format, typename Element>
size_t encode(size_t row, const uint8_t* from, size_t size, uint8_t* to) {
  switch (Format::row_values(row)) {
    case 16: return encode_rows<Format, Element, 16>(from, size, to);
    case 32: return encode_rows<Format, Element, 32>(from, size, to);
    case 64: return encode_rows<Format, Element, Format::row_values(64)>(from, size, to);
    case 128: return encode_rows<Format, Element, Format::row_values(128)>(from, size, to);
    default: return kRaw;
  }
}

template <typename Format, typename Element>
bool decode(size_t row, const uint8_t* body, size_t body_bytes, uint8_t* to, size_t size) {
  switch (Format::row_values(row)) {
    case 16: return decode_rows<Format, Element, 16>(body, body_bytes, to, size);
    case 32: return decode_rows<Format, Element, 32>(body, body_bytes, to, size);
    case 64: return decode_rows<Format, Element, Format::row_values(64)>(body, body_bytes, to, size);
    case 128: return decode_rows<Format, Element, Format::row_values(128)>(body, body_bytes, to, size);
    default: return false;
  }
}

template <typename Format>
size_t encode(CodecFormat format, const uint8_t* from, size_t size, uint8_t* to, uint32_t* mode) {
  *mode = kWritten;
  if (size > kGroupBytes || size / 2 < Format::row_values(format.row)) return kRaw;
  if (format.element == kElementBf16) return encode<Format, Bf16>(format.row, from, size, to);
  return format.element == kElementFp16 ? encode<Format, Fp16>(format.row, from, size, to) : kRaw;
}

template <typename Format>
bool decode(CodecFormat format, const uint8_t* body, size_t body_bytes, uint32_t mode, uint8_t* to, size_t size) {
  if (mode != kWritten || size > kGroupBytes) return false;
  if (format.element == kElementBf16) return decode<Format, Bf16>(format.row, body, body_bytes, to, size);
  return format.element == kElementFp16 && decode<Format, Fp16>(format.row, body, body_bytes, to, size);
}

}  // namespace

size_t int8_encode(CodecFormat format, const uint8_t* from, size_t size, uint8_t* to, uint32_t* mode) {
  return encode<Int8>(format, from, size, to, mode);
}

bool int8_decode(CodecFormat format, const uint8_t* body, size_t body_bytes, uint32_t mode, uint8_t* to, size_t size,
                 NextBody*) {
  return decode<Int8>(format, body, body_bytes, mode, to, size);
}

size_t int4_encode(CodecFormat format, const uint8_t* from, size_t size, uint8_t* to, uint32_t* mode) {
  return encode<Int4>(format, from, size, to, mode);
}

bool int4_decode(CodecFormat format, const uint8_t* body, size_t body_bytes, uint32_t mode, uint8_t* to, size_t size,
                 NextBody*) {
  return decode<Int4>(format, body, body_bytes, mode, to, size);
}

size_t fp8_encode(CodecFormat format, const uint8_t* from, size_t size, uint8_t* to, uint32_t* mode) {
  *mode = kWritten;
  if (size / 2 < kFloats) return kRaw;
  if (format.element == kElementBf16) return encode_floats<Bf16>(from, size, to);
  return format.element == kElementFp16 ? encode_floats<Fp16>(from, size, to) : kRaw;
}

bool fp8_decode(CodecFormat format, const uint8_t* body, size_t body_bytes, uint32_t mode, uint8_t* to, size_t size,
                 NextBody*) {
  if (mode != kWritten) return false;
  if (format.element == kElementBf16) return decode_floats<Bf16>(body, body_bytes, to, size);
  return format.element == kElementFp16 && decode_floats<Fp16>(body, body_bytes, to, size);
}

}  // namespace kvtier::KVTIER_ISA
