#include "cuda_probe.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace kvtier {
namespace {

// Each way. Enough that the link's time shows beside that of calls (about 20 us), and little enough to take some ms.
constexpr std::uint64_t kBytes = std::uint64_t{16} << 20;
constexpr std::uint64_t kPagesMost = 1024;
constexpr std::uint64_t kPageMost = kBytes / 4;
constexpr int kTimes = 3;  // the check has warmed up

// Differs with `salt`, so that bytes left over from another path don't look right.
void fill(void* memory, std::uint64_t bytes, std::uint32_t salt) {
  auto* const words = static_cast<std::uint32_t*>(memory);
  for (std::uint32_t i = 0; i < bytes / sizeof(std::uint32_t); ++i) words[i] = (i + salt) * 2654435761u;
}

}  // namespace

std::string Speed::in_words() const {
  char text[64];
  std::snprintf(text, sizeof text, "%.1f GB/s to the GPU, %.1f GB/s from it", to_device / 1e9, from_device / 1e9);
  return std::string(text) + ", in pages of " + std::to_string(page_bytes) + " bytes";
}

// Pages lie on the device in reversed order, and come back turned by one.
Probe::Probe(const Device& device, CUstream stream, std::uint64_t page_bytes)
    : driver_(device.driver()), stream_(stream), page_bytes_(std::clamp(page_bytes, std::uint64_t{1}, kPageMost)),
      pages_(std::min(kPagesMost, kBytes / page_bytes_)) {
  try {
    driver_.must(driver_.cuMemAlloc, &device_, pages_ * page_bytes_);
    driver_.must(driver_.cuMemHostAlloc, &host_, 2 * pages_ * page_bytes_,
                 CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP);
  } catch (const CudaError&) {
    release();
    throw;
  }
  const auto sent = reinterpret_cast<std::uintptr_t>(host_);
  const std::uint64_t returned = sent + pages_ * page_bytes_;
  for (std::uint64_t i = 0; i < pages_; ++i) {
    const std::uint64_t on_device = device_ + (pages_ - 1 - i) * page_bytes_;
    there_.push_back({sent + i * page_bytes_, on_device, page_bytes_});
    back_.push_back({on_device, returned + (i + 1) % pages_ * page_bytes_, page_bytes_});
  }
}

Probe::~Probe() { release(); }

void Probe::release() noexcept {
  if (host_ != nullptr) static_cast<void>(driver_.cuMemFreeHost(host_));
  if (device_ != 0) static_cast<void>(driver_.cuMemFree(device_));
}

// Without a wait between the two: what comes back must not be read before it is there.
void Probe::check(CopyPath& path) {
  auto* const sent = static_cast<char*>(host_);
  const char* const returned = sent + pages_ * page_bytes_;
  fill(sent, pages_ * page_bytes_, 977 * ++checked_);
  seconds(path, {there_, back_});
  for (std::uint64_t page = 0; page < pages_; ++page)
    if (std::memcmp(sent + page * page_bytes_, returned + (page + 1) % pages_ * page_bytes_, page_bytes_) != 0)
      throw std::runtime_error("wrong bytes");
}

Speed Probe::measure(CopyPath& path) {
  double there = std::numeric_limits<double>::max();
  double back = there;
  for (int i = 0; i < kTimes; ++i) {
    there = std::min(there, seconds(path, {there_}));
    back = std::min(back, seconds(path, {back_}));
  }
  const auto bytes = static_cast<double>(pages_ * page_bytes_);
  return {bytes / there, bytes / back, page_bytes_};
}

// One call each, in the stream's order; the copies of one call go in any.
double Probe::seconds(CopyPath& path, std::initializer_list<std::span<const Stretch>> calls) {
  std::vector<Tables::Lease> held;
  const auto start = std::chrono::steady_clock::now();
  try {
    for (const std::span<const Stretch> pages : calls) path.issue(pages, stream_, held);
    driver_.must(driver_.cuStreamSynchronize, stream_);
  } catch (...) {
    static_cast<void>(driver_.cuStreamSynchronize(stream_));  // before `held` and the pages go
    throw;
  }
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  return std::max(taken.count(), 1e-9);
}

}  // namespace kvtier
