#include "ring_worker.h"

#include <limits>
#include <mutex>
#include <thread>

namespace kvtier {
namespace {

constexpr std::uint64_t kWakeTag = std::numeric_limits<std::uint64_t>::max();
constexpr auto kShortage = std::chrono::milliseconds(1);  // until the kernel is asked again

}  // namespace

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
    if (!operation.settled_by(completion->result) && operation.go_on())
      hand_over(completion->tag);
    else
      land(completion->tag);
  }
}

void FileIo::RingWorker::land(std::size_t slot) {
  Operation& operation = operations_[slot];
  operation.leave_bounce(io_.bounces_);
  landed_.push_back(slot);
  const std::lock_guard lock(io_.mutex_);
  io_.completed(operation);
}

void FileIo::RingWorker::start_more() {
  while (room() > 0) {
    Operation* operation;
    {
      const std::lock_guard lock(io_.mutex_);
      if (!io_.can_start()) return;
      operation = &operations_[free_.back()];
      *operation = Operation{io_.take()};
    }
    const std::size_t slot = free_.back();
    free_.pop_back();
    const bool begun = operation->begin(io_.bounces_);
    if (operation->encodes()) io_.encoded();
    begun ? hand_over(slot) : land(slot);
    if (operation->computes_first()) return;  // that took its time: whoever waits for a read comes next
  }
}

// One only: then it is time to look for completions and to start more.
bool FileIo::RingWorker::finish_one() {
  if (landed_.empty()) return false;
  const std::size_t slot = landed_.front();
  Operation& operation = operations_[slot];
  operation.finish();
  bool is_idle;
  {
    const std::lock_guard lock(io_.mutex_);
    is_idle = io_.report(operation);
  }
  if (is_idle) io_.bounces_.drop();
  operation.transfer.seal.reset();  // and with the last of those who have it goes the key
  operation.transfer.codec.reset();
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

}  // namespace kvtier
