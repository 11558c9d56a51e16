// The driver's own symbols: the driver, its devices and contexts. The others are in calls.cpp.
#include <pthread.h>

#include <algorithm>
#include <cstdio>

#include "entry.h"

using namespace fake;

namespace {

std::atomic<bool> forked{false};
[[maybe_unused]] const int watched = pthread_atfork(nullptr, nullptr, [] { forked = true; });

bool is_device(int device) { return device >= 0 && device < settings().devices; }

Context& context_of(int device) { return world().contexts[static_cast<std::size_t>(device)]; }

Result copy_text(char* target, int room, const std::string& text) {
  if (target == nullptr || room <= 0) return kInvalidValue;
  std::snprintf(target, static_cast<std::size_t>(room), "%s", text.c_str());
  return kSuccess;
}

// A context ends with its last holder, and everything in it.
void reset_context(Context& context, Lock& lock) {
  World& all = world();
  const auto of_device = [&](const auto& entry) { return entry.second->context == &context; };
  all.leaked_at_reset += std::count_if(all.streams.begin(), all.streams.end(), of_device);
  all.leaked_at_reset += static_cast<long>(std::erase_if(all.events, of_device));
  for (const auto& [base, range] : all.ranges)
    all.leaked_at_reset += range.device == context.device && range.kind != Kind::kFreed;
  halt_streams(&context, lock);
  forget_memory(&context);
}

struct Error {
  Result code;
  const char* name;
  const char* text;
};
constexpr Error kErrors[] = {
    {kSuccess, "CUDA_SUCCESS", "no error"},
    {kInvalidValue, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {kNotInitialized, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {kNoDevice, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {kMapFailed, "CUDA_ERROR_MAP_FAILED", "mapping of buffer object failed"},
    {kInvalidPtx, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {kNotFound, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {kNotReady, "CUDA_ERROR_NOT_READY", "device not ready"},
    {kIllegalAddress, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {kContextDestroyed, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {kCapturing, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {kAlreadyRegistered, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the memory is registered already"},
    {kNotRegistered, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "the memory was not registered"},
    {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {kUnknown, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

Result describe(Result code, const char** text, const char* Error::*part) {
  if (text == nullptr) return kInvalidValue;
  const auto* const found = std::find_if(std::begin(kErrors), std::end(kErrors), [&](auto& e) { return e.code == code; });
  *text = found == std::end(kErrors) ? nullptr : (*found).*part;
  return *text == nullptr ? kInvalidValue : kSuccess;
}

}  // namespace

bool fake::is_forked() { return forked; }

Result fake::refusal(Needs needs) {
  if (needs != kNothing && !world().initialized) return kNotInitialized;
  if (needs != kContext && needs != kTeardown) return kSuccess;
  if (current_contexts().empty()) return kInvalidContext;
  if (current().retained == 0) return kContextDestroyed;
  return needs == kContext ? current().error : kSuccess;
}

bool fake::breaks_capture(std::string_view name) {
  static constexpr std::string_view unsafe[] = {
      "cuMemAlloc_v2", "cuMemFree_v2", "cuMemHostAlloc", "cuMemFreeHost", "cuMemHostRegister_v2", "cuMemHostUnregister",
      "cuEventQuery", "cuStreamSynchronize", "cuModuleLoadData", "cuIpcOpenMemHandle_v2", "cuIpcCloseMemHandle"};
  return capture_mode() == 0 && std::find(std::begin(unsafe), std::end(unsafe), name) != std::end(unsafe);
}

// --- the driver and its devices ----------------------------------------------------------------------------------

API cuInit(unsigned flags) {
  return entered("cuInit", kNothing, [&](Lock&) {
    if (flags != 0) return kInvalidValue;
    if (settings().devices == 0) return kNoDevice;
    world().initialized = true;
    return kSuccess;
  });
}

API cuDriverGetVersion(int* version) {
  return entered("cuDriverGetVersion", kNothing, [&](Lock&) {
    if (version == nullptr) return kInvalidValue;
    *version = static_cast<int>(settings().version);
    return kSuccess;
  });
}

API cuGetErrorName(Result code, const char** text) { return describe(code, text, &Error::name); }
API cuGetErrorString(Result code, const char** text) { return describe(code, text, &Error::text); }

API cuDeviceGetCount(int* count) {
  return entered("cuDeviceGetCount", kInit, [&](Lock&) {
    *count = static_cast<int>(settings().devices);
    return kSuccess;
  });
}

API cuDeviceGet(int* device, int ordinal) {
  return entered("cuDeviceGet", kInit, [&](Lock&) {
    if (!is_device(ordinal)) return kInvalidDevice;
    *device = ordinal;
    return kSuccess;
  });
}

API cuDeviceGetName(char* name, int room, int device) {
  return entered("cuDeviceGetName", kInit, [&](Lock&) {
    return is_device(device) ? copy_text(name, room, "Fake GPU " + std::to_string(device)) : kInvalidDevice;
  });
}

API cuDeviceGetPCIBusId(char* id, int room, int device) {
  return entered("cuDeviceGetPCIBusId", kInit, [&](Lock&) {
    return is_device(device) ? copy_text(id, room, "0000:0" + std::to_string(device) + ":00.0") : kInvalidDevice;
  });
}

API cuDeviceGetUuid_v2(unsigned char* uuid, int device) {
  return entered("cuDeviceGetUuid_v2", kInit, [&](Lock&) {
    if (!is_device(device)) return kInvalidDevice;
    for (int i = 0; i < 16; ++i) uuid[i] = static_cast<unsigned char>(0xF0 + 16 * device + i);
    return kSuccess;
  });
}

API cuDeviceTotalMem_v2(std::size_t* bytes, int device) {
  return entered("cuDeviceTotalMem_v2", kInit, [&](Lock&) {
    if (!is_device(device)) return kInvalidDevice;
    *bytes = static_cast<std::size_t>(settings().memory_limit);
    return kSuccess;
  });
}

API cuDeviceGetAttribute(int* value, int attribute, int device) {
  return entered("cuDeviceGetAttribute", kInit, [&](Lock&) {
    static constexpr std::pair<int, int> known[] = {
        {16, 132}, {19, 1}, {34, 0}, {40, 3}, {41, 1}, {50, 0}, {75, 9}, {76, 0}, {78, 1}, {99, 1}};
    if (!is_device(device)) return kInvalidDevice;
    if (attribute == 33) *value = device;                                             // the PCI bus
    if (attribute == 91) *value = static_cast<int>(settings().host_pointer_usable);  // of registered memory
    for (const auto& [number, answer] : known)
      if (number == attribute) *value = answer;
    const bool is_known = attribute == 33 || attribute == 91 ||
                          std::any_of(std::begin(known), std::end(known), [&](auto& k) { return k.first == attribute; });
    return is_known ? kSuccess : kInvalidValue;
  });
}

// --- contexts ----------------------------------------------------------------------------------------------------

API cuDevicePrimaryCtxRetain(Handle* handle, int device) {
  return entered("cuDevicePrimaryCtxRetain", kInit, [&](Lock&) {
    if (!is_device(device)) return kInvalidDevice;
    Context& context = context_of(device);
    context.device = device;
    if (context.handle == 0) context.handle = ++world().last_handle;
    ++context.retained;
    *handle = context.handle;
    return kSuccess;
  });
}

API cuDevicePrimaryCtxRelease_v2(int device) {
  return entered("cuDevicePrimaryCtxRelease_v2", kInit, [&](Lock& lock) {
    if (!is_device(device)) return kInvalidDevice;
    Context& context = context_of(device);
    if (context.retained == 0) return kInvalidContext;
    if (--context.retained == 0) reset_context(context, lock);
    return kSuccess;
  });
}

API cuCtxPushCurrent_v2(Handle handle) {
  return entered("cuCtxPushCurrent_v2", kInit, [&](Lock&) {
    for (Context& context : world().contexts) {
      if (context.handle != handle || context.retained == 0) continue;
      current_contexts().push_back(&context);
      ++world().current;
      return kSuccess;
    }
    return kInvalidContext;
  });
}

API cuCtxPopCurrent_v2(Handle* handle) {
  return entered("cuCtxPopCurrent_v2", kInit, [&](Lock&) {
    if (current_contexts().empty()) return kInvalidContext;
    if (handle != nullptr) *handle = current().handle;
    current_contexts().pop_back();
    --world().current;
    return kSuccess;
  });
}

API cuThreadExchangeStreamCaptureMode(int* mode) {
  return entered("cuThreadExchangeStreamCaptureMode", kInit, [&](Lock&) {
    if (mode == nullptr || *mode < 0 || *mode > 2) return kInvalidValue;
    std::swap(capture_mode(), *mode);
    return kSuccess;
  });
}

API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  return entered("cuCtxGetStreamPriorityRange", kContext, [&](Lock&) {
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return kSuccess;
  });
}
