// The one seam between those who plan copies and those who carry them out.
//
// A backend takes jobs and reports them. A job is a list of fragments (source, target, size); addresses are plain
// numbers that only the backend understands: the host backend reads them as pointers of this process, a CUDA backend
// may read either side as device memory. Nothing here says where bytes live, which thread moves them, or when.
//
// The contract, for every backend:
//
// * submit() takes the fragments by copy, queues the job and returns its ticket: 1, 2, 3 ... in order of submission.
//   It never waits for bytes. It refuses (QueueFull) when kMaxJobs jobs are submitted and not yet polled, so that
//   neither the queue nor the list of results can grow without bound.
// * Jobs finish in any order, and so do the fragments of a job. Whoever needs an order waits between two submits.
//   Sources and targets of unfinished jobs must stay valid, and no target may overlap another fragment of an
//   unfinished job: a backend does not look.
// * A job is finished when its last byte is where any reader that learns of the completion will see it.
//   It is then reported by exactly one poll(), once.
// * A job that fails is finished, too, but only when nothing of it can still be read or written. Its report says why.
// * wait() blocks until the job is finished or the time is up. It consumes nothing: poll() still reports the job.
// * There is no cancellation. A caller that gives up on a job must go on treating its targets as being written
//   until the job is finished: a deadline is not a cancellation.
// * close() refuses new jobs, finishes those in flight and releases threads and streams. It may be called again.
//   poll(), wait() and pending() still work afterwards.
// * Every verb may be called from any thread. No callback, and so no exception, ever comes from another thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace kvtier {

inline constexpr std::size_t kMaxJobs = 4096;

class QueueFull : public std::runtime_error {
 public:
  QueueFull() : std::runtime_error("queue full: as many jobs as allowed are submitted and not polled") {}
};

class BackendClosed : public std::runtime_error {
 public:
  BackendClosed() : std::runtime_error("copier is closed") {}
};

struct Completion {
  std::uint64_t ticket;
  std::uint64_t bytes;
  double seconds;     // from the moment the first byte was touched; the time in the queue is not in it
  std::string error;  // empty, or why the job failed: its targets then hold anything
};

// Three columns of one length: fragment i copies size[i] bytes from source[i] to target[i].
struct Fragments {
  std::span<const std::uint64_t> source;
  std::span<const std::uint64_t> target;
  std::span<const std::uint64_t> size;
};

class CopyBackend {
 public:
  virtual ~CopyBackend() = default;  // closes

  // Throws std::invalid_argument (columns of unequal length, an impossible range), QueueFull, BackendClosed.
  virtual std::uint64_t submit(const Fragments& fragments) = 0;

  // The jobs finished since the last call. Never blocks on a copy.
  virtual std::vector<Completion> poll() = 0;

  // False when `timeout` (none: no limit) is up first. Throws std::invalid_argument for a ticket never issued.
  virtual bool wait(std::int64_t ticket, std::optional<std::chrono::duration<double>> timeout) = 0;

  // Jobs submitted and not finished.
  virtual std::size_t pending() const = 0;

  virtual void close() = 0;
};

}  // namespace kvtier
