// Memory that blocks go through on their way to a drive, where they aren't written as they are.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace kvtier {

// On pages of 2 MiB as far as it fills them, and where there are any: for direct I/O the kernel looks at each page. Mapped
// by itself, so that it goes back to the kernel the moment nobody needs it.
class Bounce {
 public:
  static constexpr std::size_t kPage = std::size_t{2} << 20;
  static constexpr std::size_t kStep = std::size_t{64} << 10;  // no smaller than a page of any kernel

  explicit Bounce(std::size_t bytes) : size_((bytes + kStep - 1) / kStep * kStep) {
    const std::size_t room = size_ + kPage;
    void* const mapped = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    auto* const begin = static_cast<std::uint8_t*>(mapped);
    const std::size_t before = (kPage - reinterpret_cast<std::uintptr_t>(begin) % kPage) % kPage;
    bytes_ = begin + before;
    if (before > 0) munmap(begin, before);
    munmap(bytes_ + size_, kPage - before);
    madvise(bytes_, size_, MADV_HUGEPAGE);
  }
  ~Bounce() { munmap(bytes_, size_); }
  Bounce(const Bounce&) = delete;
  Bounce& operator=(const Bounce&) = delete;

  std::uint8_t* bytes() const { return bytes_; }
  std::size_t size() const { return size_; }

 private:
  const std::size_t size_;
  std::uint8_t* bytes_;
};

// Those that nobody uses now. While there is work each is used again, for a new one costs its zeros; then they go back, and
// nothing of a block stays behind. Usable from any thread.
class Bounces {
 public:
  // std::bad_alloc
  std::unique_ptr<Bounce> take(std::size_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      const auto fits = [bytes](const auto& one) { return one->size() >= bytes; };
      // From the back: what was written through last is in the cache.
      if (const auto found = std::find_if(spare_.rbegin(), spare_.rend(), fits); found != spare_.rend()) {
        std::unique_ptr<Bounce> taken = std::move(*found);
        spare_.erase(std::next(found).base());
        return taken;
      }
      if (!spare_.empty()) spare_.pop_back();  // too small: another size is in demand now
    }
    return std::make_unique<Bounce>(bytes);
  }

  void give_back(std::unique_ptr<Bounce> bounce) noexcept {
    const std::lock_guard lock(mutex_);
    try {
      spare_.push_back(std::move(bounce));
    } catch (const std::bad_alloc&) {  // then it is unmapped
    }
  }

  void drop() noexcept {
    const std::lock_guard lock(mutex_);
    spare_.clear();
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Bounce>> spare_;
};

}  // namespace kvtier
