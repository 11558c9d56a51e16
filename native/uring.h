// One io_uring, as far as whole transfers need it: plain system calls, since liburing isn't everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "arena.h"

struct io_uring_sqe;
struct io_uring_cqe;

namespace kvtier {

// Belongs to the thread that made it: no other may call anything. With more than `entries` requests prepared or in
// flight it would overwrite some; the caller counts.
class Ring {
 public:
  struct Completion {
    std::uint64_t tag;
    std::int32_t result;  // bytes moved (or events), or a negated errno
  };

  struct Range {
    std::uint64_t offset;
    std::uint64_t address;
    std::uint32_t size;
  };

  // Throws std::system_error: the kernel has no io_uring (ENOSYS), forbids it (EPERM) or can't give the memory for it.
  explicit Ring(unsigned entries);
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // Each prepares one request; enter() hands it over. `tag` comes back with its completion.
  void read(int fd, const Range& range, std::uint64_t tag);
  void write(int fd, const Range& range, std::uint64_t tag);
  void poll_readable(int fd, std::uint64_t tag);  // completes once, when `fd` can be read

  // Hands over all that is prepared and, if asked, waits for a completion. 0, or an errno: what could not be handed
  // over (EAGAIN: memory is short; EBUSY: take completions first) stays prepared. A signal ends the wait with 0.
  int enter(bool wait);

  std::optional<Completion> next();  // never waits

 private:
  io_uring_sqe& prepare(std::uint64_t tag);
  void transfer(unsigned char opcode, int fd, const Range& range, std::uint64_t tag);
  int call(unsigned submit, unsigned least, unsigned flags);

  struct Region {
    Region() = default;
    ~Region();
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;
    void map(int fd, std::size_t bytes, std::uint64_t offset);
    template <typename T>
    T* at(std::size_t offset) const {
      return reinterpret_cast<T*>(address + offset);
    }
    std::byte* address = nullptr;
    std::size_t size = 0;
  };

  Descriptor fd_;
  Region rings_;
  Region entries_;

  // The kernel moves the heads of the requests and the tails of the completions, this class the other ends.
  unsigned* request_tail_;
  unsigned* request_flags_;
  unsigned* completion_head_;
  unsigned* completion_tail_;
  const io_uring_cqe* completions_;
  unsigned request_mask_;
  unsigned completion_mask_;
  unsigned tail_ = 0;      // of the requests, those included that the kernel hasn't been told of
  unsigned prepared_ = 0;  // and not handed over
};

}  // namespace kvtier
