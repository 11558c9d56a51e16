// What a test says to the driver and asks it, by name. A name that means nothing ends the program: a test that sets it
// would test nothing.
//
// fake_cuda_set:
//   a setting            seed max_delay_us devices version memory_limit lockable_limit register_delay_us
//                        host_pointer_usable (0: a kernel reaches registered memory by no host address)
//                        capturing (1: a thread of somebody else captures a graph, in the global mode)
//   fail_in_stream n     the n-th copy from now on breaks the context when it is done (fail_in_stream_code: with what)
//   plant:NAME 0|1       see kPlantNames
//   fail_code:SYMBOL c   what fail_at answers (999). Errors that break a context do
//   fail_for:SYMBOL n    so many calls in a row (1; 0: all)
//   fail_at:SYMBOL n     the n-th call from now on fails; 0: none. What was asked may have been begun nevertheless
//   engine_stream h, hold h, let_go h, poison CODE (the contexts of all devices)
// fake_cuda_get: a setting; live_streams live_events live_allocations live_host_allocations live_registrations
//   live_contexts live_ipc_maps live_modules live_threads; current (contexts pushed and not popped, on all threads);
//   device_bytes locked_bytes; errors pageable_copies leaked_at_reset captures_broken; calls:SYMBOL
// fake_cuda_reset: everything is forgotten, settings too, but cuInit. No thread may be in the driver.
#include <algorithm>
#include <cstring>
#include <string_view>

#include "fake_cuda.h"

namespace fake {
namespace {

const char* const kPlantNames[] = {
    "wait_event_ignored", "only_first_wait_counts", "wait_takes_former_record", "after_recorded_on_own_stream",
    "done_event_recorded_early", "query_says_done", "copies_on_a_second_stream", "source_read_at_the_call",
    "event_handed_out_twice", "batch_does_all_but_the_last", "kernel_does_all_but_the_last", "errors_ignored",
    "destroy_forgotten"};
static_assert(std::size(kPlantNames) == kPlants);

std::atomic<long>* setting(std::string_view name) {
  Settings& all = settings();
  const std::pair<const char*, std::atomic<long>*> known[] = {
      {"seed", &all.seed},
      {"max_delay_us", &all.max_delay_us},
      {"devices", &all.devices},
      {"version", &all.version},
      {"memory_limit", &all.memory_limit},
      {"lockable_limit", &all.lockable_limit},
      {"register_delay_us", &all.register_delay_us},
      {"host_pointer_usable", &all.host_pointer_usable},
      {"fail_in_stream", &all.fail_in_stream},
      {"fail_in_stream_code", &all.fail_in_stream_code},
      {"capturing", &all.capturing},
  };
  for (const auto& [known_name, value] : known)
    if (name == known_name) return value;
  return nullptr;
}

Plant plant_named(std::string_view name) {
  const auto* const found = std::find(std::begin(kPlantNames), std::end(kPlantNames), name);
  if (found == std::end(kPlantNames)) die("no plant is called " + std::string(name));
  return static_cast<Plant>(found - kPlantNames);
}

Stream& stream_named(Handle handle) {
  World& all = world();
  if (handle <= 1) {
    for (Context& context : all.contexts)
      if (context.retained > 0) return *stream_of(context, handle);
    die("there is no context");
  }
  if (!all.streams.contains(handle)) die("no stream has the handle " + std::to_string(handle));
  return *all.streams.at(handle);
}

bool set_symbol(const std::string& what, const std::string& symbol, long value) {
  Symbol& meant = world().symbols[symbol];
  if (what == "fail_code") meant.code = static_cast<Result>(value);
  if (what == "fail_for") meant.fail_for = value;
  if (what == "fail_at") meant.fail_at = value == 0 ? 0 : meant.calls + value;
  return what == "fail_code" || what == "fail_for" || what == "fail_at";
}

bool set_stream(const std::string& name, long value) {
  if (name != "engine_stream" && name != "hold" && name != "let_go") return false;
  Stream& stream = stream_named(static_cast<Handle>(value));
  if (name == "engine_stream") stream.engine = true;
  if (name != "engine_stream") stream.held = name == "hold";
  stream.work.notify_all();
  return true;
}

long count_ranges(Kind kind) {
  const auto& ranges = world().ranges;
  return std::count_if(ranges.begin(), ranges.end(), [&](const auto& entry) { return entry.second.kind == kind; });
}

long count(const std::string& name) {
  World& all = world();
  if (name == "live_streams") return static_cast<long>(all.streams.size());
  if (name == "live_events") return static_cast<long>(all.events.size());
  if (name == "live_allocations") return count_ranges(Kind::kDevice);
  if (name == "live_host_allocations") return count_ranges(Kind::kHostAllocated);
  if (name == "live_registrations") return count_ranges(Kind::kRegistered);
  if (name == "live_ipc_maps") return count_ranges(Kind::kImported);
  if (name == "live_modules") return static_cast<long>(all.modules.size());
  if (name == "live_threads") return static_cast<long>(all.all_streams.size());
  if (name == "current") return all.current;
  if (name == "locked_bytes") return static_cast<long>(all.locked);
  if (name == "errors") return all.errors;
  if (name == "pageable_copies") return all.pageable_copies;
  if (name == "leaked_at_reset") return all.leaked_at_reset;
  if (name == "captures_broken") return all.captures_broken;
  long contexts = 0, bytes = 0;
  for (const Context& context : all.contexts) {
    contexts += context.retained;
    bytes += static_cast<long>(context.reserved);
  }
  if (name == "live_contexts") return contexts;
  if (name == "device_bytes") return bytes;
  die("nothing is called " + name);
}

}  // namespace

Settings& settings() {
  static Settings& all = *new Settings;  // threads may outlive the end of main
  return all;
}

World& world() {
  static World& all = *new World;
  return all;
}

std::vector<Context*>& current_contexts() {
  static thread_local std::vector<Context*> stack;
  return stack;
}

int& capture_mode() {
  static thread_local int mode = 0;
  return mode;
}

bool is_sticky(Result code) {
  return code == 214 || code == kIllegalAddress || code == 702 || code == 710 || (code >= 714 && code <= 719);
}

}  // namespace fake

using namespace fake;

extern "C" __attribute__((visibility("default"))) void fake_cuda_set(const char* asked, long value) {
  const Lock lock(world().mutex);
  const std::string name(asked);
  const std::size_t colon = name.find(':');
  if (name.starts_with("plant:")) {
    settings().plants[plant_named(name.substr(6))] = value != 0;
  } else if (std::atomic<long>* const found = setting(name)) {
    *found = value;
  } else if (name == "poison") {
    for (Context& context : world().contexts) poison(context, static_cast<Result>(value));
  } else if (colon != std::string::npos ? !set_symbol(name.substr(0, colon), name.substr(colon + 1), value)
                                        : !set_stream(name, value)) {
    die("nothing is called " + name);
  }
}

extern "C" __attribute__((visibility("default"))) long fake_cuda_get(const char* asked) {
  const Lock lock(world().mutex);
  const std::string name(asked);
  if (name.starts_with("calls:")) return world().symbols[name.substr(6)].calls;
  const std::atomic<long>* const found = setting(name);
  return found != nullptr ? found->load() : count(name);
}

// The bytes that `seed` stands for: those of fake_cuda_fill. 0 stands for zeros.
extern "C" __attribute__((visibility("default"))) void fake_cuda_pattern(unsigned char* target, std::size_t size,
                                                                         std::uint64_t seed) {
  if (seed == 0) std::memset(target, 0, size);
  if (seed == 0) return;
  Random random{seed};
  for (std::size_t at = 0; at < size; at += 8) {
    const std::uint64_t word = random.next();
    std::memcpy(target + at, &word, std::min<std::size_t>(8, size - at));
  }
}

// What kernels of the engine would do, in the turn of `stream`, in pieces: one writes the bytes that `seed` stands for,
// one reads into memory of the test. They return a CUresult.
static Result run_on(Handle handle, Address at, std::uint64_t size, std::function<void(Context&, Random&)> run) {
  const Lock lock(world().mutex);
  if (current_contexts().empty()) return kInvalidContext;
  Context& context = *current_contexts().back();
  const std::shared_ptr<Stream> stream = stream_of(context, handle);
  if (!stream || place_of({at, size}) != Place::kDevice) return kInvalidHandle;
  enqueue(*stream, {{}, [run = std::move(run), &context](Random& random) { run(context, random); }, {}, false});
  return kSuccess;
}

extern "C" __attribute__((visibility("default"))) int fake_cuda_fill(Handle stream, Address target, std::uint64_t size,
                                                                     std::uint64_t seed) {
  return run_on(stream, target, size, [=](Context& context, Random& random) {
    std::vector<unsigned char> bytes(size);
    fake_cuda_pattern(bytes.data(), size, seed);
    copy_in_pieces(context, target, reinterpret_cast<Address>(bytes.data()), size, random);
  });
}

extern "C" __attribute__((visibility("default"))) int fake_cuda_read(Handle stream, void* target, Address source,
                                                                     std::uint64_t size) {
  return run_on(stream, source, size, [=](Context& context, Random& random) {
    copy_in_pieces(context, reinterpret_cast<Address>(target), source, size, random);
  });
}

extern "C" __attribute__((visibility("default"))) void fake_cuda_reset() {
  Lock lock(world().mutex);
  World& all = world();
  for (Context& context : all.contexts) context.error = kSuccess;
  halt_streams(nullptr, lock);
  forget_memory(nullptr);
  all.events.clear();
  all.modules.clear();
  all.symbols.clear();
  for (Context& context : all.contexts) context.retained = 0, context.handle = 0;
  all.streams_begun = all.events_created = 0;
  all.errors = all.pageable_copies = all.leaked_at_reset = all.current = all.captures_broken = 0;
  current_contexts().clear();
  for (auto& plant : settings().plants) plant = false;
  const Settings fresh;
  for (const char* name :
       {"seed", "max_delay_us", "devices", "version", "memory_limit", "lockable_limit", "register_delay_us",
        "host_pointer_usable", "fail_in_stream", "fail_in_stream_code", "capturing"}) {
    std::atomic<long>* const now = setting(name);
    const auto offset = reinterpret_cast<const char*>(now) - reinterpret_cast<const char*>(&settings());
    *now = reinterpret_cast<const std::atomic<long>*>(reinterpret_cast<const char*>(&fresh) + offset)->load();
  }
}
