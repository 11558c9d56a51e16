// The NVIDIA driver, opened at run time: no toolkit is needed to build, and one build runs with and without a GPU.
//
// Every entry point that kvtier calls stands in the one table below. Types and constants are spelled as in NVIDIA's
// documentation, but are our own, in our namespace: none of its headers is included.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace kvtier {

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = std::uint64_t;
using CUcontext = struct CUcontextOpaque*;
using CUstream = struct CUstreamOpaque*;
using CUevent = struct CUeventOpaque*;
using CUmodule = struct CUmoduleOpaque*;
using CUfunction = struct CUfunctionOpaque*;

struct CUuuid {
  std::uint8_t bytes[16];
};

struct CUipcMemHandle {
  char reserved[64];
};

struct CUmemLocation {
  int type;
  int id;
};

struct CUmemcpyAttributes {
  int srcAccessOrder;
  CUmemLocation srcLocHint;
  CUmemLocation dstLocHint;
  unsigned flags;
};
static_assert(sizeof(CUmemcpyAttributes) == 24);

inline constexpr CUresult CUDA_SUCCESS = 0;
inline constexpr CUresult CUDA_ERROR_OUT_OF_MEMORY = 2;
inline constexpr CUresult CUDA_ERROR_NOT_READY = 600;

inline constexpr unsigned CU_STREAM_NON_BLOCKING = 1;
inline constexpr unsigned CU_EVENT_DEFAULT = 0;
inline constexpr unsigned CU_EVENT_DISABLE_TIMING = 2;
inline constexpr unsigned CU_MEMHOSTALLOC_PORTABLE = 1;
inline constexpr unsigned CU_MEMHOSTALLOC_DEVICEMAP = 2;
inline constexpr unsigned CU_MEMHOSTREGISTER_PORTABLE = 1;
inline constexpr unsigned CU_MEMHOSTREGISTER_DEVICEMAP = 2;
inline constexpr unsigned CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS = 1;
inline constexpr int CU_STREAM_CAPTURE_MODE_RELAXED = 2;
inline constexpr int CU_MEMCPY_SRC_ACCESS_ORDER_STREAM = 1;
inline constexpr int CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM = 91;

// Host memory is registered in ranges that end at multiples of this address, and no copy crosses one: the driver
// refuses a copy that begins in one registered range and ends in another. While it registers a range (a tenth of a
// second a GiB of small pages) it lets nobody else in, and so the engine can't launch: the ranges are small.
inline constexpr std::uint64_t kPinPiece = std::uint64_t{256} << 20;

// X(member, symbol, required?, parameters). The symbol is the exact version whose signature stands beside it.
// The two shapes of the batched copy: 12.8's says which copy failed, 13's doesn't.
// clang-format off
#define KVTIER_CUDA_CALLS(X)                                                                                          \
  X(cuInit, "cuInit", true, unsigned)                                                                                 \
  X(cuDriverGetVersion, "cuDriverGetVersion", true, int*)                                                             \
  X(cuGetErrorName, "cuGetErrorName", true, CUresult, const char**)                                                   \
  X(cuGetErrorString, "cuGetErrorString", true, CUresult, const char**)                                               \
  X(cuDeviceGetCount, "cuDeviceGetCount", true, int*)                                                                 \
  X(cuDeviceGet, "cuDeviceGet", true, CUdevice*, int)                                                                 \
  X(cuDeviceGetName, "cuDeviceGetName", true, char*, int, CUdevice)                                                   \
  X(cuDeviceGetAttribute, "cuDeviceGetAttribute", true, int*, int, CUdevice)                                          \
  X(cuDeviceGetPCIBusId, "cuDeviceGetPCIBusId", true, char*, int, CUdevice)                                           \
  X(cuDeviceGetUuid, "cuDeviceGetUuid_v2", true, CUuuid*, CUdevice)                                                   \
  X(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", true, CUcontext*, CUdevice)                                 \
  X(cuDevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2", true, CUdevice)                                        \
  X(cuCtxPushCurrent, "cuCtxPushCurrent_v2", true, CUcontext)                                                         \
  X(cuCtxPopCurrent, "cuCtxPopCurrent_v2", true, CUcontext*)                                                          \
  X(cuThreadExchangeStreamCaptureMode, "cuThreadExchangeStreamCaptureMode", true, int*)                               \
  X(cuCtxGetStreamPriorityRange, "cuCtxGetStreamPriorityRange", true, int*, int*)                                     \
  X(cuStreamCreateWithPriority, "cuStreamCreateWithPriority", true, CUstream*, unsigned, int)                         \
  X(cuStreamDestroy, "cuStreamDestroy_v2", true, CUstream)                                                            \
  X(cuStreamSynchronize, "cuStreamSynchronize", true, CUstream)                                                       \
  X(cuStreamWaitEvent, "cuStreamWaitEvent", true, CUstream, CUevent, unsigned)                                        \
  X(cuEventCreate, "cuEventCreate", true, CUevent*, unsigned)                                                         \
  X(cuEventDestroy, "cuEventDestroy_v2", true, CUevent)                                                               \
  X(cuEventRecord, "cuEventRecord", true, CUevent, CUstream)                                                          \
  X(cuEventQuery, "cuEventQuery", true, CUevent)                                                                      \
  X(cuEventElapsedTime, "cuEventElapsedTime", true, float*, CUevent, CUevent)                                         \
  X(cuMemAlloc, "cuMemAlloc_v2", true, CUdeviceptr*, std::size_t)                                                     \
  X(cuMemFree, "cuMemFree_v2", true, CUdeviceptr)                                                                     \
  X(cuMemHostAlloc, "cuMemHostAlloc", true, void**, std::size_t, unsigned)                                            \
  X(cuMemFreeHost, "cuMemFreeHost", true, void*)                                                                      \
  X(cuMemHostRegister, "cuMemHostRegister_v2", true, void*, std::size_t, unsigned)                                    \
  X(cuMemHostUnregister, "cuMemHostUnregister", true, void*)                                                          \
  X(cuMemcpyAsync, "cuMemcpyAsync", true, CUdeviceptr, CUdeviceptr, std::size_t, CUstream)                            \
  X(cuMemsetD8Async, "cuMemsetD8Async", true, CUdeviceptr, unsigned char, std::size_t, CUstream)                      \
  X(cuMemcpyBatchAsync, "cuMemcpyBatchAsync_v2", false, CUdeviceptr*, CUdeviceptr*, std::size_t*, std::size_t,        \
    CUmemcpyAttributes*, std::size_t*, std::size_t, CUstream)                                                         \
  X(cuMemcpyBatchAsyncFailing, "cuMemcpyBatchAsync", false, CUdeviceptr*, CUdeviceptr*, std::size_t*, std::size_t,    \
    CUmemcpyAttributes*, std::size_t*, std::size_t, std::size_t*, CUstream)                                           \
  X(cuModuleLoadData, "cuModuleLoadData", false, CUmodule*, const void*)                                              \
  X(cuModuleUnload, "cuModuleUnload", false, CUmodule)                                                                \
  X(cuModuleGetFunction, "cuModuleGetFunction", false, CUfunction*, CUmodule, const char*)                            \
  X(cuLaunchKernel, "cuLaunchKernel", false, CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,  \
    unsigned, CUstream, void**, void**)                                                                               \
  X(cuIpcGetMemHandle, "cuIpcGetMemHandle", false, CUipcMemHandle*, CUdeviceptr)                                      \
  X(cuIpcOpenMemHandle, "cuIpcOpenMemHandle_v2", false, CUdeviceptr*, CUipcMemHandle, unsigned)                       \
  X(cuIpcCloseMemHandle, "cuIpcCloseMemHandle", false, CUdeviceptr)                                                   \
  X(cuMemGetInfo, "cuMemGetInfo_v2", false, std::size_t*, std::size_t*)                                               \
  X(cuDeviceTotalMem, "cuDeviceTotalMem_v2", false, std::size_t*, CUdevice)
// clang-format on

// One entry point. False when the driver lacks it; a call then is the caller's bug.
template <typename... Parameters>
struct CudaCall {
  const char* symbol;
  CUresult (*address)(Parameters...) = nullptr;

  explicit operator bool() const { return address != nullptr; }
  CUresult operator()(Parameters... arguments) const { return address(arguments...); }
};

// A call to the driver that failed: "cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY: out of memory".
class CudaError : public std::runtime_error {
 public:
  CudaError(const std::string& message, CUresult number) : std::runtime_error(message), number_(number) {}
  CUresult number() const { return number_; }

 private:
  CUresult number_;
};

struct CudaDevice {
  int ordinal;
  std::string name;
  std::array<std::uint8_t, 16> uuid;
  std::string pci;  // bus id, such as "0000:c1:00.0"
};

// Never unloaded: what the driver started lives as long as the process does.
class CudaDriver {
 public:
  // `path` empty: libcuda.so.1. Never throws because there is none: reason() then says why.
  static std::shared_ptr<const CudaDriver> open(const std::string& path);

  bool usable() const { return reason_.empty(); }
  const std::string& reason() const { return reason_; }  // one line for people; empty when usable
  int version() const { return version_; }               // 13050 is 13.5; 0 when it was never asked
  const std::vector<CudaDevice>& devices() const { return devices_; }
  const std::vector<std::string>& missing() const { return missing_; }  // symbols it lacks, required or not

  std::string message(const char* call, CUresult result) const;

  // Calls, and throws CudaError unless the result is success: must(cuEventRecord, event, stream).
  template <typename... Parameters, typename... Arguments>
  void must(const CudaCall<Parameters...>& call, Arguments... arguments) const {
    const CUresult result = call(arguments...);
    if (result != CUDA_SUCCESS) throw CudaError(message(call.symbol, result), result);
  }

#define KVTIER_CUDA_MEMBER(member, symbol, required, ...) CudaCall<__VA_ARGS__> member{symbol};
  KVTIER_CUDA_CALLS(KVTIER_CUDA_MEMBER)
#undef KVTIER_CUDA_MEMBER

 private:
  CudaDriver() = default;
  void resolve(void* library);
  void start();

  std::string reason_;
  int version_ = 0;
  std::vector<CudaDevice> devices_;
  std::vector<std::string> missing_;
};

// A GPU with its primary context retained, the one that the runtime API, and so torch, works in.
class Device {
 public:
  // Throws std::invalid_argument (no usable driver, with its reason; no such device), CudaError.
  Device(std::shared_ptr<const CudaDriver> driver, int ordinal);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const CudaDriver& driver() const { return *driver_; }
  const CudaDevice& named() const { return named_; }
  CUdevice handle() const { return handle_; }
  CUcontext context() const { return context_; }
  int attribute(int number) const;
  bool forked() const;  // whether this is a child of the process that made it: nothing of CUDA works in one

 private:
  std::shared_ptr<const CudaDriver> driver_;
  CudaDevice named_;
  CUdevice handle_ = 0;
  CUcontext context_ = nullptr;
  const int owner_;
};

// While one of these lives, the device's context is current on this thread, and the thread's mode of capture is
// relaxed: to allocate, to register or to ask an event would else fail while another thread captures a CUDA graph, as
// engines do when they start, and break that capture, too. Throws CudaError.
class Current {
 public:
  explicit Current(const Device& device);
  ~Current();
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  const CudaDriver& driver_;
  int capture_mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;  // after the exchange: the one before
};

}  // namespace kvtier
