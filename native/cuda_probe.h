// Tries a way to copy, there and back: is it right, and how fast is it?
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "cuda_paths.h"

namespace kvtier {

struct Speed {
  double to_device;    // bytes a second
  double from_device;  // bytes a second
  std::uint64_t page_bytes;

  double mean() const { return 2 / (1 / to_device + 1 / from_device); }  // of as many bytes there as back
  std::string in_words() const;  // "21.3 GB/s to the GPU, 20.9 GB/s from it, in pages of 32768 bytes"
};

// Needs the device's context current, as long as it lives.
class Probe {
 public:
  // Takes at most 16 MiB of device memory and 32 MiB of pinned memory. Throws CudaError.
  Probe(const Device& device, CUstream stream, std::uint64_t page_bytes);
  ~Probe();
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;

  // Takes a few ms, most of them to look at the bytes. Throws CudaError, std::runtime_error (wrong bytes).
  void check(CopyPath& path);

  // To be called after check(). Throws CudaError.
  Speed measure(CopyPath& path);

 private:
  double seconds(CopyPath& path, std::initializer_list<std::span<const Stretch>> calls);
  void release() noexcept;

  const CudaDriver& driver_;
  const CUstream stream_;
  const std::uint64_t page_bytes_;
  const std::uint64_t pages_;
  CUdeviceptr device_ = 0;
  void* host_ = nullptr;  // the pages that go, then the pages that come back
  std::vector<Stretch> there_;
  std::vector<Stretch> back_;
  std::uint32_t checked_ = 0;
};

}  // namespace kvtier
