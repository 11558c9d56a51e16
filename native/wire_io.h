// Exchanges with sockets, on threads of its own: a message is sent whole, and an answer received to where it belongs.
#pragma once

#include <sys/uio.h>

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "arena.h"

namespace kvtier {

inline constexpr int kMaxWireThreads = 64;
inline constexpr std::size_t kMaxPieces = 8;  // of memory, each way

struct Piece {
  std::uint64_t address;
  std::uint64_t size;
};

struct Exchange {
  int fd;
  std::vector<Piece> message;
  std::vector<Piece> answer;
  std::string expected;  // how the answer begins, within its first piece. One that begins otherwise is not read on
};

struct ExchangeDone {
  std::uint64_t ticket;    // 0: it was over before it was queued
  int error;               // 0, or an errno; ECONNRESET also where the other end only closed
  std::uint64_t received;  // bytes. Less than all, without an error: the answer began with something else
};

// One exchange on its way: what of it is still to come.
class Going {
 public:
  explicit Going(Exchange exchange);  // std::invalid_argument

  // Sends and receives until it is over: true. Without patience also until a call of the kernel waited for as long as the
  // socket's own time limits say: false, and it goes on where it was.
  bool go(bool patient);

  int fd() const { return exchange_.fd; }
  ExchangeDone done(std::uint64_t ticket) const { return {ticket, error_, received_}; }

 private:
  class Rest {
   public:
    explicit Rest(const std::vector<Piece>& pieces);
    bool is_empty() const { return first_ == count_; }
    iovec* first() { return rest_.data() + first_; }
    std::size_t count() const { return count_ - first_; }
    void moved(std::size_t bytes);

   private:
    std::array<iovec, kMaxPieces> rest_{};
    std::size_t first_ = 0, count_ = 0;
  };

  bool is_unexpected() const;
  bool blocked(bool patient, short wanted);
  bool send(bool patient);
  bool receive(bool patient);

  Exchange exchange_;
  Rest message_, answer_;
  std::uint64_t received_ = 0;
  int error_ = 0;
};

// The contract:
//
// * submit() queues one exchange and returns its ticket: 1, 2, 3 ... It waits for nobody. They begin in their order, as
//   many at once as there are threads; a thread is begun when it is first needed.
// * try_here() begins one in the caller's thread. What isn't over within the socket's own time limits (SO_SNDTIMEO and
//   SO_RCVTIMEO, at most thrice) is queued as by submit().
// * The message is sent whole before the answer is looked at. Then the answer's pieces are filled in their order. Of one
//   that begins otherwise than expected no byte behind its first piece is received.
// * Each is reported by exactly one poll(). While there is something to poll, event_fd() can be read.
// * Descriptor and memory belong to the exchange until it is reported, or cancelled.
// * cancel() shuts the socket down, and returns when nothing of the exchange is touched any more. No poll() reports it. A
//   ticket that is unknown, or was reported, is nothing.
// * close() cancels all there is, refuses new ones and stops the threads. It may be called again.
// * Every verb may be called from any thread, but not in a forked child, which can only destroy it.
class WireIo {
 public:
  explicit WireIo(int threads);  // at most. std::invalid_argument, std::system_error
  ~WireIo();
  WireIo(const WireIo&) = delete;
  WireIo& operator=(const WireIo&) = delete;

  // std::invalid_argument, std::runtime_error: closed; std::system_error
  std::uint64_t submit(Exchange exchange) { return queue(Going(std::move(exchange))); }
  ExchangeDone try_here(Exchange exchange);
  std::vector<ExchangeDone> poll();
  void cancel(std::uint64_t ticket);
  int event_fd() const { return event_.get(); }
  void close();

 private:
  struct Running {
    int fd;
    bool cancelled;
  };

  struct Wakeups {
    std::condition_variable work;
    std::condition_variable ended;
  };

  bool forked() const;
  std::uint64_t queue(Going going);
  void run_thread() noexcept;
  void begin_thread();

  const int most_threads_;
  const int owner_;  // the process that has the threads
  Descriptor event_;
  std::unique_ptr<Wakeups> wakeups_;

  std::mutex mutex_;  // guards what follows; never held during I/O
  std::deque<std::pair<std::uint64_t, Going>> queued_;
  std::unordered_map<std::uint64_t, Running> running_;
  std::vector<ExchangeDone> finished_;
  std::uint64_t last_ticket_ = 0;
  std::size_t idle_ = 0;
  bool closing_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace kvtier
