#include "procfs.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <string>

namespace kvtier {
namespace {

constexpr std::uint64_t kUnknown = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t kKiB = 1024;
constexpr std::uint64_t kHugePage = 2ull << 20;

// The value of the first line that begins with `label`; `fallback` when there is no such line.
std::uint64_t labelled(const std::string& path, const std::string& label, std::uint64_t fallback) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, label.size(), label) != 0) continue;
    const auto digit = line.find_first_of("0123456789", label.size());
    return digit == std::string::npos ? fallback : std::stoull(line.substr(digit));
  }
  return fallback;
}

// A file that holds one number; `fallback` when it is absent or says "max".
std::uint64_t number(const std::string& path, std::uint64_t fallback) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  return file >> value ? value : fallback;
}

// The page cache of a cgroup counts as its use but is given up under pressure, so it is not held against the arena.
std::uint64_t available_in_cgroup(const std::string& folder) {
  const std::uint64_t limit = number(folder + "/memory.max", kUnknown);
  if (limit == kUnknown) return kUnknown;
  const std::uint64_t used = number(folder + "/memory.current", 0);
  const std::uint64_t cache = labelled(folder + "/memory.stat", "inactive_file ", 0) +
                              labelled(folder + "/memory.stat", "active_file ", 0);
  const std::uint64_t held = used - std::min(used, cache);
  return limit - std::min(limit, held);
}

// Only the unified hierarchy (v2): every ancestor may set the limit that counts.
std::uint64_t available_in_cgroups() {
  std::ifstream file("/proc/self/cgroup");
  std::uint64_t least = kUnknown;
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, 3, "0::") != 0) continue;
    std::string path = line.substr(3);
    for (std::size_t slash = 0; slash != std::string::npos; path.resize(std::min(slash, path.size()))) {
      least = std::min(least, available_in_cgroup("/sys/fs/cgroup" + path));
      slash = path.find_last_of('/');
    }
  }
  return least;
}

}  // namespace

std::uint64_t available_memory() {
  const std::uint64_t kib = labelled("/proc/meminfo", "MemAvailable:", kUnknown);
  const std::uint64_t machine = kib == kUnknown ? kUnknown : kib * kKiB;
  return std::min(machine, available_in_cgroups());
}

std::uint64_t free_huge_page_bytes() {
  const std::string folder = "/sys/kernel/mm/hugepages/hugepages-2048kB";
  const std::uint64_t free = number(folder + "/free_hugepages", 0);
  const std::uint64_t promised = number(folder + "/resv_hugepages", 0);
  return (free - std::min(free, promised)) * kHugePage;
}

std::uint64_t huge_mapped_bytes(const void* address) {
  const auto start = reinterpret_cast<std::uintptr_t>(address);
  std::ifstream file("/proc/self/smaps");
  std::uint64_t kib = 0;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    // A mapping begins with "7f12...-7f34... rw-s"; its facts follow as "Name:  number kB".
    std::uintptr_t found = 0;
    const auto parsed = std::from_chars(line.data(), line.data() + line.size(), found, 16);
    if (parsed.ec == std::errc() && *parsed.ptr == '-') {
      if (inside) break;
      inside = found == start;
    }
    if (!inside) continue;
    for (const char* fact : {"ShmemPmdMapped:", "FilePmdMapped:", "Shared_Hugetlb:", "Private_Hugetlb:"}) {
      const std::string label(fact);
      if (line.compare(0, label.size(), label) == 0) kib += std::stoull(line.substr(label.size()));
    }
  }
  return kib * kKiB;
}

}  // namespace kvtier
