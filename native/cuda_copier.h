// The backend for memory of a GPU: one stream of its own, and one thread that issues jobs on it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "copy_backend.h"
#include "cuda_driver.h"
#include "cuda_paths.h"
#include "ledger.h"

namespace kvtier {

// Either side of a fragment may be device memory of any GPU, or host memory, which should be registered: what isn't is
// copied slowly, and kills the context where the kernel copies it. Jobs are issued in the order of submission.
class CudaCopier final : public CopyBackend {
 public:
  struct Options {
    std::string path = "auto";         // or "batch", "async", "kernel"
    std::uint64_t page_bytes = 32768;  // what the probe copies: a typical fragment
    bool low_priority = false;         // copies in the background: of the stream's priority, and a piece after the other
  };

  // Takes some ms for the probe. Throws std::invalid_argument (no usable driver, no such device, a path that can't be
  // had), CudaError.
  CudaCopier(std::shared_ptr<const CudaDriver> driver, int device, const Options& options);
  ~CudaCopier() override;

  std::uint64_t submit(const Fragments& fragments) override { return submit(fragments, std::nullopt); }

  // Nothing is read or written before all that is in the stream `after` now is over; 0 is CUDA's legacy default
  // stream. None: at once. Throws CudaError besides what CopyBackend names; the job does not exist then.
  std::uint64_t submit(const Fragments& fragments, std::optional<std::uint64_t> after);

  std::vector<Completion> poll() override;
  bool wait(std::int64_t ticket, std::optional<std::chrono::duration<double>> timeout) override;
  std::size_t pending() const override;
  void close() override;

  // From the next piece on at most so many bytes a second; 0: no limit. What is in the stream already stays there: of
  // copies in the background, that is little.
  void pace(std::uint64_t bytes_per_s);

  const std::string& path() const { return path_; }
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  struct Job;
  struct Shared;

  void prepare(Job& job, std::optional<std::uint64_t> after);
  void work() noexcept;  // the thread's life
  std::unique_lock<std::mutex> looked() const;
  void stop();
  bool forked() const;

  std::string path_;
  std::vector<std::string> notes_;
  std::unique_ptr<Shared> shared_;
  std::once_flag closed_;
  std::thread thread_;
  const int owner_;  // the process that has the thread
};

}  // namespace kvtier
