// CRC-32C (Castagnoli), the checksum that storage uses: it finds what a disk or a torn write damaged, not a forgery.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvtier {

// Goes on from `seed`, the checksum of all bytes before these: crc32c(b, crc32c(a)) is the checksum of a and b joined.
std::uint32_t crc32c(const void* bytes, std::size_t size, std::uint32_t seed = 0) noexcept;

// The checksum of three neighbouring lanes of 4 KiB whose own are not finished: the first began with all bits set, the
// others with none. For whoever computes them beside other work.
std::uint32_t crc32c_of_lanes(const std::uint32_t (&lanes)[3]) noexcept;

// The same as crc32c() without the CPU's instruction. Slow; for CPUs that lack it, and for tests that compare the two.
std::uint32_t crc32c_by_table(const void* bytes, std::size_t size, std::uint32_t seed = 0) noexcept;

}  // namespace kvtier
