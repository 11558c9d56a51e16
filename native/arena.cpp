#include "arena.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>

#include "procfs.h"

// Newer than the headers of some build machines (manylinux); the kernel answers EINVAL where it lacks them.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif

namespace kvtier {
namespace {

constexpr int kPreferred = 1;        // MPOL_PREFERRED: this node while it has room, then the others
constexpr int kNumaNodesMax = 1024;  // as the kernel's
constexpr std::size_t kPopulatePiece = std::size_t{16} << 20;
constexpr unsigned kPopulateThreads = 8;  // no processor takes memory as fast as several, least of all a virtual one
constexpr std::size_t kSmallPage = 4096;
constexpr int kCollapseTries = 3;  // a long-running machine is fragmented: after this many failures, stop paying for it

std::system_error os_error(const std::string& what) { return {errno, std::generic_category(), what}; }

std::string gib(std::uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f GiB", static_cast<double>(bytes) / (1u << 30));
  return text;
}

std::size_t checked_size(std::int64_t size) {
  if (size <= 0 || size % static_cast<std::int64_t>(kHugePage) != 0)
    throw std::invalid_argument("arena size must be a positive multiple of 2 MiB, not " + std::to_string(size));
  return static_cast<std::size_t>(size);
}

// madvise over a range, carried on where the kernel says "again". 0, or the errno of the failure.
int advise(std::byte* address, std::size_t size, int advice) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (madvise(address, size, advice) == 0) return 0;
    if (errno != EAGAIN && errno != EINTR) break;
  }
  return errno;
}

// Kernels before 5.14 have no MADV_POPULATE_WRITE: a write to each page does the same, though it is killed, not told,
// when memory runs out. It changes no byte, and loses none that somebody writes beside it: the arena may be in use.
int populate_write(std::byte* address, std::size_t size) {
  const int failure = advise(address, size, MADV_POPULATE_WRITE);
  if (failure != EINVAL) return failure;
  for (std::size_t at = 0; at < size; at += kSmallPage)
    __atomic_fetch_or(reinterpret_cast<unsigned char*>(address + at), 0, __ATOMIC_RELAXED);
  return 0;
}

// A collapse needs something to collapse: one small page in each 2 MiB is enough, and the kernel clears the rest as
// part of one large page. That is ten times cheaper than to fault 512 small pages in and copy them together.
int collapse(std::byte* address, std::size_t size) {
  for (std::size_t at = 0; at < size; at += kHugePage)
    if (const int failure = populate_write(address + at, kSmallPage)) return failure;
  return advise(address, size, MADV_COLLAPSE);
}

// That this process may run on.
std::size_t processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? static_cast<std::size_t>(CPU_COUNT(&set)) : 1;
}

// Takes the pages of a mapping, piece by piece, in several threads.
class Populating {
 public:
  Populating(const Mapping& mapping, bool huge) : mapping_(mapping), huge_(huge) {}

  // The next piece. False: there is none, or memory is.
  bool step() {
    const std::size_t at = next_.fetch_add(kPopulatePiece);
    if (at >= mapping_.size() || failure_ != 0) return false;
    std::byte* const piece = mapping_.address() + at;
    const std::size_t length = std::min(kPopulatePiece, mapping_.size() - at);
    if (huge_ && collapse(piece, length) != 0 && (at == 0 || ++collapse_failures_ >= kCollapseTries)) huge_ = false;
    // Maps what a failed collapse left out; next to free where the piece already lies on 2 MiB pages.
    const int failure = populate_write(piece, length);
    int none = 0;
    if (failure != 0 && failure_.compare_exchange_strong(none, failure)) failed_at_ = at;
    return failure == 0;
  }

  // As many as are of use, or as there may be. They are over when there is no next piece.
  std::vector<std::jthread> more_threads() {
    std::vector<std::jthread> threads;
    const std::size_t pieces = (mapping_.size() - 1) / kPopulatePiece;  // but the first
    try {
      while (threads.size() + 1 < std::min<std::size_t>(processors(), kPopulateThreads) && threads.size() < pieces)
        threads.emplace_back([this] {
          while (step()) {
          }
        });
    } catch (const std::system_error&) {  // of threads: fewer do it too
    }
    return threads;
  }

  // No further piece is begun.
  void stop() { next_ = mapping_.size(); }

  // To be called when all threads are over.
  void check() const {
    if (failure_ == ENOMEM || failure_ == EFAULT)
      throw NoMemory("memory ran out at " + gib(failed_at_) + " of an arena of " + gib(mapping_.size()));
    if (failure_ != 0) throw std::system_error(failure_, std::generic_category(), "populating the arena");
  }

 private:
  const Mapping& mapping_;
  std::atomic<std::size_t> next_{0};
  std::atomic<bool> huge_;
  std::atomic<int> collapse_failures_{0}, failure_{0};
  std::size_t failed_at_ = 0;  // of the first failure
};

Descriptor memory_file(const std::string& name, unsigned flags, std::size_t size) {
  Descriptor fd(memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | flags));
  if (fd.get() < 0) throw os_error("memfd_create " + name);
  if (ftruncate(fd.get(), static_cast<off_t>(size)) != 0) throw os_error("ftruncate of arena " + name);
  // Nobody who was handed the descriptor can make this process fault by cutting the file.
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) throw os_error("F_ADD_SEALS");
  return fd;
}

}  // namespace

Descriptor::~Descriptor() {
  if (fd_ >= 0) ::close(fd_);
}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Mapping::Mapping(int fd, std::size_t size) : size_(size) {
  // mmap promises only 4 KiB alignment: reserve one huge page more, map inside, give the ends back.
  const std::size_t reserved = size + kHugePage;
  void* base = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) throw os_error("no address range for an arena of " + gib(size));
  auto* const start = static_cast<std::byte*>(base);
  const std::size_t head = (kHugePage - reinterpret_cast<std::uintptr_t>(start) % kHugePage) % kHugePage;
  address_ = start + head;
  if (mmap(address_, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
    const std::system_error failure = os_error("mmap of an arena of " + gib(size));
    munmap(base, reserved);
    throw failure;
  }
  if (head > 0) munmap(start, head);
  munmap(address_ + size, kHugePage - head);
  madvise(address_, size, MADV_DONTDUMP);  // other people's conversations don't belong into a core file
}

Mapping::~Mapping() { munmap(address_, size_); }

std::unique_ptr<Arena> Arena::create(std::int64_t requested, const std::string& name, bool pin, int numa_node,
                                     const Interrupt& interrupt) {
  const std::size_t size = checked_size(requested);
  std::string why_not;
  std::unique_ptr<Arena> arena;
  if (free_huge_page_bytes() >= size) arena = create_hugetlb(size, name, numa_node, interrupt, why_not);
  if (!arena) arena = create_plain(size, name, numa_node, interrupt);
  if (!why_not.empty()) arena->note(std::move(why_not));
  if (pin) arena->lock_pages();
  return arena;
}

// Null when the reserved pages can't be had after all (a cgroup's limit, or another process was faster).
std::unique_ptr<Arena> Arena::create_hugetlb(std::size_t size, const std::string& name, int numa_node,
                                             const Interrupt& interrupt, std::string& why_not) {
  try {
    Descriptor fd = memory_file(name, MFD_HUGETLB | MFD_HUGE_2MB, size);
    auto mapping = std::make_shared<Mapping>(fd.get(), size);
    std::unique_ptr<Arena> arena(new Arena(std::move(fd), std::move(mapping)));
    arena->prefer_node(numa_node);
    arena->populate(interrupt, false);
    arena->huge_bytes_ = size;
    return arena;
  } catch (const std::system_error& failure) {
    why_not = failure.what();
  } catch (const NoMemory& failure) {
    why_not = failure.what();
  }
  why_not = "arena does not use the reserved 2 MiB pages: " + why_not + "; see the hugetlb limits of the cgroup";
  return nullptr;
}

std::unique_ptr<Arena> Arena::create_plain(std::size_t size, const std::string& name, int numa_node,
                                           const Interrupt& interrupt) {
  // Populating what isn't there ends in the OOM killer, which may well take the engine instead of us.
  if (const std::uint64_t available = available_memory(); size > available)
    throw NoMemory("an arena of " + gib(size) + " does not fit: " + gib(available) + " of memory are available");
  Descriptor fd = memory_file(name, 0, size);
  auto mapping = std::make_shared<Mapping>(fd.get(), size);
  std::unique_ptr<Arena> arena(new Arena(std::move(fd), std::move(mapping)));
  arena->prefer_node(numa_node);
  arena->populate(interrupt, true);
  arena->huge_bytes_ = std::min<std::uint64_t>(huge_mapped_bytes(arena->mapping_->address()), size);
  if (arena->huge_bytes_ < size)
    arena->note("arena has " + gib(arena->huge_bytes_) + " of " + gib(size) + " on 2 MiB pages: disk reads into the "
                "rest are up to 3 times slower; reserve pages (vm.nr_hugepages=" + std::to_string(size / kHugePage) +
                ") or start before memory is fragmented (Linux 6.1 or later)");
  return arena;
}

// By system call: libnuma would be one more thing to install. The policy is the file's, so it holds for whoever touches.
void Arena::prefer_node(int numa_node) {
  if (numa_node < 0) return;
  constexpr std::size_t kWordBits = sizeof(unsigned long) * 8;
  unsigned long nodes[kNumaNodesMax / kWordBits] = {};
  if (numa_node < kNumaNodesMax) nodes[numa_node / kWordBits] = 1ul << numa_node % kWordBits;
  // The kernel reads one bit less than it is told.
  if (numa_node < kNumaNodesMax &&
      syscall(SYS_mbind, mapping_->address(), mapping_->size(), kPreferred, nodes, kNumaNodesMax + 1, 0) == 0)
    return;
  const std::string why = numa_node < kNumaNodesMax ? std::strerror(errno) : "no such node";
  note("arena is not placed on NUMA node " + std::to_string(numa_node) + " (" + why +
       "): copies to the GPUs of that node cross sockets");
}

void Arena::populate(const Interrupt& interrupt, bool huge) {
  Populating populating(*mapping_, huge);
  {
    std::vector<std::jthread> others;  // joined where this block ends, however it does
    try {
      bool more = populating.step();  // alone: it shows whether large pages are to be had
      if (interrupt) interrupt();
      if (more) others = populating.more_threads();
      while (more) {
        more = populating.step();
        if (interrupt) interrupt();
      }
    } catch (...) {
      populating.stop();
      throw;
    }
  }
  populating.check();
}

void Arena::lock_pages() {
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    rlimit raised{limit.rlim_max, limit.rlim_max};
    if (setrlimit(RLIMIT_MEMLOCK, &raised) == 0) limit = raised;
  }
  pinned_ = mlock(mapping_->address(), mapping_->size()) == 0;
  if (pinned_) return;
  const std::string why = std::strerror(errno);
  const bool unlimited = limit.rlim_cur == RLIM_INFINITY;
  const std::string most = unlimited ? "unlimited" : std::to_string(limit.rlim_cur >> 20) + " MiB";
  note("arena is not pinned: mlock of " + gib(mapping_->size()) + " failed (" + why + "; the limit is " + most +
       "), so the kernel may swap it out; raise LimitMEMLOCK / ulimit -l, or grant CAP_IPC_LOCK");
}

std::unique_ptr<Arena> Arena::adopt(int fd, std::int64_t expected, bool pin, const Interrupt& interrupt) {
  std::unique_ptr<Arena> arena = attach(fd, expected);
  const std::size_t size = arena->mapping_->size();
  if ((fcntl(fd, F_GET_SEALS) & (F_SEAL_GROW | F_SEAL_SEAL)) != (F_SEAL_GROW | F_SEAL_SEAL))
    throw std::invalid_argument("arena is not sealed as its owner seals it");
  arena->populate(interrupt, false);
  struct statfs filesystem {};
  const bool reserved = fstatfs(fd, &filesystem) == 0 && filesystem.f_type == HUGETLBFS_MAGIC;
  arena->huge_bytes_ =
      reserved ? size : std::min<std::uint64_t>(huge_mapped_bytes(arena->mapping_->address()), size);
  if (pin) arena->lock_pages();
  return arena;
}

std::unique_ptr<Arena> Arena::attach(int fd, std::int64_t expected) {
  const std::size_t size = checked_size(expected);
  Descriptor own(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (own.get() < 0) throw os_error("descriptor " + std::to_string(fd));
  struct stat status {};
  if (fstat(own.get(), &status) != 0) throw os_error("fstat of the arena");
  if (static_cast<std::uint64_t>(status.st_size) != size)
    throw std::invalid_argument("arena has " + std::to_string(status.st_size) + " bytes, not " + std::to_string(size));
  const int seals = fcntl(own.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0)
    throw std::invalid_argument("arena is not sealed against shrinking: whoever cut the file would crash its readers");
  auto mapping = std::make_shared<Mapping>(own.get(), size);
  return std::unique_ptr<Arena>(new Arena(std::move(own), std::move(mapping)));
}

const std::shared_ptr<Mapping>& Arena::mapping() const {
  if (!mapping_) throw std::invalid_argument("arena is closed");
  return mapping_;
}

int Arena::fd() const {
  mapping();  // throws once closed, as in all the others
  return fd_.get();
}

std::size_t Arena::huge_bytes() const {
  mapping();
  return huge_bytes_;
}

bool Arena::pinned() const {
  mapping();
  return pinned_;
}

const std::vector<std::string>& Arena::notes() const {
  mapping();
  return notes_;
}

std::shared_ptr<Mapping> Arena::close() {
  const Descriptor closing = std::move(fd_);
  return std::exchange(mapping_, nullptr);
}

}  // namespace kvtier
