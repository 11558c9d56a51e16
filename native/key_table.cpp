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

// Buckets of the former array that an add looks at: some 10 keys move, so all have long before the array is full again.
constexpr std::size_t kStep = 16;

// While the last 64th of the room fills, the memory of the next array is taken. Each time so much, or not at all.
constexpr std::size_t kAheadShare = 64;
constexpr std::size_t kPiece = std::size_t{2} << 20;

constexpr std::size_t kPage = 4096;

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

// --- an array ---------------------------------------------------------------------------------------------------

void KeyTable::Array::Unmap::operator()(Bucket* array) const { munmap(array, bytes); }

// Straight from the kernel: zeroed, and on 2 MiB pages where it gives them, or most lookups would also miss the TLB
// (and a rehash would take three times as long).
KeyTable::Array::Array(std::size_t buckets) : size_(buckets) {
  void* const address = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) throw std::bad_alloc();
  madvise(address, bytes(), MADV_HUGEPAGE);  // a wish: small pages work as well
  memory_ = {static_cast<Bucket*>(address), Unmap{bytes()}};
}

// A wish, too: else the first write takes it.
void KeyTable::Array::touch(std::size_t first, std::size_t end) const noexcept {
  madvise(reinterpret_cast<char*>(memory_.get()) + first, end - first, MADV_POPULATE_WRITE);
}

void KeyTable::Array::release(std::size_t first, std::size_t end) const noexcept {
  const std::size_t begin = (first * sizeof(Bucket) + kPage - 1) / kPage * kPage;
  const std::size_t until = end * sizeof(Bucket) / kPage * kPage;
  if (begin < until) madvise(reinterpret_cast<char*>(memory_.get()) + begin, until - begin, MADV_DONTNEED);
}

KeyTable::Bucket* KeyTable::Array::probe(const Key& key) const noexcept {
  std::size_t at = home(key);
  while ((*this)[at].taken() && (*this)[at].key != key) at = after(at);
  return &(*this)[at];
}

void KeyTable::Array::erase(Bucket* found) const noexcept {
  // Every later entry of the cluster that may stand in the hole moves there and leaves the next hole: it may unless
  // its home lies behind the hole, where a probe would begin too late to see it.
  std::size_t hole = found - memory_.get();
  for (std::size_t at = after(hole); (*this)[at].taken(); at = after(at)) {
    const std::size_t from_home = (at - home((*this)[at].key)) & (size_ - 1);
    const std::size_t from_hole = (at - hole) & (size_ - 1);
    if (from_home >= from_hole) (*this)[std::exchange(hole, at)] = (*this)[at];
  }
  (*this)[hole].inverted = 0;
}

// --- the table --------------------------------------------------------------------------------------------------

// Touched now: the kernel may take long to find such a page, and a table made for `expected` keys is made at leisure.
KeyTable::KeyTable(std::int64_t expected) : array_(buckets_for(expected)) { array_.touch(0, array_.bytes()); }

template <typename Visit>
void KeyTable::visit(std::span<const char> keys, Visit each) const {
  const std::size_t count = keys.size() / kKeyBytes;
  const auto key = [&](std::size_t i) { return Key::load(keys.data() + i * kKeyBytes); };
  const auto prefetch = [&](std::size_t i) {
    __builtin_prefetch(&array_[array_.home(key(i))]);
    if (is_growing()) __builtin_prefetch(&former_[former_.home(key(i))]);
  };
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
  if (find(key) != kAbsent) return false;
  if (size_ == room(array_.size())) begin_growth();
  if (is_growing()) grow_on(kStep);
  *array_.probe(key) = {key, ~slot};
  ++size_;
  prepare();
  return true;
}

// A key that repeats is counted as often, so a table may double a little early.
void KeyTable::add(std::span<const char> keys, const std::uint32_t* slots, bool* added) {
  std::size_t missing = 0;
  visit(keys, [&](std::size_t, const Key& key) { missing += find(key) == kAbsent; });
  const std::size_t needed = buckets_for(static_cast<std::int64_t>(size_ + missing));
  if (needed > array_.size()) grow_at_once(needed);
  visit(keys, [&](std::size_t i, const Key& key) { added[i] = add(key, slots[i]); });
}

std::uint32_t KeyTable::remove(const Key& key) noexcept {
  const Array* in = &array_;
  Bucket* found = in->probe(key);
  if (!found->taken() && is_growing()) {
    in = &former_;
    found = in->probe(key);
  }
  if (!found->taken()) return kAbsent;
  const std::uint32_t slot = found->slot();
  in->erase(found);
  --size_;
  return slot;
}

void KeyTable::remove(std::span<const char> keys, std::uint32_t* removed) noexcept {
  visit(keys, [&](std::size_t i, const Key& key) { removed[i] = remove(key); });
}

void KeyTable::prepare() {
  const std::size_t ahead = array_.size() / kAheadShare, from = room(array_.size()) - ahead;
  if (!ahead || size_ <= from || array_.size() == kMostBuckets) return;
  if (!coming_.size()) {
    try {
      coming_ = Array(2 * array_.size());
    } catch (const std::bad_alloc&) {
      return;  // then growth will say so, if it comes to that
    }
    touched_ = 0;
  }
  // In whole pieces, and never more of them than the number of keys is worth: it may stay what it is for months.
  const std::size_t due = coming_.bytes() / ahead * (size_ - from) / kPiece * kPiece;
  if (due <= touched_) return;
  coming_.touch(touched_, due);
  touched_ = due;
}

void KeyTable::begin_growth() {
  if (array_.size() == kMostBuckets) throw std::bad_alloc();
  if (is_growing()) grow_on(left_);  // it never is: kStep sees to that
  Array larger = coming_.size() ? std::move(coming_) : Array(2 * array_.size());
  coming_ = Array();
  former_ = std::exchange(array_, std::move(larger));
  next_ = 0;
  while (former_[next_].taken()) ++next_;  // an empty bucket, of which the table is never without: a cluster begins after it
  left_ = former_.size();
  released_ = next_;
}

// In the order of the former array the new one is written as a few sequential streams: bucket b goes to b or b + former
// size. It stops at an empty bucket only: what stands behind one is found without what stood before it.
void KeyTable::grow_on(std::size_t buckets) {
  for (std::size_t seen = 0; left_ && (seen < buckets || former_[next_].taken()); ++seen, --left_) {
    Bucket& bucket = former_[next_];
    if (bucket.taken()) *array_.probe(bucket.key) = bucket;
    bucket.inverted = 0;
    next_ = former_.after(next_);
  }
  if (!left_) {
    former_ = Array();
  } else if (next_ > released_ && (next_ - released_) * sizeof(Bucket) >= kPiece) {
    former_.release(std::exchange(released_, next_), next_);
  }
}

// Half of the time goes into the new memory, which the kernel zeroes.
void KeyTable::grow_at_once(std::size_t wanted) {
  if (wanted > kMostBuckets) throw std::bad_alloc();
  if (is_growing()) grow_on(left_);
  Array larger(wanted);
  larger.touch(0, larger.bytes());
  const Array before = std::exchange(array_, std::move(larger));
  coming_ = Array();
  for (std::size_t at = 0; at < before.size(); ++at)
    if (before[at].taken()) *array_.probe(before[at].key) = before[at];
}

}  // namespace kvtier
