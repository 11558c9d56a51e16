// The three ways to have a GPU copy many small pieces, and the probe that chooses among them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "copy_backend.h"
#include "cuda_driver.h"
#include "pool.h"

namespace kvtier {

inline constexpr std::size_t kStretchesPerCall = 4096;  // so that no call into the driver takes long
inline constexpr double kKernelAdvantage = 1.3;         // a kernel takes SMs from those who compute

// Bytes that are copied in one go. The kernel reads them in this form, too.
struct Stretch {
  std::uint64_t source;
  std::uint64_t target;
  std::uint64_t size;
};
static_assert(sizeof(Stretch) == 24);

// The fragments in their order, those that go on where the one before ends made one with it; none is empty.
std::vector<Stretch> merged(const Fragments& columns);

// Cuts a list into pieces that one call can take.
class Cutter {
 public:
  explicit Cutter(std::span<const Stretch> list) : list_(list) {}
  bool at_end() const { return next_ == list_.size(); }

  // Fills `piece` with what comes next: at most kStretchesPerCall, at most `most` bytes together. Returns the bytes.
  std::uint64_t cut(std::uint64_t most, std::vector<Stretch>& piece);

 private:
  std::span<const Stretch> list_;
  std::size_t next_ = 0;
  std::uint64_t done_ = 0;  // bytes of list_[next_]
};

using Tables = Pool<Stretch*>;  // of kStretchesPerCall each, where the GPU can read them

// One way to copy. Used by one thread at a time, with the device's context current.
class CopyPath {
 public:
  virtual ~CopyPath() = default;
  virtual const char* name() const = 0;

  // Puts at most kStretchesPerCall copies into the stream. `held` is what must not be given back before they are over,
  // also when this throws: CudaError, std::bad_alloc, and some of the copies may be in the stream then.
  virtual void issue(std::span<const Stretch> piece, CUstream stream, std::vector<Tables::Lease>& held) = 0;
};

struct Choice {
  std::unique_ptr<CopyPath> path;
  std::vector<std::string> notes;  // what can't be had and why, and what was measured
};

// `wanted`: "batch", "async", "kernel", or "auto", which takes the fastest. Each is tried with pages of `page_bytes`
// there and back: one that fails or gives wrong bytes can't be had. Throws std::invalid_argument (no such path, or it
// can't be had). Needs the device's context current.
Choice choose_path(const Device& device, CUstream stream, const std::string& wanted, std::uint64_t page_bytes);

}  // namespace kvtier
