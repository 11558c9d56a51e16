#include "crc32c.h"

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#define KVTIER_CRC_TARGET __attribute__((target("sse4.2")))
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#define KVTIER_CRC_TARGET __attribute__((target("+crc")))
#endif

namespace kvtier {
namespace {

// A checksum is a polynomial over GF(2), its highest power in the lowest bit; so is this, without its x^32.
constexpr std::uint32_t kPolynomial = 0x82F63B78;
constexpr std::uint32_t kOne = 0x80000000;
constexpr std::size_t kOpenLane = 4 << 10;  // of crc32c_of_lanes()

constexpr std::uint32_t times_x(std::uint32_t a) { return a & 1 ? (a >> 1) ^ kPolynomial : a >> 1; }

constexpr std::uint32_t product(std::uint32_t a, std::uint32_t b) {
  std::uint32_t sum = 0;
  for (std::uint32_t bit = kOne; bit != 0; bit >>= 1, b = times_x(b))
    if (a & bit) sum ^= b;
  return sum;
}

// x^(8 * bytes): what a checksum is multiplied by when that many zero bytes follow.
constexpr std::uint32_t zeros(std::size_t bytes) {
  std::uint32_t power = kOne;
  std::uint32_t square = kOne >> 8;
  for (; bytes != 0; bytes >>= 1, square = product(square, square))
    if (bytes & 1) power = product(power, square);
  return power;
}

// For each byte of a word, what it adds to the product of the word with a constant.
template <std::size_t kBytes>
using Products = std::array<std::array<std::uint32_t, 256>, kBytes>;

constexpr Products<4> products_with(std::uint32_t constant) {
  Products<4> table{};
  for (std::uint32_t at = 0; at < 4; ++at)
    for (std::uint32_t byte = 0; byte < 256; ++byte) table[at][byte] = product(constant, byte << (8 * at));
  return table;
}

// Three parts of kLane bytes, one after the other: the earlier, with as many zeros as the later is long, plus the later.
template <std::size_t kLane>
std::uint64_t joined(std::uint64_t first, std::uint64_t second, std::uint64_t third) {
  static constexpr Products<4> kZeros = products_with(zeros(kLane));
  const auto followed_by_zeros = [](std::uint64_t c) -> std::uint64_t {
    return kZeros[0][c & 0xFF] ^ kZeros[1][(c >> 8) & 0xFF] ^ kZeros[2][(c >> 16) & 0xFF] ^ kZeros[3][c >> 24];
  };
  return followed_by_zeros(followed_by_zeros(first) ^ second) ^ third;
}

// Slicing by eight: byte i of a word of eight has 8 - i bytes of the word from itself to the end.
constexpr Products<8> word_products() {
  Products<8> table{};
  for (std::size_t at = 0; at < 8; ++at)
    for (std::uint32_t byte = 0; byte < 256; ++byte) table[at][byte] = product(zeros(8 - at), byte);
  return table;
}

std::uint64_t load_word(const unsigned char* bytes) {
  std::uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  if constexpr (std::endian::native == std::endian::big) word = __builtin_bswap64(word);
  return word;
}

std::uint32_t table_path(std::uint32_t crc, const unsigned char* at, std::size_t size) {
  static constexpr Products<8> kWord = word_products();
  for (; size >= 8; at += 8, size -= 8) {
    const std::uint64_t word = load_word(at) ^ crc;
    crc = 0;
    for (std::size_t i = 0; i < 8; ++i) crc ^= kWord[i][(word >> (8 * i)) & 0xFF];
  }
  for (; size > 0; ++at, --size) crc = (crc >> 8) ^ kWord[7][(crc ^ *at) & 0xFF];
  return crc;
}

#ifdef KVTIER_CRC_TARGET

#if defined(__x86_64__)
KVTIER_CRC_TARGET inline std::uint64_t add_word(std::uint64_t crc, std::uint64_t word) {
  return _mm_crc32_u64(crc, word);
}
KVTIER_CRC_TARGET inline std::uint64_t add_byte(std::uint64_t crc, unsigned char byte) {
  return _mm_crc32_u8(static_cast<std::uint32_t>(crc), byte);
}
bool has_instruction() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("sse4.2");
}
#else
KVTIER_CRC_TARGET inline std::uint64_t add_word(std::uint64_t crc, std::uint64_t word) {
  return __crc32cd(static_cast<std::uint32_t>(crc), word);
}
KVTIER_CRC_TARGET inline std::uint64_t add_byte(std::uint64_t crc, unsigned char byte) {
  return __crc32cb(static_cast<std::uint32_t>(crc), byte);
}
bool has_instruction() { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
#endif

// What a disk has just delivered lies in memory and in no cache. There long lanes, with their bytes asked for in
// advance, are a third faster than lanes of 8 KiB. The shorter ones are for what is left, and for smaller buffers.
constexpr std::size_t kLongLane = 64 << 10;
constexpr std::size_t kMiddleLane = 4 << 10;
constexpr std::size_t kShortLane = 256;
constexpr std::size_t kAhead = 1 << 10;
constexpr std::size_t kTurn = 64;  // bytes of each lane that a turn of the loop takes: a line of the cache

// The instruction takes three cycles but can be begun in each, so three parts of kLane bytes are worked on at once.
template <std::size_t kLane>
KVTIER_CRC_TARGET std::uint64_t add_lanes(std::uint64_t crc, const unsigned char*& at, std::size_t& size) {
  for (; size >= 3 * kLane; at += 3 * kLane, size -= 3 * kLane) {
    std::uint64_t second = 0, third = 0;
    for (const unsigned char *turn = at, *end = at + kLane; turn < end; turn += kTurn) {
      for (std::size_t lane = 0; lane < 3; ++lane) __builtin_prefetch(turn + lane * kLane + kAhead);
      for (const unsigned char* word = turn; word < turn + kTurn; word += 8) {
        crc = add_word(crc, load_word(word));
        second = add_word(second, load_word(word + kLane));
        third = add_word(third, load_word(word + 2 * kLane));
      }
    }
    crc = joined<kLane>(crc, second, third);
  }
  return crc;
}

KVTIER_CRC_TARGET std::uint32_t instruction_path(std::uint32_t seed, const unsigned char* at, std::size_t size) {
  std::uint64_t crc = add_lanes<kLongLane>(seed, at, size);
  crc = add_lanes<kMiddleLane>(crc, at, size);
  crc = add_lanes<kShortLane>(crc, at, size);
  for (; size >= 8; at += 8, size -= 8) crc = add_word(crc, load_word(at));
  for (; size > 0; ++at, --size) crc = add_byte(crc, *at);
  return static_cast<std::uint32_t>(crc);
}

using Path = std::uint32_t (*)(std::uint32_t, const unsigned char*, std::size_t);

Path path() {
  static const Path chosen = has_instruction() ? instruction_path : table_path;
  return chosen;
}

#else

constexpr auto path() { return table_path; }

#endif

}  // namespace

std::uint32_t crc32c(const void* bytes, std::size_t size, std::uint32_t seed) noexcept {
  return ~path()(~seed, static_cast<const unsigned char*>(bytes), size);
}

std::uint32_t crc32c_of_lanes(const std::uint32_t (&lanes)[3]) noexcept {
  return ~static_cast<std::uint32_t>(joined<kOpenLane>(lanes[0], lanes[1], lanes[2]));
}

std::uint32_t crc32c_by_table(const void* bytes, std::size_t size, std::uint32_t seed) noexcept {
  return ~table_path(~seed, static_cast<const unsigned char*>(bytes), size);
}

}  // namespace kvtier
