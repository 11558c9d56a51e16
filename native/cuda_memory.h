// Memory that a GPU's copy engines reach: the host arena registered for DMA, and an arena on the device itself.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "cuda_driver.h"

namespace kvtier {

// Registers a range of host memory for DMA, on a thread of its own: large ranges of small pages take many seconds.
// What can't be registered is copied all the same, through the driver's own buffers. It goes in pieces that begin and
// end at multiples of kPinPiece, where copies are cut.
class CudaPin {
 public:
  // Throws std::invalid_argument (an impossible range, no usable driver, no such device), CudaError,
  // std::system_error (no thread). Lack of memory that may be locked is none of these: note() says so.
  CudaPin(std::shared_ptr<const CudaDriver> driver, int device, std::uint64_t address, std::uint64_t size);
  ~CudaPin();

  bool ready() const { return ready_.load(std::memory_order_acquire); }  // nothing more will be registered
  std::uint64_t pinned_bytes() const { return pinned_.load(std::memory_order_relaxed); }
  std::string note() const { return ready() ? note_ : std::string(); }  // why it is not all; empty when it is

  // Waits for the thread, which stops at the next piece, and unregisters. No copy may be using the range. Idempotent.
  void close();

 private:
  void work() noexcept;  // the thread's life
  void register_pieces();
  void unregister_pieces();

  const int owner_;               // the process that has the thread: a forked child has only its name
  std::optional<Device> device_;  // none once closed
  const std::uint64_t address_;
  const std::uint64_t size_;
  std::atomic<bool> closing_{false};
  std::atomic<bool> ready_{false};
  std::atomic<std::uint64_t> pinned_{0};
  std::string note_;                      // the thread's until ready_
  std::vector<std::uint64_t> registered_;  // where pieces of ours begin; the thread's until it is joined
  std::once_flag closed_;
  std::thread thread_;
};

// One region of a GPU's memory that other processes can map by its handle.
//
// Who makes it owns it, and closes it when no guest copies: what a guest reads after the owner's end means nothing,
// be it that the copy fails or that the driver keeps the memory for a while. A handle can't be opened in the process that made it. A guest's GPU must be the owner's or a peer of it.
class DeviceArena {
 public:
  // `size` bytes, zeroed. Throws std::invalid_argument (size no positive multiple of 2 MiB, no usable driver, no such
  // device), NoMemory, CudaError.
  static std::unique_ptr<DeviceArena> create(std::shared_ptr<const CudaDriver> driver, int device, std::int64_t size);

  // Maps what another process created; the driver doesn't tell how large it is, so `size` is as its owner says.
  // Throws as create() does, and std::runtime_error when the driver can't share memory.
  static std::unique_ptr<DeviceArena> attach(std::shared_ptr<const CudaDriver> driver, int device,
                                             const CUipcMemHandle& handle, std::int64_t size);
  ~DeviceArena();

  // All of these throw std::invalid_argument after close(), and std::runtime_error in a forked child.
  CUdeviceptr address() const;
  std::uint64_t size() const;
  int device() const;
  CUipcMemHandle handle() const;  // also std::runtime_error when the driver can't share memory, or CudaError
  void zero(std::int64_t offset, std::int64_t size) const;  // done on return; also CudaError

  // Frees the memory, or unmaps it where it was attached, as soon as no zero() is under way. No copy may be using it.
  // Idempotent.
  void close();

 private:
  class Memory;

  explicit DeviceArena(std::shared_ptr<const Memory> memory) : memory_(std::move(memory)) {}
  std::shared_ptr<const Memory> memory() const;

  mutable std::mutex mutex_;
  std::shared_ptr<const Memory> memory_;  // null once closed
};

}  // namespace kvtier
