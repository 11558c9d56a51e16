// The driver's own symbols: streams, events, copies, kernels, memory.
#include <algorithm>
#include <cstring>
#include <string_view>

#include "entry.h"

using namespace fake;

// --- streams and events ------------------------------------------------------------------------------------------

API cuStreamCreateWithPriority(Handle* handle, unsigned flags, int priority) {
  return entered("cuStreamCreateWithPriority", kContext, [&](Lock&) {
    if (handle == nullptr || flags > kNonBlocking) return kInvalidValue;
    *handle = ++world().last_handle;
    world().streams[*handle] = begin_stream(current(), *handle, flags, std::clamp(priority, -5, 0));
    return kSuccess;
  });
}

API cuStreamDestroy_v2(Handle handle) {
  return entered("cuStreamDestroy_v2", kTeardown, [&](Lock&) {
    const auto found = world().streams.find(handle);
    if (found == world().streams.end()) return kInvalidHandle;
    if (planted(kDestroyForgotten)) return kSuccess;
    const std::shared_ptr<Stream> stream = found->second;
    world().streams.erase(found);
    end_stream(*stream);
    return kSuccess;
  });
}

API cuStreamSynchronize(Handle handle) {
  return on_stream("cuStreamSynchronize", handle, [&](Stream& stream, Lock& lock) {
    [[maybe_unused]] const auto kept = stream_of(current(), handle);
    drain(stream, lock);
    return stream.context->error;
  });
}

API cuStreamWaitEvent(Handle handle, Handle event, unsigned flags) {
  return on_stream("cuStreamWaitEvent", handle, [&](Stream& stream, Lock&) {
    const Event* const meant = event_of(event);
    if (meant == nullptr) return kInvalidHandle;
    if (flags != 0) return kInvalidValue;
    wait_for_event(stream, *meant);
    return kSuccess;
  });
}

API cuEventCreate(Handle* handle, unsigned flags) {
  return entered("cuEventCreate", kContext, [&](Lock&) {
    World& all = world();
    if (handle == nullptr || flags > 7) return kInvalidValue;
    if (planted(kEventHandedOutTwice) && ++all.events_created % 2 == 0) {
      for (const auto& [taken, event] : all.events) {
        if (event->flags != flags) continue;
        ++event->handed_out;
        *handle = taken;
        return kSuccess;
      }
    }
    *handle = ++all.last_handle;
    all.events[*handle] = std::make_shared<Event>(Event{*handle, &current(), flags, 1, nullptr, nullptr});
    return kSuccess;
  });
}

API cuEventDestroy_v2(Handle handle) {
  return entered("cuEventDestroy_v2", kTeardown, [&](Lock&) {
    Event* const event = event_of(handle);
    if (event == nullptr) return kInvalidHandle;
    if (!planted(kDestroyForgotten) && --event->handed_out == 0) world().events.erase(handle);
    return kSuccess;
  });
}

API cuEventRecord(Handle handle, Handle on) {
  return on_stream("cuEventRecord", on, [&](Stream& stream, Lock&) {
    Event* const event = event_of(handle);
    if (event == nullptr || event->context != stream.context) return kInvalidHandle;
    record_event(*event, stream);
    return kSuccess;
  });
}

API cuEventQuery(Handle handle) {
  return entered("cuEventQuery", kInit, [&](Lock&) {
    const Event* const event = event_of(handle);
    if (event == nullptr) return kInvalidHandle;
    if (event->context->error != kSuccess) return event->context->error;
    if (planted(kQuerySaysDone) && world().symbols["cuEventQuery"].calls % 3 == 0) return kSuccess;
    return !event->record || event->record->done ? kSuccess : kNotReady;
  });
}

API cuEventElapsedTime(float* milliseconds, Handle start, Handle end) {
  return entered("cuEventElapsedTime", kContext, [&](Lock&) {
    const Event* const first = event_of(start);
    const Event* const last = event_of(end);
    if (first == nullptr || last == nullptr || !first->record || !last->record) return kInvalidHandle;
    if ((first->flags | last->flags) & kDisableTiming) return kInvalidHandle;
    if (!first->record->done || !last->record->done) return kNotReady;
    *milliseconds = std::chrono::duration<float, std::milli>(last->record->at - first->record->at).count();
    return kSuccess;
  });
}

// --- copies ------------------------------------------------------------------------------------------------------

API cuMemcpyAsync(Address target, Address source, std::size_t size, Handle on) {
  return on_stream("cuMemcpyAsync", on, [&](Stream& stream, Lock& lock) {
    return copy_async(stream, {{target, source, size}}, SourceOrder::kStream, lock);
  }, true);
}

API cuMemsetD8Async(Address target, unsigned char byte, std::size_t size, Handle on) {
  return on_stream("cuMemsetD8Async", on,
                   [&](Stream& stream, Lock&) { return set_async(stream, target, byte, size); }, true);
}

struct CopyAttributes {
  int source_order;
  int source_hint[2], target_hint[2];
  unsigned flags;
};

struct Batch {
  const Address *targets, *sources;
  const std::size_t *sizes, count;
  const CopyAttributes* attributes;
  const std::size_t *first_of_attribute, attribute_count;
};

static Result copy_batch(Stream& stream, const Batch& batch, Lock& lock) {
  if (batch.count == 0 || batch.attribute_count == 0 || batch.attribute_count > batch.count) return kInvalidValue;
  if (stream.handle == 0 || batch.first_of_attribute[0] != 0) return kInvalidValue;
  int order = 1;
  for (std::size_t i = 0; i < batch.attribute_count; ++i) {
    const int asked = batch.attributes[i].source_order;
    if (asked < 1 || asked > 3 || batch.first_of_attribute[i] >= batch.count) return kInvalidValue;
    if (i > 0 && batch.first_of_attribute[i] <= batch.first_of_attribute[i - 1]) return kInvalidValue;
    order = std::max(order, asked);
  }
  std::vector<CopyOf> copies;
  for (std::size_t i = 0; i < batch.count; ++i) copies.push_back({batch.targets[i], batch.sources[i], batch.sizes[i]});
  if (planted(kBatchForgetsLast)) copies.pop_back();
  return copy_async(stream, std::move(copies), static_cast<SourceOrder>(order), lock);
}

API cuMemcpyBatchAsync_v2(const Address* targets, const Address* sources, const std::size_t* sizes, std::size_t count,
                          const CopyAttributes* attributes, const std::size_t* first, std::size_t attribute_count,
                          Handle on) {
  return on_stream("cuMemcpyBatchAsync_v2", on, [&](Stream& stream, Lock& lock) {
    return copy_batch(stream, {targets, sources, sizes, count, attributes, first, attribute_count}, lock);
  }, true);
}

API cuMemcpyBatchAsync(const Address* targets, const Address* sources, const std::size_t* sizes, std::size_t count,
                       const CopyAttributes* attributes, const std::size_t* first, std::size_t attribute_count,
                       std::size_t* failed, Handle on) {
  return on_stream("cuMemcpyBatchAsync", on, [&](Stream& stream, Lock& lock) {
    const Result result = copy_batch(stream, {targets, sources, sizes, count, attributes, first, attribute_count}, lock);
    if (result != kSuccess && failed != nullptr) *failed = ~std::size_t{0};
    return result;
  }, true);
}

// --- kernels: one is known, by its name ---------------------------------------------------------------------------

API cuModuleLoadData(Handle* module, const char* image) {
  return entered("cuModuleLoadData", kContext, [&](Lock&) {
    if (module == nullptr || image == nullptr) return kInvalidValue;
    if (std::string_view(image).find(".entry kvtier_copy") == std::string_view::npos) return kInvalidPtx;
    *module = ++world().last_handle;
    world().modules[*module] = {};
    return kSuccess;
  });
}

API cuModuleUnload(Handle module) {
  return entered("cuModuleUnload", kTeardown,
                 [&](Lock&) { return world().modules.erase(module) == 1 ? kSuccess : kInvalidHandle; });
}

API cuModuleGetFunction(Handle* function, Handle module, const char* name) {
  return entered("cuModuleGetFunction", kContext, [&](Lock&) {
    if (!world().modules.contains(module)) return kInvalidHandle;
    if (std::string_view(name) != "kvtier_copy") return kNotFound;
    *function = ++world().last_handle;
    world().modules[module].push_back(*function);
    return kSuccess;
  });
}

API cuLaunchKernel(Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned /*shared_bytes*/, Handle on, void** parameters, void** extra) {
  return on_stream("cuLaunchKernel", on, [&](Stream& stream, Lock&) {
    const auto& modules = world().modules;
    const auto has = [&](const auto& m) { return std::find(m.second.begin(), m.second.end(), function) != m.second.end(); };
    if (std::none_of(modules.begin(), modules.end(), has)) return kInvalidHandle;
    if (grid_x * grid_y * grid_z == 0 || block_x * block_y * block_z == 0 || block_x * block_y * block_z > 1024)
      return kInvalidValue;
    if (parameters == nullptr || extra != nullptr) return kInvalidValue;
    Address table = 0;
    std::uint32_t count = 0;
    std::memcpy(&table, parameters[0], sizeof table);  // parameters are taken by value when the kernel is launched
    std::memcpy(&count, parameters[1], sizeof count);
    return launch_copies(stream, table, count);
  }, true);
}

// --- memory ------------------------------------------------------------------------------------------------------

API cuMemAlloc_v2(Address* at, std::size_t size) {
  return entered("cuMemAlloc_v2", kContext, [&](Lock&) { return allocate(current(), size, at); });
}

API cuMemFree_v2(Address at) {
  return entered("cuMemFree_v2", kTeardown, [&](Lock&) { return free_memory(at); });
}

API cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  return entered("cuMemGetInfo_v2", kContext, [&](Lock&) {
    *total = static_cast<std::size_t>(settings().memory_limit);
    *free = *total - current().reserved;
    return kSuccess;
  });
}

API cuMemHostAlloc(Address* at, std::size_t size, unsigned /*flags*/) {
  return entered("cuMemHostAlloc", kContext, [&](Lock&) { return allocate_host(size, at); });
}

API cuMemFreeHost(Address at) {
  return entered("cuMemFreeHost", kTeardown, [&](Lock&) { return free_host(at); });
}

API cuMemHostRegister_v2(Address at, std::size_t size, unsigned /*flags*/) {
  return entered("cuMemHostRegister_v2", kContext, [&](Lock& lock) { return register_host(at, size, lock); });
}

API cuMemHostUnregister(Address at) {
  return entered("cuMemHostUnregister", kTeardown, [&](Lock&) { return unregister_host(at); });
}

API cuIpcGetMemHandle(unsigned char* handle, Address at) {
  return entered("cuIpcGetMemHandle", kContext, [&](Lock&) { return export_handle(at, handle); });
}

struct IpcHandle {
  unsigned char bytes[64];
};

API cuIpcOpenMemHandle_v2(Address* at, IpcHandle handle, unsigned flags) {
  return entered("cuIpcOpenMemHandle_v2", kContext, [&](Lock&) {
    return flags == 1 ? import_handle(current(), handle.bytes, at) : kInvalidValue;  // 1: with peer access, and no other
  });
}

API cuIpcCloseMemHandle(Address at) {
  return entered("cuIpcCloseMemHandle", kTeardown, [&](Lock&) { return close_import(at); });
}
