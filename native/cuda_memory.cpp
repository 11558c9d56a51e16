#include "cuda_memory.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <utility>

#include "arena.h"
#include "signals_blocked.h"

namespace kvtier {
namespace {

constexpr CUresult kOperatingSystem = 304;    // CUDA_ERROR_OPERATING_SYSTEM: a system call failed
constexpr CUresult kAlreadyRegistered = 712;  // CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED

// Between two pieces: whoever waits for the driver's lock gets it. A lock that is taken again at once he would miss.
constexpr std::chrono::milliseconds kPinPause{1};

double gib(std::uint64_t bytes) { return static_cast<double>(bytes) / (1u << 30); }

template <typename... Values>
std::string printed(const char* format, Values... values) {
  char text[160];
  std::snprintf(text, sizeof text, format, values...);
  return text;
}

std::uint64_t checked_size(std::int64_t size) {
  if (size <= 0 || size % static_cast<std::int64_t>(kHugePage) != 0)
    throw std::invalid_argument("arena size must be a positive multiple of 2 MiB, not " + std::to_string(size));
  return static_cast<std::uint64_t>(size);
}

std::uint64_t checked_range(std::uint64_t address, std::uint64_t size) {
  if (address == 0 || size == 0 || size > UINT64_MAX - address)
    throw std::invalid_argument(std::to_string(size) + " bytes at " + std::to_string(address) + " are no range");
  return size;
}

// Where the context is current.
std::string free_memory(const CudaDriver& driver) {
  std::size_t available = 0, total = 0;
  if (!driver.cuMemGetInfo || driver.cuMemGetInfo(&available, &total) != CUDA_SUCCESS) return "";
  return printed("; %.2f of its %.2f GiB are free", gib(available), gib(total));
}

std::string no_room(const std::string& what, const CudaDevice& device) {
  return what + " does not fit on device " + std::to_string(device.ordinal) + " (" + device.name + ")";
}

// A context takes hundreds of MiB, which a GPU that an engine has filled may lack.
Device with_context(std::shared_ptr<const CudaDriver> driver, int ordinal) {
  try {
    return Device(driver, ordinal);
  } catch (const CudaError& failure) {
    if (failure.number() != CUDA_ERROR_OUT_OF_MEMORY) throw;
    throw NoMemory(no_room("a CUDA context", driver->devices()[static_cast<std::size_t>(ordinal)]) + ": " +
                   failure.what());
  }
}

[[noreturn]] void refuse_to_share(const char* symbol) {
  throw std::runtime_error(std::string("GPU memory can't be shared between processes: the driver lacks ") + symbol);
}

}  // namespace

CudaPin::CudaPin(std::shared_ptr<const CudaDriver> driver, int device, std::uint64_t address, std::uint64_t size)
    : owner_(getpid()), device_(std::in_place, std::move(driver), device), address_(address),
      size_(checked_range(address, size)) {
  // So that the thread, which must not throw, never lacks the memory to remember what it registered.
  registered_.reserve(size / kPinPiece + 2);
  const SignalsBlocked blocked;  // a thread is born with its creator's mask
  thread_ = std::thread([this] { work(); });
  pthread_setname_np(thread_.native_handle(), "kvtier-pin");
}

CudaPin::~CudaPin() { close(); }

void CudaPin::work() noexcept {
  try {
    register_pieces();
  } catch (const CudaError& failure) {
    note_ = printed("%.2f of %.2f GiB of the arena are registered for DMA: ", gib(pinned_), gib(size_)) +
            failure.what();
    if (failure.number() == CUDA_ERROR_OUT_OF_MEMORY || failure.number() == kOperatingSystem)
      note_ += "; raise LimitMEMLOCK / ulimit -l";
    note_ += "; the rest is copied through the driver's own buffers, more slowly";
  }
  ready_.store(true, std::memory_order_release);
}

// Other parts of this process may have registered the range before: it serves as well, and stays theirs.
void CudaPin::register_pieces() {
  const CudaDriver& driver = device_->driver();
  const Current current(*device_);
  const std::uint64_t end = address_ + size_;
  for (std::uint64_t at = address_; at < end && !closing_;) {
    const std::uint64_t size = std::min(kPinPiece - at % kPinPiece, end - at);
    const CUresult result = driver.cuMemHostRegister(reinterpret_cast<void*>(at), size,
                                                     CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP);
    if (result == CUDA_SUCCESS)
      registered_.push_back(at);
    else if (result != kAlreadyRegistered)
      throw CudaError(driver.message(driver.cuMemHostRegister.symbol, result), result);
    pinned_ += size;
    at += size;
    std::this_thread::sleep_for(kPinPause);
  }
}

// An error changes nothing: when a context is dead, so are its registrations.
void CudaPin::unregister_pieces() {
  try {
    const Current current(*device_);
    for (const std::uint64_t at : registered_)
      static_cast<void>(device_->driver().cuMemHostUnregister(reinterpret_cast<void*>(at)));
  } catch (const CudaError&) {
  }
  registered_.clear();
  pinned_ = 0;
}

void CudaPin::close() {
  if (getpid() != owner_) {  // forked: the thread lives on in the parent, there is nobody here to join
    static_cast<void>(new std::thread(std::move(thread_)));
    return;
  }
  std::call_once(closed_, [this] {
    closing_ = true;
    thread_.join();
    unregister_pieces();
    device_.reset();
  });
}

// The range itself, and how it goes: it outlives DeviceArena::close() while a zero() is under way.
class DeviceArena::Memory {
 public:
  Memory(std::shared_ptr<const CudaDriver> driver, int ordinal, std::uint64_t size)
      : device_(with_context(std::move(driver), ordinal)), size_(size) {}
  ~Memory();

  const Device& device() const { return device_; }
  CUdeviceptr address() const { return address_; }
  std::uint64_t size() const { return size_; }

  void allocate();
  void map(const CUipcMemHandle& handle);
  CUipcMemHandle handle() const;
  void zero(std::uint64_t offset, std::uint64_t size) const;

 private:
  template <typename Take>
  void take(const std::string& what, Take take_it);
  const CudaDriver& driver() const { return device_.driver(); }

  const Device device_;
  const std::uint64_t size_;
  CUstream stream_ = nullptr;
  CUdeviceptr address_ = 0;
  std::optional<CUipcMemHandle> mapped_by_;  // none: it is ours
};

// Errors change nothing: when the context is dead, so is its memory. A zero() that failed may not have waited for its end.
DeviceArena::Memory::~Memory() {
  if (device_.forked()) return;
  try {
    const Current current(device_);
    if (stream_ != nullptr) {
      static_cast<void>(driver().cuStreamSynchronize(stream_));
      static_cast<void>(driver().cuStreamDestroy(stream_));
    }
    if (address_ != 0)
      static_cast<void>(mapped_by_ ? driver().cuIpcCloseMemHandle(address_) : driver().cuMemFree(address_));
  } catch (const CudaError&) {
  }
}

template <typename Take>
void DeviceArena::Memory::take(const std::string& what, Take take_it) {
  const Current current(device_);
  try {
    driver().must(driver().cuStreamCreateWithPriority, &stream_, CU_STREAM_NON_BLOCKING, 0);
    take_it();
  } catch (const CudaError& failure) {
    if (failure.number() != CUDA_ERROR_OUT_OF_MEMORY) throw;
    throw NoMemory(no_room(what + printed(" of %.2f GiB", gib(size_)), device_.named()) + free_memory(driver()) + ": " +
                   failure.what());
  }
}

void DeviceArena::Memory::allocate() {
  take("an arena", [this] { driver().must(driver().cuMemAlloc, &address_, size_); });
  zero(0, size_);  // it may hold what a process before had there
}

void DeviceArena::Memory::map(const CUipcMemHandle& handle) {
  if (!driver().cuIpcOpenMemHandle) refuse_to_share(driver().cuIpcOpenMemHandle.symbol);
  if (!driver().cuIpcCloseMemHandle) refuse_to_share(driver().cuIpcCloseMemHandle.symbol);
  take("another process's arena", [&] {
    driver().must(driver().cuIpcOpenMemHandle, &address_, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
    mapped_by_ = handle;
  });
}

CUipcMemHandle DeviceArena::Memory::handle() const {
  if (mapped_by_) return *mapped_by_;
  if (!driver().cuIpcGetMemHandle) refuse_to_share(driver().cuIpcGetMemHandle.symbol);
  const Current current(device_);
  CUipcMemHandle handle{};
  driver().must(driver().cuIpcGetMemHandle, &handle, address_);
  return handle;
}

void DeviceArena::Memory::zero(std::uint64_t offset, std::uint64_t size) const {
  const Current current(device_);
  driver().must(driver().cuMemsetD8Async, address_ + offset, static_cast<unsigned char>(0), size, stream_);
  driver().must(driver().cuStreamSynchronize, stream_);
}

std::unique_ptr<DeviceArena> DeviceArena::create(std::shared_ptr<const CudaDriver> driver, int device,
                                                 std::int64_t size) {
  const auto memory = std::make_shared<Memory>(std::move(driver), device, checked_size(size));
  memory->allocate();
  return std::unique_ptr<DeviceArena>(new DeviceArena(memory));
}

std::unique_ptr<DeviceArena> DeviceArena::attach(std::shared_ptr<const CudaDriver> driver, int device,
                                                 const CUipcMemHandle& handle, std::int64_t size) {
  const auto memory = std::make_shared<Memory>(std::move(driver), device, checked_size(size));
  memory->map(handle);
  return std::unique_ptr<DeviceArena>(new DeviceArena(memory));
}

DeviceArena::~DeviceArena() = default;

std::shared_ptr<const DeviceArena::Memory> DeviceArena::memory() const {
  const std::lock_guard lock(mutex_);
  if (!memory_) throw std::invalid_argument("arena is closed");
  if (memory_->device().forked()) throw std::runtime_error("an arena in GPU memory does not survive a fork");
  return memory_;
}

CUdeviceptr DeviceArena::address() const { return memory()->address(); }
std::uint64_t DeviceArena::size() const { return memory()->size(); }
int DeviceArena::device() const { return memory()->device().named().ordinal; }
CUipcMemHandle DeviceArena::handle() const { return memory()->handle(); }

void DeviceArena::zero(std::int64_t offset, std::int64_t size) const {
  const std::shared_ptr<const Memory> held = memory();
  const auto end = static_cast<std::int64_t>(held->size());
  if (offset < 0 || size < 0 || size > end || offset > end - size)
    throw std::invalid_argument(std::to_string(size) + " bytes from " + std::to_string(offset) +
                                " are not within an arena of " + std::to_string(end));
  if (size > 0) held->zero(static_cast<std::uint64_t>(offset), static_cast<std::uint64_t>(size));
}

// The memory goes once the mutex is free again: to free waits for the GPU.
void DeviceArena::close() {
  std::shared_ptr<const Memory> going;
  const std::lock_guard lock(mutex_);
  going.swap(memory_);
}

}  // namespace kvtier
