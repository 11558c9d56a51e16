// Whole ranges between open files and memory, with their checksums, coded or encrypted, on threads of its own.
#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "aead.h"
#include "arena.h"
#include "bounce.h"
#include "codec.h"

namespace kvtier {

inline constexpr std::size_t kMaxOps = 4096;
inline constexpr int kMaxDepth = 128;
inline constexpr int kMaxIoThreads = 16;
inline constexpr int kWritesBesideReads = 2;  // somebody waits for a read, nobody for a write

enum class Direction : unsigned char { kRead, kWrite };

struct Transfer {
  Direction direction;
  int fd;
  std::uint64_t offset;  // in the file
  std::uint64_t address;
  std::uint64_t size;  // in memory
  std::uint32_t seed;  // the checksum goes on from here
  std::shared_ptr<Seal> seal = nullptr;  // what is in the file is encrypted with it
  std::shared_ptr<const Codec> codec = nullptr;  // of a write: what makes the frame
  std::uint64_t stored = 0;  // in the file; less than `size`: a frame lies there. 0: as in memory

  std::uint64_t placed() const { return stored == 0 ? size : stored; }
  bool is_frame() const { return placed() < size; }
};

struct TransferDone {
  std::uint64_t ticket;
  int error;             // 0, or an errno
  std::uint32_t crc;     // 0 after an error, and of what is encrypted
  double seconds;        // from the hand-over to the kernel to the completion: neither queue nor checksum are in it
  std::uint64_t stored;  // of a frame: its bytes that count
  double coded_s;        // to make the frame or to decode it, by the clock: others may have the processors meanwhile
  std::string codec;     // of a frame that was read, or is unknown here: who made it
};

// The contract:
//
// * submit() queues one transfer and returns its ticket: 1, 2, 3 ... It never waits for I/O. It refuses when kMaxOps
//   transfers are submitted and not polled.
// * The checksum of a read is that of the memory after it, of a write that of the memory before it.
// * With a seal there is no checksum. A write leaves the memory as it is, and the seal has the tag when it is reported. A
//   read whose bytes don't fit to the tag is EBADMSG, the seal then says that they are forged, and the memory is zeros.
// * Of a frame the checksum is the frame's. It is made in memory of its own, sealed there if it is, and written; it is
//   read to the beginning of the memory, opened and decoded there. A write whose frame doesn't fit into `stored` bytes is
//   EFBIG, and nothing is written; a read of what is no frame of `size` bytes EBADMSG. One that is whole, and by a codec
//   that isn't known or can't be used here, is ENOTSUP: then the block is where it was, for whoever knows it.
// * Memory that is short is ENOMEM, of this transfer alone.
// * A transfer is whole or has an error. What the kernel cuts short is continued; EINTR and EAGAIN are tried again.
//   A file that ends within a read is EIO, a write that moves nothing ENOSPC.
// * Reads are started before writes, each in their order. As long as a read is queued or in flight, at most
//   kWritesBesideReads writes are in flight; otherwise up to `depth` transfers are. Completions have no order.
// * Frames are made one at a time, however many threads there are, so that a read never waits for all of them.
// * Each is reported by exactly one poll(). While there is something to poll, event_fd() can be read.
// * There is no cancellation: descriptor and memory belong to the transfer until it is reported.
// * close() refuses new transfers, finishes all others and stops the threads. It may be called again; poll(), wait()
//   and pending() still work afterwards.
// * Every verb may be called from any thread, but not in a forked child, which can only destroy it.
class FileIo {
 public:
  // backend: "io_uring", "threads", or "auto": io_uring where the kernel allows it. With io_uring each of `threads`
  // threads has a ring and its part of `depth`; without it there are as many threads as it takes for `depth`.
  // std::invalid_argument, std::system_error.
  FileIo(int depth, int threads, const std::string& backend);
  ~FileIo();
  FileIo(const FileIo&) = delete;
  FileIo& operator=(const FileIo&) = delete;

  const char* backend() const { return workers_.empty() ? "threads" : "io_uring"; }
  const std::string& fallback() const { return fallback_; }  // why it is not io_uring, if that was wanted

  std::uint64_t submit(const Transfer& transfer);  // std::invalid_argument, std::runtime_error: full or closed
  std::vector<TransferDone> poll();
  bool wait(std::chrono::duration<double> timeout);  // whether there is something to poll
  std::size_t pending() const;                       // submitted and not finished
  int event_fd() const { return event_.get(); }
  void close();

 private:
  struct Queued {
    std::uint64_t ticket;
    Transfer transfer;
  };
  struct Operation;
  class RingWorker;
  using Clock = std::chrono::steady_clock;

  void start_rings(int count);
  void start_threads(int count);
  void encoded() noexcept;  // a frame was made, or can't be
  void stop_threads();
  bool forked() const;
  void run_thread() noexcept;  // one thread's life without io_uring

  // With the mutex held:
  bool can_start() const;
  bool drained() const { return queued_[0].empty() && queued_[1].empty() && closing_; }
  Queued take() noexcept;                          // the next to start
  void completed(const Operation& done) noexcept;  // by the kernel; the checksum may be missing
  bool report(const Operation& done) noexcept;     // finished; whether nothing is left to do
  void wake_one() noexcept;
  void wake_all() noexcept;

  struct Wakeups {
    std::condition_variable work;
    std::condition_variable done;
  };

  const int depth_;
  const int owner_;  // the process that has the threads: a forked child has only their names
  Descriptor event_;
  std::string fallback_;
  std::unique_ptr<Wakeups> wakeups_;
  Bounces bounces_;  // of all threads

  mutable std::mutex mutex_;  // guards everything down to `closing_`; never held during I/O or checksums
  std::array<std::deque<Queued>, 2> queued_;  // by direction
  std::array<int, 2> in_flight_{};
  bool encoding_ = false;  // a frame is being made; by one thread at a time, so that a read never waits for all of them
  std::vector<TransferDone> finished_;  // until the next poll; has room for all that may be submitted
  std::size_t unfinished_ = 0;
  std::uint64_t last_ticket_ = 0;
  bool closing_ = false;

  std::once_flag closed_;
  std::vector<std::unique_ptr<RingWorker>> workers_;  // none without io_uring
  std::vector<std::thread> threads_;
};

}  // namespace kvtier
