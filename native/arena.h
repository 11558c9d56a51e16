// One region of shared memory, owned by a descriptor that other processes can map.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

namespace kvtier {

inline constexpr std::size_t kHugePage = std::size_t{2} << 20;

// The memory can't be had. what() says how much was asked for and how much there is.
class NoMemory : public std::bad_alloc {
 public:
  explicit NoMemory(const std::string& message) : message_(std::make_shared<std::string>(message)) {}
  const char* what() const noexcept override { return message_->c_str(); }

 private:
  std::shared_ptr<std::string> message_;
};

// The address range. It outlives Arena::close() while a view of it is in use: unmapping under a reader is a crash.
class Mapping {
 public:
  Mapping(int fd, std::size_t size);  // shared, writable, at a 2 MiB-aligned address
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::byte* address() const { return address_; }
  std::size_t size() const { return size_; }

 private:
  std::byte* address_;
  std::size_t size_;
};

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Descriptor& operator=(Descriptor&& other) noexcept;

  int get() const { return fd_; }

 private:
  int fd_;
};

class Arena {
 public:
  // Called between two pieces of a long populate; may throw to give the arena up.
  using Interrupt = std::function<void()>;

  // Takes `size` bytes now, every page touched. `numa_node`: where pages are to lie as far as there is room; -1: where
  // the kernel likes. What can't be had (pins, 2 MiB pages, the node) becomes a note;
  // throws std::invalid_argument, NoMemory, or std::system_error when the memory itself can't be had.
  static std::unique_ptr<Arena> create(std::int64_t size, const std::string& name, bool pin, int numa_node,
                                       const Interrupt& interrupt);

  // Maps an arena that another process created; `fd` stays the caller's.
  static std::unique_ptr<Arena> attach(int fd, std::int64_t size);

  // Takes over an arena that a former owner created and left as it is: no page is cleared, and those that are there are
  // only mapped. `fd` stays the caller's. Throws std::invalid_argument when it is no such arena, NoMemory, or
  // std::system_error.
  static std::unique_ptr<Arena> adopt(int fd, std::int64_t size, bool pin, const Interrupt& interrupt);

  // All of these throw std::invalid_argument after close().
  int fd() const;
  std::size_t size() const { return mapping()->size(); }
  std::size_t huge_bytes() const;
  bool pinned() const;
  const std::vector<std::string>& notes() const;
  const std::shared_ptr<Mapping>& mapping() const;

  // Idempotent. The range is unmapped once the last holder of mapping() has let go, and that may be the caller: to
  // unmap gigabytes of small pages takes long, so the caller chooses where.
  std::shared_ptr<Mapping> close();

 private:
  Arena(Descriptor fd, std::shared_ptr<Mapping> mapping) : fd_(std::move(fd)), mapping_(std::move(mapping)) {}
  static std::unique_ptr<Arena> create_hugetlb(std::size_t size, const std::string& name, int numa_node,
                                               const Interrupt& interrupt, std::string& why_not);
  static std::unique_ptr<Arena> create_plain(std::size_t size, const std::string& name, int numa_node,
                                             const Interrupt& interrupt);
  void prefer_node(int numa_node);
  void populate(const Interrupt& interrupt, bool collapse);
  void lock_pages();
  void note(std::string line) { notes_.push_back(std::move(line)); }

  Descriptor fd_;
  std::shared_ptr<Mapping> mapping_;  // null once closed
  std::size_t huge_bytes_ = 0;
  bool pinned_ = false;
  std::vector<std::string> notes_;
};

}  // namespace kvtier
