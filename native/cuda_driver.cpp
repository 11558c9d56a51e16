#include "cuda_driver.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace kvtier {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";

std::shared_ptr<const CudaDriver> checked(std::shared_ptr<const CudaDriver> driver, int ordinal) {
  if (!driver->usable()) throw std::invalid_argument(driver->reason());
  const auto count = static_cast<int>(driver->devices().size());
  if (ordinal < 0 || ordinal >= count)
    throw std::invalid_argument("device must be 0 to " + std::to_string(count - 1) + ", not " +
                                std::to_string(ordinal));
  return driver;
}

CudaDevice described(const CudaDriver& driver, int ordinal) {
  CUdevice device = 0;
  driver.must(driver.cuDeviceGet, &device, ordinal);
  std::array<char, 256> name{};
  driver.must(driver.cuDeviceGetName, name.data(), static_cast<int>(name.size()) - 1, device);
  std::array<char, 64> pci{};
  driver.must(driver.cuDeviceGetPCIBusId, pci.data(), static_cast<int>(pci.size()) - 1, device);
  CUuuid uuid{};
  driver.must(driver.cuDeviceGetUuid, &uuid, device);
  return {ordinal, name.data(), std::to_array(uuid.bytes), pci.data()};
}

}  // namespace

std::shared_ptr<const CudaDriver> CudaDriver::open(const std::string& path) {
  const std::shared_ptr<CudaDriver> driver(new CudaDriver);
  void* const library = dlopen(path.empty() ? kLibrary : path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const why = dlerror();
    driver->reason_ = std::string("no NVIDIA driver: ") + (why == nullptr ? kLibrary : why);
    return driver;
  }
  driver->resolve(library);
  if (!driver->usable()) return driver;
  try {
    driver->start();
  } catch (const CudaError& failure) {
    driver->reason_ = failure.what();
    driver->devices_.clear();
  }
  return driver;
}

void CudaDriver::resolve(void* library) {
  // The template reads the signature off the member, so that table and cast can't disagree.
  const auto find = [&]<typename... Parameters>(CudaCall<Parameters...>& call, bool required) {
    call.address = reinterpret_cast<CUresult (*)(Parameters...)>(dlsym(library, call.symbol));
    if (call) return;
    missing_.emplace_back(call.symbol);
    if (required && reason_.empty()) reason_ = std::string("the driver lacks ") + call.symbol;
  };
#define KVTIER_CUDA_FIND(member, symbol, required, ...) find(member, required);
  KVTIER_CUDA_CALLS(KVTIER_CUDA_FIND)
#undef KVTIER_CUDA_FIND
}

void CudaDriver::start() {
  must(cuInit, 0u);
  must(cuDriverGetVersion, &version_);
  int count = 0;
  must(cuDeviceGetCount, &count);
  for (int ordinal = 0; ordinal < count; ++ordinal) devices_.push_back(described(*this, ordinal));
  if (devices_.empty()) reason_ = "the driver knows no GPU";
}

std::string CudaDriver::message(const char* call, CUresult result) const {
  const char* name = nullptr;
  const char* text = nullptr;
  if (cuGetErrorName(result, &name) != CUDA_SUCCESS || name == nullptr)
    return std::string(call) + ": error " + std::to_string(result);
  if (cuGetErrorString(result, &text) != CUDA_SUCCESS || text == nullptr) text = "no description";
  return std::string(call) + ": " + name + ": " + text;
}

Device::Device(std::shared_ptr<const CudaDriver> driver, int ordinal)
    : driver_(checked(std::move(driver), ordinal)), named_(driver_->devices()[static_cast<std::size_t>(ordinal)]),
      owner_(getpid()) {
  driver_->must(driver_->cuDeviceGet, &handle_, ordinal);
  driver_->must(driver_->cuDevicePrimaryCtxRetain, &context_, handle_);
}

// An error changes nothing: at the end of a process the driver may be gone before its users.
Device::~Device() {
  if (!forked()) static_cast<void>(driver_->cuDevicePrimaryCtxRelease(handle_));
}

int Device::attribute(int number) const {
  int value = 0;
  driver_->must(driver_->cuDeviceGetAttribute, &value, number, handle_);
  return value;
}

bool Device::forked() const { return getpid() != owner_; }

Current::Current(const Device& device) : driver_(device.driver()) {
  driver_.must(driver_.cuCtxPushCurrent, device.context());
  static_cast<void>(driver_.cuThreadExchangeStreamCaptureMode(&capture_mode_));  // fails only where all the rest does
}

Current::~Current() {
  static_cast<void>(driver_.cuThreadExchangeStreamCaptureMode(&capture_mode_));
  CUcontext popped = nullptr;
  static_cast<void>(driver_.cuCtxPopCurrent(&popped));
}

}  // namespace kvtier
