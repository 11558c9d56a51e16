#include "cuda_copier.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "cuda_channel.h"
#include "signals_blocked.h"

namespace kvtier {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

// More than hides the time that a call takes, and not so many that the stream's queue is full and calls wait.
constexpr std::size_t kInFlight = 64;
constexpr std::uint64_t kNoLimit = std::numeric_limits<std::uint64_t>::max();

constexpr std::chrono::microseconds kFirstLook{10};
constexpr Seconds kNap{1};
constexpr Seconds kForever = std::chrono::hours(24 * 365);

}  // namespace

// Its events and tables go back to their pools when it is over, and not before.
struct CudaCopier::Job {
  void fail(const CudaDriver& driver, const char* call, CUresult result) noexcept {
    failed = true;
    try {
      error = driver.message(call, result);
    } catch (const std::bad_alloc&) {
      error = "out of memory";
    }
  }
  void fail(const std::exception& why) noexcept {
    failed = true;
    try {
      error = why.what();
    } catch (const std::bad_alloc&) {
      error = "out of memory";
    }
  }

  std::uint64_t ticket = 0;
  std::uint64_t bytes = 0;
  std::vector<Stretch> stretches;
  Events::Lease after, start, done;
  std::vector<Tables::Lease> tables;
  bool failed = false;
  std::string error;
};

// The mutex guards all; but what the channel needs to issue is the thread's alone, and so is a job while it is issued.
// It is never held over a call that waits for the GPU.
struct CudaCopier::Shared {
  Shared(std::shared_ptr<const CudaDriver> driver, int ordinal, const Options& options);
  ~Shared() { release(); }

  bool look() noexcept;
  void finish(std::size_t at, double seconds) noexcept;
  void issue_next(std::unique_lock<std::mutex>& lock) noexcept;
  void issue(Job& job);
  std::uint64_t await_turn();
  void settle(std::unique_lock<std::mutex>& lock) noexcept;
  void release() noexcept;

  std::mutex mutex;
  std::condition_variable wake;  // the thread's
  std::unique_ptr<Device> device;
  std::unique_ptr<CudaChannel> channel;
  Ledger ledger;
  std::deque<std::unique_ptr<Job>> jobs;  // unfinished, in the order of submission
  std::size_t issued = 0;                 // so many of them, from the front, are wholly in the stream, or failed
  std::uint64_t bytes_per_s = 0;
  bool trouble = false;  // the thread must settle()
  bool closing = false;
};

CudaCopier::Shared::Shared(std::shared_ptr<const CudaDriver> driver, int ordinal, const Options& options)
    : device(std::make_unique<Device>(std::move(driver), ordinal)) {
  const Current current(*device);
  channel = std::make_unique<CudaChannel>(*device, options.path, options.page_bytes, options.low_priority);
}

// Without a context things are given back all the same: the driver knows where they belong, or is gone. Not under the
// mutex: the last user of a driver that Python made takes the GIL, and who has the GIL may wait for the mutex.
void CudaCopier::Shared::release() noexcept {
  std::unique_lock lock(mutex);
  const std::unique_ptr<Device> last_device = std::move(device);
  std::unique_ptr<CudaChannel> last_channel = std::move(channel);
  lock.unlock();
  std::optional<Current> current;
  try {
    if (last_device != nullptr) current.emplace(*last_device);
  } catch (const CudaError&) {
  }
  last_channel.reset();
}

// Finishes the jobs whose last byte has arrived. Needs the mutex and the context. Whether there was one.
bool CudaCopier::Shared::look() noexcept {
  const CudaDriver& driver = channel->driver;
  bool found = false;
  for (std::size_t i = 0; i < issued;) {
    Job& job = *jobs[i];
    const CUresult result = job.failed ? CUDA_SUCCESS : driver.cuEventQuery(job.done.get());
    if (result == CUDA_ERROR_NOT_READY) break;  // and so are all that came into the stream after it
    if (result != CUDA_SUCCESS) {
      job.fail(driver, driver.cuEventQuery.symbol, result);
      trouble = true;
      wake.notify_one();
    }
    if (job.failed) {  // what it had begun may still write
      ++i;
      continue;
    }
    float milliseconds = 0;
    const CUresult timed = driver.cuEventElapsedTime(&milliseconds, job.start.get(), job.done.get());
    if (timed != CUDA_SUCCESS) job.fail(driver, driver.cuEventElapsedTime.symbol, timed);
    finish(i, timed == CUDA_SUCCESS ? static_cast<double>(milliseconds) / 1e3 : 0.0);
    found = true;
  }
  return found;
}

void CudaCopier::Shared::finish(std::size_t at, double seconds) noexcept {
  Job& job = *jobs[at];
  ledger.finish({job.ticket, job.bytes, seconds, std::move(job.error)});
  jobs.erase(jobs.begin() + static_cast<std::ptrdiff_t>(at));
  --issued;
}

// Only this makes `issued` grow, and only once the done event is recorded: an event that is not would look over.
void CudaCopier::Shared::issue_next(std::unique_lock<std::mutex>& lock) noexcept {
  Job& job = *jobs[issued];
  lock.unlock();
  try {
    issue(job);
  } catch (const std::exception& why) {  // CudaError, std::bad_alloc
    job.fail(why);
  }
  lock.lock();
  ++issued;
  trouble = trouble || job.failed;
}

void CudaCopier::Shared::issue(Job& job) {
  const CudaDriver& driver = channel->driver;
  const CUstream stream = channel->stream.get();
  if (job.after) driver.must(driver.cuStreamWaitEvent, stream, job.after.get(), 0u);
  driver.must(driver.cuEventRecord, job.start.get(), stream);
  for (Cutter cutter(job.stretches); !cutter.at_end();) {
    const std::uint64_t piece_bytes = await_turn();
    const std::uint64_t bytes = cutter.cut(channel->room_in(piece_bytes), channel->piece);
    channel->choice.path->issue(channel->piece, stream, job.tables);
    if (piece_bytes == kPacePiece) channel->pacer.spend(bytes);
    channel->put(bytes, piece_bytes);
  }
  driver.must(driver.cuEventRecord, job.done.get(), stream);
}

// Returns when something may be put into the stream: how many bytes a piece has now.
std::uint64_t CudaCopier::Shared::await_turn() {
  std::unique_lock lock(mutex);
  while (!closing && (bytes_per_s > 0 || channel->in_background)) {
    if (trouble) settle(lock);
    const Seconds delay = bytes_per_s > 0 ? channel->pacer.delay(bytes_per_s, Clock::now()) : Seconds(0);
    if (delay.count() <= 0 && channel->has_room()) return bytes_per_s > 0 ? kPacePiece : kBackgroundPiece;
    wake.wait_for(lock, std::clamp(delay, Seconds(kLook), kNap));
  }
  return kNoLimit;
}

// Finishes the jobs that failed, once nothing of them can be written any more. The mutex is let go meanwhile.
void CudaCopier::Shared::settle(std::unique_lock<std::mutex>& lock) noexcept {
  trouble = false;
  lock.unlock();
  const CUresult result = channel->drain();
  lock.lock();
  for (std::size_t i = 0; i < issued;) {
    Job& job = *jobs[i];
    if (result != CUDA_SUCCESS && !job.failed)
      job.fail(channel->driver, channel->driver.cuStreamSynchronize.symbol, result);
    if (job.failed)
      finish(i, 0.0);
    else
      ++i;
  }
  look();
}

CudaCopier::CudaCopier(std::shared_ptr<const CudaDriver> driver, int device, const Options& options)
    : shared_(std::make_unique<Shared>(std::move(driver), device, options)), owner_(getpid()) {
  path_ = shared_->channel->choice.path->name();
  notes_ = shared_->channel->choice.notes;
  const SignalsBlocked blocked;  // a thread is born with its creator's mask
  thread_ = std::thread([this] { work(); });
  pthread_setname_np(thread_.native_handle(), "kvtier-cuda");
}

CudaCopier::~CudaCopier() {
  CudaCopier::close();
  // Neither CUDA nor the condition variable's sleepers came along into a forked child.
  if (forked()) static_cast<void>(shared_.release());
}

bool CudaCopier::forked() const { return getpid() != owner_; }

std::uint64_t CudaCopier::submit(const Fragments& columns, std::optional<std::uint64_t> after) {
  auto job = std::make_unique<Job>();
  job->bytes = checked_bytes(columns);
  job->stretches = merged(columns);
  const std::lock_guard lock(shared_->mutex);
  if (shared_->closing || forked()) throw BackendClosed();
  // All that can fail happens before anything is promised.
  const std::uint64_t ticket = job->ticket = shared_->ledger.open();
  if (job->stretches.empty()) {
    shared_->ledger.finish({ticket, 0, 0.0, {}});
    return ticket;
  }
  try {
    prepare(*job, after);
    shared_->jobs.push_back(std::move(job));
  } catch (...) {
    shared_->ledger.withdraw();
    throw;
  }
  shared_->wake.notify_one();
  return ticket;
}

void CudaCopier::prepare(Job& job, std::optional<std::uint64_t> after) {
  const Current current(*shared_->device);
  CudaChannel& channel = *shared_->channel;
  job.start = channel.timed.take();
  job.done = channel.timed.take();
  if (!after) return;
  job.after = channel.untimed.take();
  const auto stream = reinterpret_cast<CUstream>(static_cast<std::uintptr_t>(*after));
  channel.driver.must(channel.driver.cuEventRecord, job.after.get(), stream);
}

void CudaCopier::work() noexcept {
  std::optional<Current> current;
  try {
    current.emplace(*shared_->device);
  } catch (const CudaError&) {  // every job will say so
  }
  Shared& shared = *shared_;
  std::unique_lock lock(shared.mutex);
  for (;;) {
    if (shared.trouble)
      shared.settle(lock);
    else if (shared.issued < shared.jobs.size() && shared.issued < kInFlight)
      shared.issue_next(lock);
    else if (shared.closing && shared.jobs.empty())
      return;
    else if (!shared.closing && shared.issued < kInFlight)
      shared.wake.wait(lock);
    else if (!shared.look())
      shared.wake.wait_for(lock, kLook);
  }
}

// Looks which jobs are over. The mutex is held on return.
std::unique_lock<std::mutex> CudaCopier::looked() const {
  std::unique_lock lock(shared_->mutex);
  if (shared_->issued == 0 || forked()) return lock;
  try {
    const Current current(*shared_->device);
    shared_->look();
  } catch (const CudaError&) {  // the thread has the context already
    shared_->trouble = true;
    shared_->wake.notify_one();
  }
  return lock;
}

std::vector<Completion> CudaCopier::poll() {
  const std::unique_lock lock = looked();
  return shared_->ledger.take();
}

bool CudaCopier::wait(std::int64_t ticket, std::optional<std::chrono::duration<double>> timeout) {
  const Seconds limit = std::clamp(timeout.value_or(kForever), Seconds(0), kForever);
  const Clock::time_point deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(limit);
  for (std::chrono::microseconds nap = kFirstLook;; nap = std::min(2 * nap, kLook)) {
    {
      const std::unique_lock lock = looked();
      shared_->ledger.check(ticket);
      if (shared_->ledger.is_finished(ticket)) return true;
    }
    const Clock::duration left = deadline - Clock::now();
    if (left <= Clock::duration::zero()) return false;
    std::this_thread::sleep_for(std::min<Clock::duration>(nap, left));
  }
}

std::size_t CudaCopier::pending() const {
  const std::unique_lock lock = looked();
  return shared_->ledger.pending();
}

void CudaCopier::pace(std::uint64_t bytes_per_s) {
  const std::lock_guard lock(shared_->mutex);
  shared_->bytes_per_s = bytes_per_s;
  shared_->wake.notify_one();
}

void CudaCopier::close() {
  std::call_once(closed_, [this] { stop(); });
}

// The queue is worked off first, at full speed: a target half written is worse than a close that takes milliseconds.
void CudaCopier::stop() {
  if (forked()) {  // the thread lives on in the parent, there is nobody here to join
    static_cast<void>(new std::thread(std::move(thread_)));
    return;
  }
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->closing = true;
    shared_->wake.notify_one();
  }
  thread_.join();
  shared_->release();
}

}  // namespace kvtier
