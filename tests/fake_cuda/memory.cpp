// Memory: whose an address is, what may be copied, device memory that other processes can map.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fake_cuda.h"

namespace fake {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kMagic = 0x6b76746965726661;

struct Exported {  // what is in the 64 bytes of a handle
  std::uint64_t magic;
  std::int64_t process;
  std::int64_t fd;
  std::uint64_t inode;
  std::uint64_t size;
  std::int64_t device;
};
static_assert(sizeof(Exported) <= 64);

std::uint64_t page_end(std::uint64_t at) { return (at + kPage - 1) / kPage * kPage; }

// Fresh device memory holds what others left there.
void fill_with_rubbish(Address at, std::uint64_t size) {
  const auto step = size <= (16u << 20) ? kPage : std::uint64_t{1} << 20;
  for (std::uint64_t offset = 0; offset < size; offset += step)
    std::memset(reinterpret_cast<void*>(at + offset), 0xA5, std::min(kPage, size - offset));
}

Address map_shared(int fd, std::uint64_t size) {
  void* const at = mmap(nullptr, page_end(size), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return at == MAP_FAILED ? 0 : reinterpret_cast<Address>(at);
}

// The addresses stay taken: whoever touches them from now on is seen.
void give_up(Address at, Range& range) {
  mmap(reinterpret_cast<void*>(at), page_end(range.size), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (range.fd >= 0) close(range.fd);
  range.kind = Kind::kFreed;
  range.fd = -1;
}

std::map<Address, Range>::iterator at_base(Address at, Kind kind) {
  auto& ranges = world().ranges;
  const auto found = ranges.find(at);
  return found != ranges.end() && found->second.kind == kind ? found : ranges.end();
}

std::string shown(Extent extent) {
  char text[64];
  std::snprintf(text, sizeof text, "%#llx, %llu bytes", static_cast<unsigned long long>(extent.address),
                static_cast<unsigned long long>(extent.size));
  return text;
}

// A copy whose turn has come must find what it found when it was called.
void check_still_there(const Context& context, Extent extent, Place before) {
  const Lock lock(world().mutex);
  if (context.dying) return;  // nothing is written any more, and memory may go
  const Place now = place_of(extent);
  if (now == Place::kFreed) die("a copy touches freed memory: " + shown(extent));
  if (before == Place::kPinned && now != Place::kPinned)
    die("a copy touches host memory that was unregistered under it: " + shown(extent));
}

struct PlacedCopy {
  CopyOf copy;
  Place target, source;
  std::shared_ptr<std::vector<char>> early;  // the source as it was when the call was made
};

void carry_out(Context& context, const PlacedCopy& placed, Random& random) {
  if (context.dying) return;
  const CopyOf& copy = placed.copy;
  check_still_there(context, {copy.target, copy.size}, placed.target);
  if (!placed.early) check_still_there(context, {copy.source, copy.size}, placed.source);
  const Address source = placed.early ? reinterpret_cast<Address>(placed.early->data()) : copy.source;
  copy_in_pieces(context, copy.target, source, copy.size, random);
}

}  // namespace

void die(const std::string& why) {
  std::fprintf(stderr, "fake_cuda: %s (seed %ld)\n", why.c_str(), settings().seed.load());
  std::abort();
}

Place place_of(Extent extent, int* device) {
  const auto& ranges = world().ranges;
  auto after = ranges.upper_bound(extent.address);
  const Address end = extent.address + extent.size;
  if (after != ranges.begin()) {
    const auto& [base, range] = *std::prev(after);
    if (extent.address < base + range.size) {
      if (range.kind == Kind::kFreed) return Place::kFreed;
      if (end > base + range.size) return Place::kStraddles;
      if (device != nullptr) *device = range.device;
      return range.kind == Kind::kDevice || range.kind == Kind::kImported ? Place::kDevice : Place::kPinned;
    }
  }
  return after != ranges.end() && after->first < end ? Place::kStraddles : Place::kPageable;
}

Result copy_async(Stream& stream, std::vector<CopyOf> copies, SourceOrder order, Lock& lock) {
  std::vector<PlacedCopy> placed;
  bool pageable = false;
  for (const CopyOf& copy : copies) {
    if (copy.size == 0) continue;
    if (copy.target == 0 || copy.source == 0 || copy.size > ~copy.source || copy.size > ~copy.target) return kInvalidValue;
    PlacedCopy one{copy, place_of({copy.target, copy.size}), place_of({copy.source, copy.size}), nullptr};
    for (const Place place : {one.target, one.source}) {
      if (place == Place::kFreed) die("a copy is asked for in freed memory: " + shown({copy.source, copy.size}));
      if (place == Place::kStraddles) return kInvalidValue;
      pageable |= place == Place::kPageable;
    }
    const bool early = order != SourceOrder::kStream || (planted(kSourceReadAtTheCall) && !stream.engine);
    if (early) {
      const char* const begin = reinterpret_cast<const char*>(copy.source);
      one.early = std::make_shared<std::vector<char>>(begin, begin + copy.size);
    }
    placed.push_back(std::move(one));
  }
  Context& context = *stream.context;
  Stream& runs = copying(stream);
  const auto run = [placed, &context](Random& random) mutable {
    for (std::size_t left = placed.size(); left > 0; --left) {  // in any order
      std::swap(placed[left - 1], placed[random.below(left)]);
      carry_out(context, placed[left - 1], random);
    }
  };
  enqueue(runs, {{}, run, {}, true});
  if (!pageable) return kSuccess;
  ++world().pageable_copies;
  [[maybe_unused]] const std::shared_ptr<Stream> kept = stream_of(context, stream.handle);
  drain(runs, lock);
  return context.error;
}

Result set_async(Stream& stream, Address target, unsigned char byte, std::uint64_t size) {
  if (size == 0) return kSuccess;
  const Place place = place_of({target, size});
  if (place == Place::kFreed) die("freed memory is to be set: " + shown({target, size}));
  if (place != Place::kDevice && place != Place::kPinned) return kInvalidValue;
  Context& context = *stream.context;
  const auto run = [=, &context](Random& random) {
    check_still_there(context, {target, size}, place);
    write_in_pieces(context, size, random, [&](std::uint64_t begin, std::uint64_t bytes) {
      std::memset(reinterpret_cast<void*>(target + begin), byte, bytes);
    });
  };
  enqueue(copying(stream), {{}, run, {}, true});
  return kSuccess;
}

namespace {

// A kernel reaches this device's memory, imports and, by their host address, registered pages.
bool kernel_may_touch(const Context& context, Extent extent) {
  int device = -1;
  const Place place = place_of(extent, &device);
  if (place == Place::kFreed) die("a kernel touches freed memory: " + shown(extent));
  return place == Place::kDevice ? device == context.device : place == Place::kPinned && settings().host_pointer_usable;
}

struct Row {  // of the kernel's table, in its order
  Address source, target;
  std::uint64_t size;
};

bool kernel_copies(Context& context, Address table, std::uint32_t index, Random& random) {
  Row entry{};
  {
    const Lock lock(world().mutex);
    if (context.dying) return true;
    const Address at = table + index * sizeof entry;
    if (!kernel_may_touch(context, {at, sizeof entry})) return false;
    std::memcpy(&entry, reinterpret_cast<const void*>(at), sizeof entry);  // now, not when the kernel was launched
    if (entry.size == 0) return true;
    if (entry.target + entry.size < entry.target || entry.source + entry.size < entry.source) return false;
    if (!kernel_may_touch(context, {entry.target, entry.size})) return false;
    if (!kernel_may_touch(context, {entry.source, entry.size})) return false;
  }
  copy_in_pieces(context, entry.target, entry.source, entry.size, random);
  return true;
}

}  // namespace

Result launch_copies(Stream& stream, Address table, std::uint32_t count) {
  Context& context = *stream.context;
  if (planted(kKernelForgetsLast) && count > 0) --count;
  const auto run = [&context, table, count](Random& random) {
    const auto first = static_cast<std::uint32_t>(random.below(std::max(count, 1u)));
    for (std::uint32_t i = 0; i < count && !context.dying; ++i) {
      pause(random);
      if (kernel_copies(context, table, (first + i) % count, random)) continue;
      const Lock lock(world().mutex);
      return poison(context, kIllegalAddress);
    }
  };
  enqueue(copying(stream), {{}, run, {}, true});
  return kSuccess;
}

// --- memory begins and ends ----------------------------------------------------------------------------------------

Result allocate(Context& context, std::uint64_t size, Address* at) {
  if (at == nullptr || size == 0) return kInvalidValue;
  const auto limit = static_cast<std::uint64_t>(settings().memory_limit.load());
  if (size > limit || context.reserved > limit - size) return kOutOfMemory;
  const int fd = memfd_create("fake_cuda", MFD_CLOEXEC);
  struct stat found{};
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(page_end(size))) != 0 || fstat(fd, &found) != 0) return kOutOfMemory;
  *at = map_shared(fd, size);
  if (*at == 0) return kOutOfMemory;
  fill_with_rubbish(*at, size);
  context.reserved += size;
  world().ranges[*at] = {Kind::kDevice, size, context.device, fd, found.st_ino};
  return kSuccess;
}

Result free_memory(Address at) {
  if (at == 0) return kSuccess;
  const auto found = at_base(at, Kind::kDevice);
  if (found == world().ranges.end()) return kInvalidValue;
  world().contexts[static_cast<std::size_t>(found->second.device)].reserved -= found->second.size;
  give_up(at, found->second);
  return kSuccess;
}

Result allocate_host(std::uint64_t size, Address* at) {
  if (at == nullptr || size == 0) return kInvalidValue;
  const std::uint64_t pages = page_end(size);
  if (world().locked + pages > static_cast<std::uint64_t>(settings().lockable_limit)) return kOutOfMemory;
  void* const mapped = mmap(nullptr, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return kOutOfMemory;
  world().locked += pages;
  *at = reinterpret_cast<Address>(mapped);
  world().ranges[*at] = {Kind::kHostAllocated, size, -1};
  return kSuccess;
}

Result free_host(Address at) {
  const auto found = at_base(at, Kind::kHostAllocated);
  if (found == world().ranges.end()) return kInvalidValue;
  world().locked -= page_end(found->second.size);
  give_up(at, found->second);  // what still copies there dies of it
  return kSuccess;
}

Result register_host(Address at, std::uint64_t size, Lock& lock) {
  if (at == 0 || size == 0 || size > ~at) return kInvalidValue;
  if (const long delay_us = settings().register_delay_us; delay_us > 0) {
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
    lock.lock();
  }
  unsigned char resident = 0;
  for (const Address page : {at / kPage * kPage, (at + size - 1) / kPage * kPage})
    if (mincore(reinterpret_cast<void*>(page), 1, &resident) != 0) return kInvalidValue;  // nothing is mapped there
  const Place place = place_of({at, size});
  if (place == Place::kDevice || place == Place::kFreed) return kInvalidValue;
  if (place != Place::kPageable) return kAlreadyRegistered;
  if (size > static_cast<std::uint64_t>(settings().lockable_limit) - world().locked) return kOutOfMemory;
  world().locked += size;
  world().ranges[at] = {Kind::kRegistered, size, -1};
  return kSuccess;
}

Result unregister_host(Address at) {
  if (at == 0) return kInvalidValue;
  const auto found = at_base(at, Kind::kRegistered);
  if (found == world().ranges.end()) return kNotRegistered;
  world().locked -= found->second.size;
  world().ranges.erase(found);
  return kSuccess;
}

// --- memory of other processes -------------------------------------------------------------------------------------

Result export_handle(Address at, unsigned char* handle) {
  const auto found = at_base(at, Kind::kDevice);
  if (handle == nullptr || found == world().ranges.end()) return kInvalidValue;
  const Range& range = found->second;
  const Exported exported{kMagic, getpid(), range.fd, range.inode, range.size, range.device};
  std::memset(handle, 0, 64);
  std::memcpy(handle, &exported, sizeof exported);
  return kSuccess;
}

Result import_handle(Context& context, const unsigned char* handle, Address* at) {
  Exported exported{};
  std::memcpy(&exported, handle, sizeof exported);
  if (exported.magic != kMagic || at == nullptr) return kInvalidValue;
  if (exported.process == getpid()) return kInvalidContext;
  for (auto& [base, range] : world().ranges) {
    if (range.kind != Kind::kImported || range.inode != exported.inode || range.device != context.device) continue;
    ++range.opened;
    *at = base;
    return kSuccess;
  }
  const std::string path = "/proc/" + std::to_string(exported.process) + "/fd/" + std::to_string(exported.fd);
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return kMapFailed;
  struct stat found{};
  const bool same = fstat(fd, &found) == 0 && found.st_ino == exported.inode;  // the number may mean another file by now
  *at = same ? map_shared(fd, exported.size) : 0;
  close(fd);
  if (*at == 0) return kMapFailed;
  world().ranges[*at] = {Kind::kImported, exported.size, context.device, -1, exported.inode, 1};
  return kSuccess;
}

Result close_import(Address at) {
  const auto found = at_base(at, Kind::kImported);
  if (found == world().ranges.end()) return kInvalidValue;
  if (--found->second.opened == 0) give_up(at, found->second);
  return kSuccess;
}

// What is left when a context ends is freed with it; of no context in particular: everything, addresses too.
void forget_memory(const Context* context) {
  World& all = world();
  for (auto& [base, range] : all.ranges) {
    const bool of_device = range.kind == Kind::kDevice || range.kind == Kind::kImported;
    if (context != nullptr && (!of_device || range.device != context->device)) continue;
    if (range.kind == Kind::kRegistered) continue;
    if (range.kind != Kind::kFreed) give_up(base, range);
    if (context == nullptr) munmap(reinterpret_cast<void*>(base), page_end(range.size));
  }
  if (context == nullptr) all.ranges.clear();
  if (context == nullptr) all.locked = 0;
  for (Context& each : all.contexts)
    if (context == nullptr || context == &each) each.reserved = 0;
}

}  // namespace fake
