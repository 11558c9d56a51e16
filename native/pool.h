// Things that are dear to make: what is given back is lent again, and nothing is destroyed before the pool is.
#pragma once

#include <functional>
#include <mutex>
#include <utility>
#include <vector>

namespace kvtier {

// Thread safe. Outlives what it has lent.
template <typename T>
class Pool {
 public:
  class Lease {
   public:
    Lease() = default;
    Lease(Pool& pool, T thing) : pool_(&pool), thing_(thing) {}
    Lease(Lease&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), thing_(other.thing_) {}
    Lease& operator=(Lease&& other) noexcept {
      std::swap(pool_, other.pool_);
      std::swap(thing_, other.thing_);
      return *this;
    }
    ~Lease() {
      if (pool_ != nullptr) pool_->give_back(thing_);
    }

    explicit operator bool() const { return pool_ != nullptr; }
    T get() const { return thing_; }

   private:
    Pool* pool_ = nullptr;
    T thing_{};
  };

  Pool(std::function<T()> make, std::function<void(T)> destroy)
      : make_(std::move(make)), destroy_(std::move(destroy)) {}
  ~Pool() {
    for (const T thing : idle_) destroy_(thing);
  }

  // Throws what `make` throws, std::bad_alloc.
  Lease take() {
    const std::lock_guard lock(mutex_);
    if (idle_.empty()) {
      if (idle_.capacity() <= made_) idle_.reserve(2 * made_ + 1);  // to give back then needs no memory
      const T thing = make_();
      ++made_;
      return {*this, thing};
    }
    const T thing = idle_.back();
    idle_.pop_back();
    return {*this, thing};
  }

 private:
  void give_back(T thing) noexcept {
    const std::lock_guard lock(mutex_);
    idle_.push_back(thing);
  }

  const std::function<T()> make_;
  const std::function<void(T)> destroy_;
  std::mutex mutex_;
  std::vector<T> idle_;
  std::size_t made_ = 0;
};

}  // namespace kvtier
