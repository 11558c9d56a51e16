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
  if (transfer.stored > transfer.size) throw std::invalid_argument("stored must not be more than size");
  if (transfer.codec && !transfer.is_frame()) throw std::invalid_argument("what a codec makes must be less than it was");
  if (transfer.direction == Direction::kWrite && transfer.is_frame() && !transfer.codec)
    throw std::invalid_argument("a frame is written by a codec");
  if (transfer.seal && transfer.size > kSealedBytesMax) throw std::invalid_argument("more than can be sealed at once");
  if (transfer.address == 0) throw std::invalid_argument("address must not be 0");
  if (transfer.size > most || transfer.offset > most - transfer.size || transfer.address > most - transfer.size)
    throw std::invalid_argument("the range is larger than any file or memory");
}

std::size_t index(Direction direction) { return static_cast<std::size_t>(direction); }

std::uint8_t* memory_at(std::uint64_t address) { return reinterpret_cast<std::uint8_t*>(address); }

int error_of(Decoded found) {
  switch (found) {
    case Decoded::kGood: return 0;
    case Decoded::kDamaged: return EBADMSG;
    case Decoded::kUnknown: return ENOTSUP;
    case Decoded::kShort: return ENOMEM;
  }
  return EBADMSG;
}

}  // namespace

// What the kernel is to do next.
Ring::Range FileIo::Operation::rest() const {
  const std::uint64_t end = bounce ? ready : transfer.placed();
  const auto size = static_cast<std::uint32_t>(std::min<std::uint64_t>(end - moved, kLargestRequest));
  const std::uint64_t in_bounce = sealer ? moved % Bounce::kPage : moved;
  const std::uint64_t address =
      bounce ? reinterpret_cast<std::uint64_t>(bounce->bytes()) + in_bounce : transfer.address + moved;
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
    if (moved < transfer.placed()) return false;
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

bool FileIo::Operation::begin(Bounces& bounces) noexcept {
  try {
    if (computes_first()) bounce = bounces.take(transfer.is_frame() ? transfer.placed() : Bounce::kPage);
    if (computes_first() && transfer.seal) sealer = std::make_unique<Sealer>(transfer.seal->crypto);
  } catch (const std::bad_alloc&) {
    error = ENOMEM;
    return false;
  }
  if (writes() && transfer.is_frame()) {
    encode();
  } else if (sealer) {
    if (!sealer->begin(*transfer.seal, true)) error = ENOMEM;
    if (error == 0) go_on();
  } else if (writes()) {
    add_checksum();
  }
  handed_over = Clock::now();
  return error == 0;
}

// The whole of it at once: what it takes is known when it is there, and nothing is to be written that doesn't fit.
void FileIo::Operation::encode() noexcept {
  const auto begun = Clock::now();
  const auto made = transfer.codec->encode(memory_at(transfer.address), transfer.size, bounce->bytes(), transfer.stored,
                                           transfer.seed, true);
  coded = Clock::now() - begun;
  if (!made) {
    error = EFBIG;
    return;
  }
  counted = made->stored;
  crc = made->checksum;
  ready = transfer.stored;
  if (!sealer) return;
  if (!sealer->whole(*transfer.seal, true, bounce->bytes(), bounce->bytes(), ready)) error = ENOMEM;
  sealer.reset();
  crc = 0;
}

bool FileIo::Operation::go_on() noexcept {
  if (!sealer || moved < ready) return true;
  if (moved > 0) lasted += Clock::now() - handed_over;
  const std::uint64_t size = std::min<std::uint64_t>(transfer.size - moved, Bounce::kPage);
  ready = moved + size;
  const bool good = sealer->update(memory_at(transfer.address + moved), bounce->bytes(), size) &&
                    (ready < transfer.size || sealer->end(*transfer.seal));
  if (!good) error = ENOMEM;
  handed_over = Clock::now();
  return good;
}

void FileIo::Operation::leave_bounce(Bounces& bounces) noexcept {
  if (sealer) sealer->drop();
  sealer.reset();
  if (bounce) bounces.give_back(std::move(bounce));
}

void FileIo::Operation::finish() noexcept {
  if (writes() || error != 0) return;
  if (transfer.seal) unseal();
  if (error != 0) return;
  if (transfer.is_frame())
    decode();
  else if (!transfer.seal)
    add_checksum();
}

// In place: nobody else has this memory yet.
void FileIo::Operation::unseal() noexcept {
  auto* const bytes = memory_at(transfer.address);
  try {
    Sealer opener(transfer.seal->crypto);
    if (!opener.whole(*transfer.seal, false, bytes, bytes, transfer.placed()))
      error = transfer.seal->is_forged ? EBADMSG : ENOMEM;
  } catch (const std::bad_alloc&) {
    error = ENOMEM;
  }
}

void FileIo::Operation::decode() noexcept {
  auto* const bytes = memory_at(transfer.address);
  if (const auto facts = frame_facts(bytes, transfer.stored)) {  // while it is there
    counted = facts->stored;
    codec = facts->codec;
  }
  const auto begun = Clock::now();
  const Decoded found = kvtier::decode(bytes, transfer.stored, bytes, transfer.size, transfer.seed, crc);
  coded = Clock::now() - begun;
  error = error_of(found);
  if (transfer.seal) crc = 0;
}

void FileIo::Operation::add_checksum() {
  crc = crc32c(memory_at(transfer.address), transfer.size, transfer.seed);
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
    const bool begun = operation.begin(bounces_);
    if (operation.encodes()) encoded();
    if (begun)
      while (!operation.settled_by(operation.call()) && operation.go_on()) continue;
    lock.lock();
    completed(operation);
    lock.unlock();
    operation.finish();
    operation.leave_bounce(bounces_);
    lock.lock();
    if (!report(operation)) continue;
    lock.unlock();
    bounces_.drop();
    lock.lock();
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
  const auto& waiting = queued_[index(Direction::kWrite)];
  if (waiting.empty() || (encoding_ && waiting.front().transfer.is_frame())) return false;
  return reads == 0 || writes < kWritesBesideReads;
}

FileIo::Queued FileIo::take() noexcept {
  const bool has_read = !queued_[index(Direction::kRead)].empty();
  auto& queue = queued_[index(has_read ? Direction::kRead : Direction::kWrite)];
  const Queued next = queue.front();
  queue.pop_front();
  ++in_flight_[index(next.transfer.direction)];
  if (next.transfer.direction == Direction::kWrite && next.transfer.is_frame()) encoding_ = true;
  if (can_start())
    wake_one();
  else if (drained())
    wake_all();  // to go home
  return next;
}

void FileIo::encoded() noexcept {
  const std::lock_guard lock(mutex_);
  encoding_ = false;
  if (can_start()) wake_one();
}

void FileIo::completed(const Operation& done) noexcept {
  --in_flight_[index(done.transfer.direction)];
  if (can_start()) wake_one();
}

bool FileIo::report(const Operation& done) noexcept {
  const bool failed = done.error != 0;
  finished_.push_back({done.ticket, done.error, failed ? 0 : done.crc, done.lasted.count(), failed ? 0 : done.counted,
                       done.coded.count(), failed && done.error != ENOTSUP ? std::string() : done.codec});
  --unfinished_;
  if (finished_.size() == 1) {
    raise_event(event_);
    wakeups_->done.notify_all();
  }
  return unfinished_ == 0;
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
