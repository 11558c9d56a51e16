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
// Not thread safe: one thread owns it.
class KeyTable {
 public:
  // Sized so that `expected` keys fit without a rehash. Throws std::invalid_argument (negative), std::bad_alloc.
  explicit KeyTable(std::int64_t expected);

  std::size_t size() const { return size_; }
  std::size_t memory_bytes() const { return buckets() * sizeof(Bucket); }

  // The slot of a key, kAbsent when it is not there.
  std::uint32_t find(const Key& key) const noexcept { return probe(key)->slot(); }

  // One slot for each kKeyBytes of `keys`, in their order. `slots` has room for them.
  void find(std::span<const char> keys, std::uint32_t* slots) const noexcept;

  // False, and nothing changes, when the key is there already. `slot` is not kAbsent. May rehash: std::bad_alloc, and
  // then nothing has changed either.
  bool add(const Key& key, std::uint32_t slot);

  // The slot that the key had, kAbsent when it was not there.
  std::uint32_t remove(const Key& key) noexcept;

  // The same for each kKeyBytes of `keys`, in their order. `slots` has one for each, none kAbsent; `added` and
  // `removed` have room for as many. add() rehashes before it adds the first.
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

  struct Unmap {
    std::size_t bytes;
    void operator()(Bucket* array) const;
  };
  using Array = std::unique_ptr<Bucket[], Unmap>;

  static Array allocate(std::size_t buckets);
  std::size_t buckets() const { return mask_ + 1; }
  std::size_t home(const Key& key) const { return key.last & mask_; }
  std::size_t after(std::size_t at) const { return (at + 1) & mask_; }
  Bucket* probe(const Key& key) const noexcept;  // its bucket, or the empty one where it would go
  void grow(std::size_t buckets);
  template <typename Visit>
  void visit(std::span<const char> keys, Visit each) const;  // each(position, key)

  std::size_t mask_;  // buckets - 1
  std::size_t size_ = 0;
  Array array_;
};

}  // namespace kvtier
