// From BlockKey to slot number: what a Lookup asks, hundreds of keys at a time.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace kvtier {

inline constexpr std::size_t kKeyBytes = 16;
inline constexpr std::uint32_t kAbsent = 0xFFFFFFFF;  // as kvtier.block has it

// The 16 bytes of a key as two numbers, so that two compares and no call decide equality.
struct Key {
  std::uint64_t first;
  std::uint64_t last;

  static Key load(const char* bytes);
  bool operator==(const Key&) const = default;
};

// Open addressing with linear probing in one flat array of 2^n buckets: as a rule one cache line answers a key.
//
// A key is not hashed: its last bytes, read as a big-endian number, name the bucket. That is fine for keyed digests,
// which nobody can choose without the secret, and for the counting keys of tests; keys that share their last bytes make
// every operation linear. Deletion shifts the rest of the cluster back, so that there are no tombstones and a table
// that lives for months stays as fast as on its first day. It never shrinks.
//
// It grows step by step, for nobody is to wait half a second until 10 million keys have moved: new keys go into an array
// of twice the size, and each add moves some clusters of the former one there, whole, so that what stays is found as
// ever. Until all have moved a key may be in either, and a missing one is looked for in both. The memory of the larger
// array is touched piece by piece before it is needed, for the kernel takes as long to zero it.
//
// Not thread safe: one thread owns it.
class KeyTable {
 public:
  // Sized so that `expected` keys fit without a rehash. Throws std::invalid_argument (negative), std::bad_alloc.
  explicit KeyTable(std::int64_t expected);

  std::size_t size() const { return size_; }
  std::size_t memory_bytes() const { return array_.bytes() + former_.bytes(); }
  bool is_growing() const { return former_.size() != 0; }

  // The slot of a key, kAbsent when it is not there.
  std::uint32_t find(const Key& key) const noexcept {
    const std::uint32_t slot = array_.probe(key)->slot();
    return slot == kAbsent && is_growing() ? former_.probe(key)->slot() : slot;
  }

  // One slot for each kKeyBytes of `keys`, in their order. `slots` has room for them.
  void find(std::span<const char> keys, std::uint32_t* slots) const noexcept;

  // False, and nothing changes, when the key is there already. `slot` is not kAbsent. May take memory: std::bad_alloc,
  // and then nothing has changed either.
  bool add(const Key& key, std::uint32_t slot);

  // The slot that the key had, kAbsent when it was not there.
  std::uint32_t remove(const Key& key) noexcept;

  // The same for each kKeyBytes of `keys`, in their order. `slots` has one for each, none kAbsent; `added` and
  // `removed` have room for as many. add() grows at once, before it adds the first.
  void add(std::span<const char> keys, const std::uint32_t* slots, bool* added);
  void remove(std::span<const char> keys, std::uint32_t* removed) noexcept;

 private:
  // 24 bytes. The slot is stored inverted: zeroed memory, as the kernel gives it, is a table of empty buckets, and an
  // empty bucket answers kAbsent by itself.
  struct Bucket {
    Key key;
    std::uint32_t inverted;

    bool taken() const { return inverted != 0; }
    std::uint32_t slot() const { return ~inverted; }
  };

  // 2^n buckets, or none.
  class Array {
   public:
    Array() = default;
    explicit Array(std::size_t buckets);  // throws std::bad_alloc

    std::size_t size() const { return size_; }
    std::size_t bytes() const { return size_ * sizeof(Bucket); }
    Bucket& operator[](std::size_t at) const { return memory_.get()[at]; }
    std::size_t home(const Key& key) const { return key.last & (size_ - 1); }
    std::size_t after(std::size_t at) const { return (at + 1) & (size_ - 1); }
    Bucket* probe(const Key& key) const noexcept;  // its bucket, or the empty one where it would go
    void erase(Bucket* found) const noexcept;
    void touch(std::size_t first, std::size_t end) const noexcept;  // bytes: they take memory from now on
    void release(std::size_t first, std::size_t end) const noexcept;  // buckets: they are empty, and take none any more

   private:
    struct Unmap {
      std::size_t bytes;
      void operator()(Bucket* array) const;
    };
    std::size_t size_ = 0;
    std::unique_ptr<Bucket[], Unmap> memory_;
  };

  void prepare();                      // the next array, as far as the number of keys says that it will be needed
  void begin_growth();
  void grow_on(std::size_t buckets);   // moves what stands in so many of the former one, and the rest of a cluster
  void grow_at_once(std::size_t buckets);
  template <typename Visit>
  void visit(std::span<const char> keys, Visit each) const;  // each(position, key)

  std::size_t size_ = 0;
  Array array_;
  Array former_;              // while its keys move
  std::size_t next_ = 0;      // of it: the clusters before this bucket have moved
  std::size_t left_ = 0;      // buckets of it that were not looked at
  std::size_t released_ = 0;  // of it: what is before this bucket was looked at and takes no memory
  Array coming_;              // the next one: nothing is in it
  std::size_t touched_ = 0;   // bytes of it
};

}  // namespace kvtier
