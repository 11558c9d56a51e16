// What file_io.cpp and ring_worker.cpp share: an operation on its way, and the thread that has a ring.
#pragma once

#include <errno.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <future>
#include <memory>
#include <optional>
#include <system_error>
#include <vector>

#include "file_io.h"
#include "uring.h"

namespace kvtier {

inline Descriptor new_event() {
  const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  return Descriptor(fd);
}

// Neither can fail: the counter never comes near its end.
inline void raise_event(const Descriptor& event) { static_cast<void>(!eventfd_write(event.get(), 1)); }

inline void clear_event(const Descriptor& event) {
  eventfd_t count;
  static_cast<void>(!eventfd_read(event.get(), &count));
}

// One transfer, from the moment it is taken from the queue.
struct FileIo::Operation : Queued {
  std::uint64_t moved = 0;
  int stalls = 0;
  int error = 0;
  std::uint32_t crc = 0;
  Clock::time_point handed_over{};
  std::chrono::duration<double> lasted{};
  std::unique_ptr<Bounce> bounce{};  // of a write that is coded or encrypted
  std::unique_ptr<Sealer> sealer{};  // of one that is encrypted and not coded: piece by piece, each before the next
  std::uint64_t ready = 0;           // of a write through a bounce: so much is in it, or was
  std::uint64_t counted = 0;         // bytes of a frame
  std::chrono::duration<double> coded{};
  std::string codec{};  // of a frame that was read

  bool writes() const { return transfer.direction == Direction::kWrite; }
  bool encodes() const { return writes() && transfer.is_frame(); }
  bool computes_first() const { return writes() && (transfer.is_frame() || transfer.seal); }
  Ring::Range rest() const;
  std::int64_t call() const;
  bool settled_by(std::int64_t result);
  bool begin(Bounces& bounces) noexcept;         // false: an error
  bool go_on() noexcept;                         // what is to be written next is there; false: an error
  void leave_bounce(Bounces& bounces) noexcept;  // when all is written, or an error
  void finish() noexcept;                        // of what the kernel is done with
  void encode() noexcept;
  void decode() noexcept;
  void unseal() noexcept;
  void add_checksum();
};

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
  void land(std::size_t slot);
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

}  // namespace kvtier
