#include "uring.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <system_error>

// Headers may be older than the kernel.
#ifndef IORING_SETUP_COOP_TASKRUN
#define IORING_SETUP_COOP_TASKRUN (1U << 8)
#endif
#ifndef IORING_SETUP_TASKRUN_FLAG
#define IORING_SETUP_TASKRUN_FLAG (1U << 9)
#define IORING_SQ_TASKRUN (1U << 2)
#endif
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif

namespace kvtier {
namespace {

// Completions are posted when the thread enters the kernel anyway instead of interrupting its checksums, and a flag
// tells when some wait for that. Linux 6.0; it works without, a little slower.
constexpr unsigned kWishes = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;

// One mapping for both rings, no completion ever lost, and (by the version that brought the last one, Linux 5.6) reads
// and writes without an iovec.
constexpr unsigned kNeeds = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_RW_CUR_POS;

[[noreturn]] void fail(int error, const char* what) { throw std::system_error(error, std::generic_category(), what); }

int setup(unsigned entries, unsigned flags, io_uring_params& parameters) {
  parameters = {};
  parameters.flags = IORING_SETUP_CLAMP | flags;
  return static_cast<int>(syscall(SYS_io_uring_setup, entries, &parameters));
}

unsigned load(const unsigned* shared) { return __atomic_load_n(shared, __ATOMIC_ACQUIRE); }
void store(unsigned* shared, unsigned value) { __atomic_store_n(shared, value, __ATOMIC_RELEASE); }

}  // namespace

Ring::Region::~Region() {
  if (address != nullptr) munmap(address, size);
}

void Ring::Region::map(int fd, std::size_t bytes, std::uint64_t offset) {
  void* const mapped =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, static_cast<off_t>(offset));
  if (mapped == MAP_FAILED) fail(errno, "io_uring: mmap");
  address = static_cast<std::byte*>(mapped);
  size = bytes;
}

Ring::Ring(unsigned entries) {
  io_uring_params p;
  int fd = setup(entries, kWishes, p);
  if (fd < 0 && errno == EINVAL) fd = setup(entries, 0, p);
  if (fd < 0) fail(errno, "io_uring_setup");
  fd_ = Descriptor(fd);
  if ((p.features & kNeeds) != kNeeds) fail(ENOSYS, "io_uring: this kernel's is too old");

  const std::size_t requests_end = p.sq_off.array + p.sq_entries * sizeof(unsigned);
  const std::size_t completions_end = p.cq_off.cqes + p.cq_entries * sizeof(io_uring_cqe);
  rings_.map(fd, std::max(requests_end, completions_end), IORING_OFF_SQ_RING);
  entries_.map(fd, p.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES);
  request_tail_ = rings_.at<unsigned>(p.sq_off.tail);
  request_flags_ = rings_.at<unsigned>(p.sq_off.flags);
  request_mask_ = *rings_.at<unsigned>(p.sq_off.ring_mask);
  completion_head_ = rings_.at<unsigned>(p.cq_off.head);
  completion_tail_ = rings_.at<unsigned>(p.cq_off.tail);
  completion_mask_ = *rings_.at<unsigned>(p.cq_off.ring_mask);
  completions_ = rings_.at<io_uring_cqe>(p.cq_off.cqes);
  // Requests could be handed over in another order than that of their entries; here the two are one.
  auto* const order = rings_.at<unsigned>(p.sq_off.array);
  std::iota(order, order + p.sq_entries, 0U);
}

io_uring_sqe& Ring::prepare(std::uint64_t tag) {
  io_uring_sqe& entry = entries_.at<io_uring_sqe>(0)[tail_++ & request_mask_];
  ++prepared_;
  entry = {};
  entry.user_data = tag;
  return entry;
}

void Ring::transfer(unsigned char opcode, int fd, const Range& range, std::uint64_t tag) {
  io_uring_sqe& entry = prepare(tag);
  entry.opcode = opcode;
  entry.fd = fd;
  entry.off = range.offset;
  entry.addr = range.address;
  entry.len = range.size;
}

void Ring::read(int fd, const Range& range, std::uint64_t tag) { transfer(IORING_OP_READ, fd, range, tag); }

void Ring::write(int fd, const Range& range, std::uint64_t tag) { transfer(IORING_OP_WRITE, fd, range, tag); }

void Ring::poll_readable(int fd, std::uint64_t tag) {
  io_uring_sqe& entry = prepare(tag);
  entry.opcode = IORING_OP_POLL_ADD;
  entry.fd = fd;
  entry.poll32_events = POLLIN;
}

int Ring::call(unsigned submit, unsigned least, unsigned flags) {
  return static_cast<int>(syscall(SYS_io_uring_enter, fd_.get(), submit, least, flags, nullptr, 0));
}

int Ring::enter(bool wait) {
  store(request_tail_, tail_);
  do {  // the kernel stops after a request that it refuses, which completes with an error, and has not waited then
    const int taken = call(prepared_, wait ? 1 : 0, wait ? IORING_ENTER_GETEVENTS : 0);
    if (taken >= 0)
      prepared_ -= static_cast<unsigned>(taken);
    else if (errno != EINTR)
      return errno;
    else if (wait)
      return 0;
  } while (prepared_ > 0);
  return 0;
}

std::optional<Ring::Completion> Ring::next() {
  const unsigned head = *completion_head_;
  if (head == load(completion_tail_)) {
    if ((load(request_flags_) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) == 0) return {};
    call(0, 0, IORING_ENTER_GETEVENTS);
    if (head == load(completion_tail_)) return {};
  }
  const io_uring_cqe& entry = completions_[head & completion_mask_];
  const Completion completion{entry.user_data, entry.res};
  store(completion_head_, head + 1);
  return completion;
}

}  // namespace kvtier
