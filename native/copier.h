// The backend for host memory: a few threads that sleep until there is something to copy.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "copy_backend.h"
#include "ledger.h"

namespace kvtier {

inline constexpr int kDefaultThreads = 2;  // two threads fill a memory channel; the engine needs the other cores
inline constexpr int kMaxThreads = 16;

// Jobs are worked off in the order of submission; all threads share the oldest one, piece by piece.
class HostCopier final : public CopyBackend {
 public:
  // threads == 0: kDefaultThreads, or fewer where the machine has fewer cores. std::invalid_argument outside 0..16.
  explicit HostCopier(int threads);
  ~HostCopier() override;

  std::uint64_t submit(const Fragments& fragments) override;
  std::vector<Completion> poll() override;
  bool wait(std::int64_t ticket, std::optional<std::chrono::duration<double>> timeout) override;
  std::size_t pending() const override;
  void close() override;

 private:
  struct Job;
  using Clock = std::chrono::steady_clock;

  void start_threads(int threads);
  void stop_threads();
  void work() noexcept;                  // one thread's life
  void finish(const Job& job) noexcept;  // with the mutex held
  bool forked() const;

  struct Wakeups {
    std::condition_variable work;
    std::condition_variable done;
  };

  std::unique_ptr<Wakeups> wakeups_;
  mutable std::mutex mutex_;  // guards everything down to `closing_`; never held while bytes move
  std::deque<std::shared_ptr<Job>> queue_;  // jobs with pieces that no thread has drawn yet
  Ledger ledger_;
  bool closing_ = false;

  std::once_flag closed_;
  std::vector<std::thread> threads_;
  const int owner_;  // the process that has the threads: a forked child has only their names
};

}  // namespace kvtier
