#include "file_io.h"

#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <future>
#include <limits>
#include <optional>
#include <stdexcept>
#include <system_error>

#include "crc32c.h"
#include "ring_worker.h"
#include "signals_blocked.h"

namespace kvtier {
namespace {

constexpr std::uint32_t kLargestRequest = std::uint32_t{1} << 30;  // the kernel cuts off at 2 GiB less a page
constexpr int kMaxStalls = 1000;  // EINTR or EAGAIN in a row: whoever goes on after that is never done
constexpr std::chrono::duration<double> kForever = std::chrono::hours(24 * 365);

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
  if (transfer.seal && transfer.size > kSealedBytesMax) throw std::invalid_argument("more than can be sealed at once");
  if (transfer.address == 0) throw std::invalid_argument("address must not be 0");
  if (transfer.size > most || transfer.offset > most - transfer.size || transfer.address > most - transfer.size)
    throw std::invalid_argument("the range is larger than any file or memory");
}

std::size_t index(Direction direction) { return static_cast<std::size_t>(direction); }

}  // namespace

// What the kernel is to do next.
Ring::Range FileIo::Operation::rest() const {
  const std::uint64_t end = bounce ? ready : transfer.size;
  const auto size = static_cast<std::uint32_t>(std::min<std::uint64_t>(end - moved, kLargestRequest));
  const std::uint64_t address = bounce ? reinterpret_cast<std::uint64_t>(bounce->bytes) + moved % Bounce::kBytes
                                       : transfer.address + moved;
  return {transfer.offset + moved, address, size};
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
  lasted += Clock::now() - handed_over;
  return true;
}

bool FileIo::Operation::begin(std::unique_ptr<Bounce>& spare) noexcept {
  if (writes() && transfer.seal) {
    try {
      bounce = spare ? std::move(spare) : std::make_unique<Bounce>(transfer.seal->crypto);
    } catch (const std::bad_alloc&) {
      error = ENOMEM;
      return false;
    }
    if (!bounce->sealer.begin(*transfer.seal, true)) error = ENOMEM;
    if (error != 0 || !go_on()) return false;
  } else if (writes()) {
    add_checksum();
  }
  handed_over = Clock::now();
  return true;
}

bool FileIo::Operation::go_on() noexcept {
  if (!bounce || moved < ready) return true;
  if (moved > 0) lasted += Clock::now() - handed_over;
  const std::uint64_t size = std::min<std::uint64_t>(transfer.size - moved, Bounce::kBytes);
  ready = moved + size;
  const auto* const from = reinterpret_cast<const std::uint8_t*>(transfer.address + moved);
  const bool good = bounce->sealer.update(from, bounce->bytes, size) &&
                    (ready < transfer.size || bounce->sealer.end(*transfer.seal));
  if (!good) error = ENOMEM;
  handed_over = Clock::now();
  return good;
}

std::unique_ptr<Bounce> FileIo::Operation::leave_bounce() noexcept {
  bounce->sealer.drop();
  return std::move(bounce);
}

void FileIo::Operation::finish() noexcept {
  if (writes() || error != 0) return;
  transfer.seal ? unseal() : add_checksum();
}

// In place: nobody else has this memory yet.
void FileIo::Operation::unseal() noexcept {
  auto* const bytes = reinterpret_cast<std::uint8_t*>(transfer.address);
  try {
    Sealer sealer(transfer.seal->crypto);
    if (!sealer.whole(*transfer.seal, false, bytes, bytes, transfer.size))
      error = transfer.seal->is_forged ? EBADMSG : ENOMEM;
  } catch (const std::bad_alloc&) {
    error = ENOMEM;
  }
}

void FileIo::Operation::add_checksum() {
  crc = crc32c(reinterpret_cast<const void*>(transfer.address), transfer.size, transfer.seed);
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
  std::unique_ptr<Bounce> spare;
  std::unique_lock lock(mutex_);
  for (;;) {
    wakeups_->work.wait(lock, [this] { return can_start() || drained(); });
    if (!can_start()) return;
    Operation operation{take()};
    lock.unlock();
    if (operation.begin(spare))
      while (!operation.settled_by(operation.call()) && operation.go_on()) continue;
    lock.lock();
    completed(operation);
    lock.unlock();
    operation.finish();
    if (operation.bounce) spare = operation.leave_bounce();
    lock.lock();
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
