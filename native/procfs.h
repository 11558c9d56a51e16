// What the kernel says about memory: read from /proc and /sys, never from a library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvtier {

// Bytes that can be taken now without swapping or being killed for it: MemAvailable, or less where a memory cgroup
// sets a lower limit. UINT64_MAX when the kernel does not say.
std::uint64_t available_memory();

// Bytes of reserved 2 MiB pages that nobody has taken or been promised.
std::uint64_t free_huge_page_bytes();

// Bytes of this process's mapping starting at `address` that are mapped by 2 MiB pages; 0 when unknown.
std::uint64_t huge_mapped_bytes(const void* address);

}  // namespace kvtier
