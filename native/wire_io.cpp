#include "wire_io.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "signals_blocked.h"

namespace kvtier {
namespace {

Descriptor new_event() {
  const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  return Descriptor(fd);
}

Exchange checked(Exchange exchange) {
  if (exchange.fd < 0) throw std::invalid_argument("fd must not be negative");
  if (exchange.message.size() > kMaxPieces || exchange.answer.size() > kMaxPieces)
    throw std::invalid_argument("more than " + std::to_string(kMaxPieces) + " pieces");
  if (!exchange.expected.empty() && (exchange.answer.empty() || exchange.answer[0].size < exchange.expected.size()))
    throw std::invalid_argument("what is expected must fit into the answer's first piece");
  return exchange;
}

}  // namespace

Going::Rest::Rest(const std::vector<Piece>& pieces) {
  for (const Piece& piece : pieces)
    if (piece.size > 0) rest_[count_++] = {reinterpret_cast<void*>(piece.address), piece.size};
}

void Going::Rest::moved(std::size_t bytes) {
  while (bytes > 0) {
    iovec& piece = rest_[first_];
    const std::size_t of_this = std::min(bytes, piece.iov_len);
    piece.iov_base = static_cast<char*>(piece.iov_base) + of_this;
    piece.iov_len -= of_this;
    bytes -= of_this;
    if (piece.iov_len == 0) ++first_;
  }
}

Going::Going(Exchange exchange)
    : exchange_(checked(std::move(exchange))), message_(exchange_.message), answer_(exchange_.answer) {}

bool Going::go(bool patient) {
  while (error_ == 0 && !message_.is_empty())
    if (!send(patient)) return false;
  while (error_ == 0 && !answer_.is_empty() && !is_unexpected())
    if (!receive(patient)) return false;
  return true;
}

bool Going::is_unexpected() const {
  const std::string& expected = exchange_.expected;
  const std::size_t seen = std::min<std::size_t>(received_, expected.size());
  return seen > 0 &&
         std::memcmp(reinterpret_cast<const char*>(exchange_.answer[0].address), expected.data(), seen) != 0;
}

// A call of the kernel has failed. Whether the caller's patience is over.
bool Going::blocked(bool patient, short wanted) {
  if (errno == EINTR) return false;
  if (errno != EAGAIN) {
    error_ = errno;
    return false;
  }
  if (!patient) return true;
  pollfd one{exchange_.fd, wanted, 0};
  if (poll(&one, 1, -1) < 0 && errno != EINTR) error_ = errno;
  return false;
}

bool Going::send(bool patient) {
  msghdr message{};
  message.msg_iov = message_.first();
  message.msg_iovlen = message_.count();
  const ssize_t sent = sendmsg(exchange_.fd, &message, MSG_NOSIGNAL);
  if (sent < 0) return !blocked(patient, POLLOUT);
  message_.moved(static_cast<std::size_t>(sent));
  return patient || message_.is_empty();
}

// What may be unexpected goes into the first piece alone, as it comes; the kernel waits for all the rest at once.
bool Going::receive(bool patient) {
  const bool is_sure = received_ >= exchange_.expected.size();
  msghdr message{};
  message.msg_iov = answer_.first();
  message.msg_iovlen = is_sure ? answer_.count() : 1;
  const ssize_t count = recvmsg(exchange_.fd, &message, is_sure ? MSG_WAITALL : 0);
  if (count < 0) return !blocked(patient, POLLIN);
  if (count == 0) error_ = ECONNRESET;
  answer_.moved(static_cast<std::size_t>(count));
  received_ += static_cast<std::uint64_t>(count);
  return patient || !is_sure || answer_.is_empty() || error_ != 0;
}

WireIo::WireIo(int threads)
    : most_threads_(threads), owner_(getpid()), event_(new_event()), wakeups_(std::make_unique<Wakeups>()) {
  if (threads < 1 || threads > kMaxWireThreads)
    throw std::invalid_argument("threads must be 1 to " + std::to_string(kMaxWireThreads));
}

WireIo::~WireIo() {
  close();
  // To destroy a condition variable is to wait for its sleepers, and a forked child remembers some that it hasn't got.
  if (forked()) static_cast<void>(wakeups_.release());
}

bool WireIo::forked() const { return getpid() != owner_; }

ExchangeDone WireIo::try_here(Exchange exchange) {
  Going going(std::move(exchange));
  if (going.go(false)) return going.done(0);
  return {queue(std::move(going)), 0, 0};
}

std::uint64_t WireIo::queue(Going going) {
  std::uint64_t ticket = 0;
  {
    const std::lock_guard lock(mutex_);
    if (closing_) throw std::runtime_error("wire I/O is closed");
    if (queued_.size() >= idle_ && threads_.size() < static_cast<std::size_t>(most_threads_)) begin_thread();
    ticket = ++last_ticket_;
    queued_.emplace_back(ticket, std::move(going));
  }
  wakeups_->work.notify_one();
  return ticket;
}

void WireIo::begin_thread() {
  const SignalsBlocked blocked;
  threads_.emplace_back([this] { run_thread(); });
  pthread_setname_np(threads_.back().native_handle(), "kvtier-wire");
  ++idle_;
}

void WireIo::run_thread() noexcept {
  std::unique_lock lock(mutex_);
  for (;;) {
    wakeups_->work.wait(lock, [this] { return closing_ || !queued_.empty(); });
    if (queued_.empty()) return;
    auto [ticket, going] = std::move(queued_.front());
    queued_.pop_front();
    running_[ticket] = {going.fd(), false};
    --idle_;
    lock.unlock();
    going.go(true);
    lock.lock();
    ++idle_;
    const bool cancelled = running_[ticket].cancelled;
    running_.erase(ticket);
    if (cancelled) {
      wakeups_->ended.notify_all();
      continue;
    }
    finished_.push_back(going.done(ticket));
    if (finished_.size() == 1) static_cast<void>(!eventfd_write(event_.get(), 1));
  }
}

std::vector<ExchangeDone> WireIo::poll() {
  const std::lock_guard lock(mutex_);
  eventfd_t count;
  if (!finished_.empty()) static_cast<void>(!eventfd_read(event_.get(), &count));
  return std::exchange(finished_, {});
}

void WireIo::cancel(std::uint64_t ticket) {
  std::unique_lock lock(mutex_);
  std::erase_if(queued_, [ticket](const auto& one) { return one.first == ticket; });
  if (std::erase_if(finished_, [ticket](const ExchangeDone& one) { return one.ticket == ticket; }) != 0 &&
      finished_.empty()) {
    eventfd_t count;
    static_cast<void>(!eventfd_read(event_.get(), &count));
  }
  const auto running = running_.find(ticket);
  if (running == running_.end()) return;
  running->second.cancelled = true;
  shutdown(running->second.fd, SHUT_RDWR);
  wakeups_->ended.wait(lock, [this, ticket] { return !running_.contains(ticket); });
}

void WireIo::close() {
  if (forked()) {  // the threads live on in the parent; there is nobody here to join
    static_cast<void>(new std::vector<std::thread>(std::move(threads_)));
    return;
  }
  std::vector<std::thread> threads;
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    queued_.clear();
    for (auto& [ticket, running] : running_) {
      running.cancelled = true;
      shutdown(running.fd, SHUT_RDWR);
    }
    threads = std::exchange(threads_, {});
    wakeups_->work.notify_all();
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace kvtier
