#include "key_table.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <utility>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace kvtier {
namespace {

constexpr std::size_t kFewestBuckets = 16;
constexpr std::size_t kMostBuckets = std::size_t{1} << 33;  // more than there are slot numbers

// At 5/8 a present key takes 1.8 buckets and a missing one 4, mostly within a cache line or its neighbour.
constexpr std::size_t room(std::size_t buckets) { return buckets / 8 * 5; }

// How many keys ahead the bucket is asked for: about as many cache misses as a core keeps in flight.
constexpr std::size_t kAhead = 16;

std::size_t buckets_for(std::int64_t expected) {
  if (expected < 0) throw std::invalid_argument("expected must not be negative");
  std::size_t buckets = kFewestBuckets;
  while (room(buckets) < static_cast<std::uint64_t>(expected)) {
    buckets *= 2;
    if (buckets > kMostBuckets) throw std::bad_alloc();
  }
  return buckets;
}

}  // namespace

Key Key::load(const char* bytes) {
  Key key;
  std::memcpy(&key, bytes, sizeof key);
  if constexpr (std::endian::native == std::endian::little) key.last = __builtin_bswap64(key.last);
  return key;
}

KeyTable::KeyTable(std::int64_t expected) : mask_(buckets_for(expected) - 1), array_(allocate(buckets())) {}

void KeyTable::Unmap::operator()(Bucket* array) const { munmap(array, bytes); }

// Straight from the kernel: zeroed, and on 2 MiB pages where it gives them, or most lookups would also miss the TLB
// (and a rehash would take three times as long).
// Touched now: the kernel may take long to find such a page, and a table made for `expected` keys is made at leisure.
KeyTable::Array KeyTable::allocate(std::size_t buckets) {
  const std::size_t bytes = buckets * sizeof(Bucket);
  void* const address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) throw std::bad_alloc();
  madvise(address, bytes, MADV_HUGEPAGE);  // both are wishes: small pages work as well, and so does the first write
  madvise(address, bytes, MADV_POPULATE_WRITE);
  return Array(static_cast<Bucket*>(address), Unmap{bytes});
}

KeyTable::Bucket* KeyTable::probe(const Key& key) const noexcept {
  std::size_t at = home(key);
  while (array_[at].taken() && array_[at].key != key) at = after(at);
  return &array_[at];
}

template <typename Visit>
void KeyTable::visit(std::span<const char> keys, Visit each) const {
  const std::size_t count = keys.size() / kKeyBytes;
  const auto key = [&](std::size_t i) { return Key::load(keys.data() + i * kKeyBytes); };
  const auto prefetch = [&](std::size_t i) { __builtin_prefetch(&array_[home(key(i))]); };
  for (std::size_t i = 0; i < std::min(kAhead, count); ++i) prefetch(i);
  for (std::size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) prefetch(i + kAhead);
    each(i, key(i));
  }
}

void KeyTable::find(std::span<const char> keys, std::uint32_t* slots) const noexcept {
  visit(keys, [&](std::size_t i, const Key& key) { slots[i] = find(key); });
}

bool KeyTable::add(const Key& key, std::uint32_t slot) {
  Bucket* bucket = probe(key);
  if (bucket->taken()) return false;
  if (size_ == room(buckets())) {
    grow(2 * buckets());
    bucket = probe(key);
  }
  *bucket = {key, ~slot};
  ++size_;
  return true;
}

// A key that repeats is counted as often, so a table may double a little early.
void KeyTable::add(std::span<const char> keys, const std::uint32_t* slots, bool* added) {
  std::size_t missing = 0;
  visit(keys, [&](std::size_t, const Key& key) { missing += !probe(key)->taken(); });
  const std::size_t needed = buckets_for(static_cast<std::int64_t>(size_ + missing));
  if (needed > buckets()) grow(needed);
  visit(keys, [&](std::size_t i, const Key& key) { added[i] = add(key, slots[i]); });
}

std::uint32_t KeyTable::remove(const Key& key) noexcept {
  Bucket* const found = probe(key);
  if (!found->taken()) return kAbsent;
  const std::uint32_t slot = found->slot();
  // Every later entry of the cluster that may stand in the hole moves there and leaves the next hole: it may unless
  // its home lies behind the hole, where a probe would begin too late to see it.
  std::size_t hole = found - array_.get();
  for (std::size_t at = after(hole); array_[at].taken(); at = after(at)) {
    const std::size_t from_home = (at - home(array_[at].key)) & mask_;
    const std::size_t from_hole = (at - hole) & mask_;
    if (from_home >= from_hole) array_[std::exchange(hole, at)] = array_[at];
  }
  array_[hole].inverted = 0;
  --size_;
  return slot;
}

void KeyTable::remove(std::span<const char> keys, std::uint32_t* removed) noexcept {
  visit(keys, [&](std::size_t i, const Key& key) { removed[i] = remove(key); });
}

// In the order of the old array the new one is written as a few sequential streams: when it doubles, bucket b goes to
// b or b + old size. Half of the time goes into the new memory, which the kernel zeroes.
void KeyTable::grow(std::size_t wanted) {
  if (wanted > kMostBuckets) throw std::bad_alloc();
  const std::size_t before = buckets();
  const Array old = std::exchange(array_, allocate(wanted));
  mask_ = wanted - 1;
  for (std::size_t at = 0; at < before; ++at)
    if (old[at].taken()) *probe(old[at].key) = old[at];
}

}  // namespace kvtier
