#include "copier.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "signals_blocked.h"
#include "stream_copy.h"

namespace kvtier {
namespace {

// What a thread draws at once. Smaller pieces cost atomics, larger ones leave a thread idle at the end of a job; from
// 64 KiB to 1 MiB the difference was within the noise.
constexpr std::uint64_t kPiece = std::uint64_t{256} << 10;

constexpr std::chrono::duration<double> kForever = std::chrono::hours(24 * 365);

struct Fragment {
  std::uint64_t source;
  std::uint64_t target;
  std::uint64_t end;  // where this fragment ends in the concatenation of all fragments of the job
};

std::vector<Fragment> concatenated(const Fragments& columns) {
  checked_bytes(columns);
  std::vector<Fragment> fragments;
  fragments.reserve(columns.size.size());
  std::uint64_t end = 0;
  for (std::size_t i = 0; i < columns.size.size(); ++i) {
    end += columns.size[i];
    fragments.push_back({columns.source[i], columns.target[i], end});
  }
  return fragments;
}

int checked_threads(int threads) {
  if (threads < 0 || threads > kMaxThreads)
    throw std::invalid_argument("threads must be 0 (automatic) to " + std::to_string(kMaxThreads) + ", not " +
                                std::to_string(threads));
  if (threads > 0) return threads;
  const auto cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  return std::min(kDefaultThreads, cores);
}

}  // namespace

// A job is one run of bytes, its fragments laid end to end, cut into pieces of kPiece that threads draw by a cursor.
// So many small fragments are drawn together, and a large one is shared, by the same rule.
struct HostCopier::Job {
  Job(std::uint64_t number, std::vector<Fragment> list)
      : ticket(number), fragments(std::move(list)), bytes(fragments.empty() ? 0 : fragments.back().end),
        pieces((bytes + kPiece - 1) / kPiece), pieces_left(pieces) {}

  std::uint64_t copy_drawn_pieces();
  void copy_range(std::uint64_t begin, std::uint64_t end) const;

  const std::uint64_t ticket;
  const std::vector<Fragment> fragments;
  const std::uint64_t bytes;
  const std::uint64_t pieces;
  std::atomic<std::uint64_t> cursor{0};  // the next piece to draw
  std::uint64_t pieces_left;             // guarded by the copier's mutex, as is `started`
  std::optional<Clock::time_point> started;
};

void HostCopier::Job::copy_range(std::uint64_t begin, std::uint64_t end) const {
  auto fragment = std::upper_bound(fragments.begin(), fragments.end(), begin,
                                   [](std::uint64_t at, const Fragment& f) { return at < f.end; });
  for (; begin < end; ++fragment) {
    const std::uint64_t start = fragment == fragments.begin() ? 0 : std::prev(fragment)->end;
    const std::uint64_t offset = begin - start;
    const std::uint64_t size = std::min(fragment->end, end) - begin;
    auto* const target = reinterpret_cast<char*>(fragment->target + offset);
    const auto* const source = reinterpret_cast<const char*>(fragment->source + offset);
    if (fragment->end - start >= kStreamThreshold)
      stream_copy(target, source, size);
    else
      std::memcpy(target, source, size);
    begin += size;
  }
}

// Returns how many pieces this thread has copied; on return they are visible to whoever takes the mutex after it.
std::uint64_t HostCopier::Job::copy_drawn_pieces() {
  std::uint64_t copied = 0;
  for (;; ++copied) {
    const std::uint64_t piece = cursor.fetch_add(1, std::memory_order_relaxed);
    if (piece >= pieces) break;
    copy_range(piece * kPiece, std::min((piece + 1) * kPiece, bytes));
  }
  stream_fence();
  return copied;
}

HostCopier::HostCopier(int threads) : wakeups_(std::make_unique<Wakeups>()), owner_(getpid()) {
  start_threads(checked_threads(threads));
}

HostCopier::~HostCopier() {
  HostCopier::close();
  // To destroy a condition variable is to wait for its sleepers, and a forked child remembers some that it hasn't got.
  if (forked()) static_cast<void>(wakeups_.release());
}

bool HostCopier::forked() const { return getpid() != owner_; }

void HostCopier::start_threads(int threads) {
  const SignalsBlocked blocked;  // a thread is born with its creator's mask
  try {
    threads_.reserve(static_cast<std::size_t>(threads));
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this] { work(); });
      pthread_setname_np(threads_.back().native_handle(), ("kvtier-copy-" + std::to_string(i)).c_str());
    }
  } catch (...) {
    stop_threads();
    throw;
  }
}

std::uint64_t HostCopier::submit(const Fragments& columns) {
  std::vector<Fragment> fragments = concatenated(columns);
  const std::lock_guard lock(mutex_);
  if (closing_) throw BackendClosed();
  // All that can run out of memory happens before anything is promised: threads then only fill what is reserved.
  const std::uint64_t ticket = ledger_.open();
  try {
    const auto job = std::make_shared<Job>(ticket, std::move(fragments));
    if (job->pieces == 0) {
      ledger_.finish({ticket, 0, 0.0, {}});
      return ticket;
    }
    queue_.push_back(job);
    job->pieces == 1 ? wakeups_->work.notify_one() : wakeups_->work.notify_all();
  } catch (...) {
    ledger_.withdraw();
    throw;
  }
  return ticket;
}

void HostCopier::work() noexcept {
  std::unique_lock lock(mutex_);
  for (;;) {
    wakeups_->work.wait(lock, [this] { return closing_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const std::shared_ptr<Job> job = queue_.front();
    if (!job->started) job->started = Clock::now();
    lock.unlock();
    const std::uint64_t copied = job->copy_drawn_pieces();
    lock.lock();
    // Every piece is drawn now, so nobody else needs to look at this job; others may still be copying theirs.
    if (!queue_.empty() && queue_.front() == job) queue_.pop_front();
    job->pieces_left -= copied;
    if (copied > 0 && job->pieces_left == 0) finish(*job);
  }
}

void HostCopier::finish(const Job& job) noexcept {
  const std::chrono::duration<double> seconds = Clock::now() - *job.started;
  ledger_.finish({job.ticket, job.bytes, seconds.count(), {}});
  wakeups_->done.notify_all();
}

std::vector<Completion> HostCopier::poll() {
  const std::lock_guard lock(mutex_);
  return ledger_.take();
}

bool HostCopier::wait(std::int64_t ticket, std::optional<std::chrono::duration<double>> timeout) {
  std::unique_lock lock(mutex_);
  ledger_.check(ticket);
  const auto is_done = [&] { return ledger_.is_finished(ticket); };
  if (!timeout || *timeout >= kForever) {
    wakeups_->done.wait(lock, is_done);
    return true;
  }
  const auto limit = std::chrono::duration_cast<Clock::duration>(std::max(*timeout, timeout->zero()));
  return wakeups_->done.wait_until(lock, Clock::now() + limit, is_done);
}

std::size_t HostCopier::pending() const {
  const std::lock_guard lock(mutex_);
  return ledger_.pending();
}

void HostCopier::close() {
  std::call_once(closed_, [this] { stop_threads(); });
}

// The queue is worked off first: a target half written is worse than a close that takes milliseconds.
void HostCopier::stop_threads() {
  if (forked()) {  // forked: the threads live on in the parent, there is nobody here to join
    static_cast<void>(new std::vector<std::thread>(std::move(threads_)));
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wakeups_->work.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace kvtier
