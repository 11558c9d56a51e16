#include "file_io.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <future>
#include <limits>
#include <optional>
#include <stdexcept>
#include <system_error>

#include "crc32c.h"
#include "uring.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kLargestRequest = std::uint32_t{1} << 30;  // the kernel cuts off at 2 GiB less a page
constexpr int kMaxStalls = 1000;  // EINTR or EAGAIN in a row: whoever goes on after that is never done
constexpr std::uint64_t kWakeTag = std::numeric_limits<std::uint64_t>::max();
constexpr auto kShortage = std::chrono::milliseconds(1);  // until the kernel is asked again
constexpr std::chrono::duration<double> kForever = std::chrono::hours(24 * 365);

// Python's main thread must get SIGINT and friends. Faults stay deliverable, or faulthandler would see nothing.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

Descriptor new_event() {
  const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  return Descriptor(fd);
}

// Neither can fail: the counter never comes near its end.
void raise_event(const Descriptor& event) { static_cast<void>(!eventfd_write(event.get(), 1)); }

void clear_event(const Descriptor& event) {
  eventfd_t count;
  static_cast<void>(!eventfd_read(event.get(), &count));
}

int checked(const char* name, int value, int most) {
  if (value < 1 || value > most)
    throw std::invalid_argument(std::string(name) + " must be 1 to " + std::to_string(most) + ", not " +
                                std::to_string(value));
  return value;
}

void check(const Transfer& transfer) {
  constexpr std::uint64_t most = std::numeric_limits<std::int64_t>::max();
  if (transfer.fd < 0) throw std::invalid_argument("fd must not be negative");
  if (transfer.size == 0) throw std::invalid_argument("size must not be 0");
  if (transfer.address == 0) throw std::invalid_argument("address must not be 0");
  if (transfer.size > most || transfer.offset > most - transfer.size || transfer.address > most - transfer.size)
    throw std::invalid_argument("the range is larger than any file or memory");
}

std::size_t index(Direction direction) { return static_cast<std::size_t>(direction); }

}  // namespace

struct FileIo::Operation : Queued {
  std::uint64_t moved = 0;
  int stalls = 0;
  int error = 0;
  std::uint32_t crc = 0;
  Clock::time_point handed_over{};
  std::chrono::duration<double> lasted{};

  bool writes() const { return transfer.direction == Direction::kWrite; }
  Ring::Range rest() const;
  std::int64_t call() const;
  bool settled_by(std::int64_t result);
  void add_checksum();
};

// What the kernel is to do next.
Ring::Range FileIo::Operation::rest() const {
  const auto size = static_cast<std::uint32_t>(std::min<std::uint64_t>(transfer.size - moved, kLargestRequest));
  return {transfer.offset + moved, transfer.address + moved, size};
}

std::int64_t FileIo::Operation::call() const {
  const Ring::Range range = rest();
  auto* const memory = reinterpret_cast<void*>(range.address);
  const auto offset = static_cast<off64_t>(range.offset);
  const ssize_t moved_now = writes() ? pwrite64(transfer.fd, memory, range.size, offset)
                                     : pread64(transfer.fd, memory, range.size, offset);
  return moved_now < 0 ? -errno : moved_now;
}

// Takes the kernel's answer, bytes or a negated errno. False when there is more to do.
bool FileIo::Operation::settled_by(std::int64_t result) {
  if (result > 0) {
    moved += static_cast<std::uint64_t>(result);
    stalls = 0;
    if (moved < transfer.size) return false;
  } else if ((result == -EINTR || result == -EAGAIN) && ++stalls < kMaxStalls) {
    return false;
  } else if (result == 0) {
    error = writes() ? ENOSPC : EIO;
  } else {
    // Direct I/O can't go on from where a file ends between two sectors.
    error = result == -EINVAL && moved > 0 ? EIO : static_cast<int>(-result);
  }
  lasted = Clock::now() - handed_over;
  return true;
}

void FileIo::Operation::add_checksum() {
  crc = crc32c(reinterpret_cast<const void*>(transfer.address), transfer.size, transfer.seed);
}

// One ring and its thread. It hands over first and computes then, so that the kernel always has something to do.
class FileIo::RingWorker {
 public:
  RingWorker(FileIo& io, int part) : io_(io), part_(part), wake_(new_event()) {
    // What is in flight and what waits for its checksum: as many of each, so that a slow CPU holds up the disk and
    // not the other way round.
    operations_.resize(2 * static_cast<std::size_t>(part));
    for (std::size_t slot = 0; slot < operations_.size(); ++slot) free_.push_back(slot);
    landed_.reserve(operations_.size());
  }

  // One worker's life. `ready` gets the exception if there can't be a ring.
  void run(std::promise<void> ready) noexcept;

  void wake() const noexcept { raise_event(wake_); }
  int room_asleep() const { return room_asleep_; }
  void forget_sleep() { room_asleep_ = 0; }

 private:
  int in_flight() const { return static_cast<int>(operations_.size() - free_.size() - landed_.size()); }
  int room() const { return std::min(part_ - in_flight(), part_ - static_cast<int>(landed_.size())); }
  void arm();
  void hand_over(std::size_t slot);
  void take_completions();
  void start_more();
  bool finish_one();
  bool sleep();

  FileIo& io_;
  const int part_;
  const Descriptor wake_;
  int room_asleep_ = 0;  // for how many more it sleeps; guarded by io_.mutex_

  std::optional<Ring> ring_;
  bool armed_ = false;
  std::vector<Operation> operations_;
  std::vector<std::size_t> free_;    // slots
  std::vector<std::size_t> landed_;  // slots: completed by the kernel and not reported, oldest first
};

void FileIo::RingWorker::run(std::promise<void> ready) noexcept {
  try {
    ring_.emplace(static_cast<unsigned>(part_) + 1);
    arm();
    const int error = ring_->enter(false);
    if (error != 0) throw std::system_error(error, std::generic_category(), "io_uring_enter");
  } catch (...) {
    ring_.reset();
    ready.set_exception(std::current_exception());
    return;
  }
  ready.set_value();
  do {
    take_completions();
    start_more();
  } while (finish_one() || sleep());
  ring_.reset();
}

// New work must end the wait for completions, so the event that announces it is waited for in the same place.
void FileIo::RingWorker::arm() {
  ring_->poll_readable(wake_.get(), kWakeTag);
  armed_ = true;
}

void FileIo::RingWorker::hand_over(std::size_t slot) {
  const Operation& operation = operations_[slot];
  const Ring::Range rest = operation.rest();
  operation.writes() ? ring_->write(operation.transfer.fd, rest, slot) : ring_->read(operation.transfer.fd, rest, slot);
  ring_->enter(false);  // what the kernel can't take now goes with the next
}

void FileIo::RingWorker::take_completions() {
  while (const std::optional<Ring::Completion> completion = ring_->next()) {
    if (completion->tag == kWakeTag) {
      clear_event(wake_);
      armed_ = false;
      continue;
    }
    Operation& operation = operations_[completion->tag];
    if (!operation.settled_by(completion->result)) {
      hand_over(completion->tag);
      continue;
    }
    landed_.push_back(completion->tag);
    const std::lock_guard lock(io_.mutex_);
    io_.completed(operation);
  }
}

void FileIo::RingWorker::start_more() {
  while (room() > 0) {
    Operation* operation;
    {
      const std::lock_guard lock(io_.mutex_);
      if (!io_.can_start()) return;
      operation = &operations_[free_.back()];
      *operation = {io_.take()};
    }
    const std::size_t slot = free_.back();
    free_.pop_back();
    if (operation->writes()) operation->add_checksum();
    operation->handed_over = Clock::now();
    hand_over(slot);
  }
}

// One only: then it is time to look for completions and to start more.
bool FileIo::RingWorker::finish_one() {
  if (landed_.empty()) return false;
  const std::size_t slot = landed_.front();
  Operation& operation = operations_[slot];
  if (!operation.writes() && operation.error == 0) operation.add_checksum();
  {
    const std::lock_guard lock(io_.mutex_);
    io_.report(operation);
  }
  landed_.erase(landed_.begin());
  free_.push_back(slot);
  return true;
}

// Until something completes or somebody wakes it. False when there is nothing left to live for.
bool FileIo::RingWorker::sleep() {
  {
    const std::lock_guard lock(io_.mutex_);
    if (io_.drained() && in_flight() == 0) return false;
    if (room() > 0 && io_.can_start()) return true;
    room_asleep_ = room();
  }
  if (!armed_) arm();
  if (ring_->enter(true) != 0) std::this_thread::sleep_for(kShortage);
  const std::lock_guard lock(io_.mutex_);
  room_asleep_ = 0;
  return true;
}

FileIo::FileIo(int depth, int threads, const std::string& backend)
    : depth_(checked("depth", depth, kMaxDepth)), owner_(getpid()), event_(new_event()),
      wakeups_(std::make_unique<Wakeups>()) {
  checked("threads", threads, kMaxIoThreads);
  if (backend != "auto" && backend != "io_uring" && backend != "threads")
    throw std::invalid_argument("backend must be \"auto\", \"io_uring\" or \"threads\", not \"" + backend + "\"");
  finished_.reserve(kMaxOps);
  if (backend != "threads") {
    try {
      start_rings(std::min(threads, depth));
      return;
    } catch (const std::system_error& refused) {
      if (backend == "io_uring") throw;
      fallback_ = refused.what();
    }
  }
  start_threads(std::max(threads, depth));
}

FileIo::~FileIo() {
  close();
  // To destroy a condition variable is to wait for its sleepers, and a forked child remembers some that it hasn't got.
  if (forked()) static_cast<void>(wakeups_.release());
}

bool FileIo::forked() const { return getpid() != owner_; }

void FileIo::start_rings(int count) {
  const SignalsBlocked blocked;  // a thread is born with its creator's mask
  try {
    std::vector<std::future<void>> ready;
    for (int i = 0; i < count; ++i) {
      const int part = depth_ / count + (i < depth_ % count ? 1 : 0);
      RingWorker& worker = *workers_.emplace_back(std::make_unique<RingWorker>(*this, part));
      std::promise<void> promise;
      ready.push_back(promise.get_future());
      threads_.emplace_back([&worker](std::promise<void> p) { worker.run(std::move(p)); }, std::move(promise));
      pthread_setname_np(threads_.back().native_handle(), ("kvtier-io-" + std::to_string(i)).c_str());
    }
    for (std::future<void>& each : ready) each.get();
  } catch (...) {
    stop_threads();
    workers_.clear();
    closing_ = false;
    throw;
  }
}

void FileIo::start_threads(int count) {
  const SignalsBlocked blocked;
  try {
    for (int i = 0; i < count; ++i) {
      threads_.emplace_back([this] { run_thread(); });
      pthread_setname_np(threads_.back().native_handle(), ("kvtier-io-" + std::to_string(i)).c_str());
    }
  } catch (...) {
    stop_threads();
    throw;
  }
}

void FileIo::run_thread() noexcept {
  std::unique_lock lock(mutex_);
  for (;;) {
    wakeups_->work.wait(lock, [this] { return can_start() || drained(); });
    if (!can_start()) return;
    Operation operation{take()};
    lock.unlock();
    if (operation.writes()) operation.add_checksum();
    operation.handed_over = Clock::now();
    while (!operation.settled_by(operation.call())) continue;
    lock.lock();
    completed(operation);
    if (!operation.writes() && operation.error == 0) {
      lock.unlock();
      operation.add_checksum();
      lock.lock();
    }
    report(operation);
  }
}

std::uint64_t FileIo::submit(const Transfer& transfer) {
  check(transfer);
  const std::lock_guard lock(mutex_);
  if (closing_) throw std::runtime_error("file I/O is closed");
  if (unfinished_ + finished_.size() >= kMaxOps)
    throw std::runtime_error("queue full: as many transfers as allowed are submitted and not polled");
  queued_[index(transfer.direction)].push_back({last_ticket_ + 1, transfer});
  ++unfinished_;
  if (can_start()) wake_one();
  return ++last_ticket_;
}

bool FileIo::can_start() const {
  const auto [reads, writes] = in_flight_;
  if (reads + writes >= depth_) return false;
  if (!queued_[index(Direction::kRead)].empty()) return true;
  return !queued_[index(Direction::kWrite)].empty() && (reads == 0 || writes < kWritesBesideReads);
}

FileIo::Queued FileIo::take() noexcept {
  const bool has_read = !queued_[index(Direction::kRead)].empty();
  auto& queue = queued_[index(has_read ? Direction::kRead : Direction::kWrite)];
  const Queued next = queue.front();
  queue.pop_front();
  ++in_flight_[index(next.transfer.direction)];
  if (can_start())
    wake_one();
  else if (drained())
    wake_all();  // to go home
  return next;
}

void FileIo::completed(const Operation& done) noexcept {
  --in_flight_[index(done.transfer.direction)];
  if (can_start()) wake_one();
}

void FileIo::report(const Operation& done) noexcept {
  const bool failed = done.error != 0;
  finished_.push_back({done.ticket, done.error, failed ? 0 : done.crc, done.lasted.count()});
  --unfinished_;
  if (finished_.size() == 1) {
    raise_event(event_);
    wakeups_->done.notify_all();
  }
}

// Of the workers that sleep the one with the least to do, since it will compute soonest.
void FileIo::wake_one() noexcept {
  if (workers_.empty()) return wakeups_->work.notify_one();
  const auto most_room = std::max_element(workers_.begin(), workers_.end(), [](const auto& one, const auto& other) {
    return one->room_asleep() < other->room_asleep();
  });
  if ((*most_room)->room_asleep() == 0) return;  // whoever is awake will look
  (*most_room)->forget_sleep();
  (*most_room)->wake();
}

void FileIo::wake_all() noexcept {
  wakeups_->work.notify_all();
  for (const auto& worker : workers_) worker->wake();
}

std::vector<TransferDone> FileIo::poll() {
  const std::lock_guard lock(mutex_);
  std::vector<TransferDone> report(finished_);  // a copy: finished_ keeps the room that it has
  if (!report.empty()) clear_event(event_);
  finished_.clear();
  return report;
}

bool FileIo::wait(std::chrono::duration<double> timeout) {
  const auto seconds = timeout < kForever ? std::max(timeout, timeout.zero()) : kForever;
  const auto limit = std::chrono::duration_cast<Clock::duration>(seconds);
  std::unique_lock lock(mutex_);
  return wakeups_->done.wait_until(lock, Clock::now() + limit, [this] { return !finished_.empty(); });
}

std::size_t FileIo::pending() const {
  const std::lock_guard lock(mutex_);
  return unfinished_;
}

void FileIo::close() {
  std::call_once(closed_, [this] { stop_threads(); });
}

void FileIo::stop_threads() {
  if (forked()) {  // the threads live on in the parent, there is nobody here to join
    static_cast<void>(new std::vector<std::thread>(std::move(threads_)));
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    wake_all();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace kvtier
