// A CUDA driver without a GPU: what its four parts know of each other.
//
// It does what the driver API's documentation says, as late and as torn as that allows: a stream is a thread that takes
// its operations in order, each after a random delay; a copy reads its source when its turn comes, in pieces, with more
// delays between them. Device memory is memory of this process, so a test may look at it; the product never may.
//
// One mutex guards everything. Bytes are moved without it.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace fake {

using Result = int;
using Handle = std::uint64_t;  // never handed out twice, so that use after the end is always seen
using Address = std::uint64_t;
using Clock = std::chrono::steady_clock;
using Lock = std::unique_lock<std::mutex>;

inline constexpr Result kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNotInitialized = 3, kNoDevice = 100,
                        kInvalidDevice = 101, kInvalidContext = 201, kMapFailed = 205, kInvalidPtx = 218,
                        kInvalidHandle = 400, kNotFound = 500, kNotReady = 600, kIllegalAddress = 700, kCapturing = 900,
                        kContextDestroyed = 709, kAlreadyRegistered = 712, kNotRegistered = 713, kLaunchFailed = 719,
                        kUnknown = 999;
inline constexpr unsigned kNonBlocking = 1;     // of a stream
inline constexpr unsigned kDisableTiming = 2;   // of an event
inline constexpr int kMostDevices = 8;

struct Random {
  std::uint64_t state;
  std::uint64_t next() {
    std::uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t end) { return next() % end; }
};

// --- control.cpp: what a test sets and asks ---------------------------------------------------------------------

// Each makes the driver behave as if a buggy backend had called it in another way.
enum Plant {
  kWaitEventIgnored,         // the copy stream never waits for the engine's
  kOnlyFirstWaitCounts,      // ... but for its first job
  kWaitTakesFormerRecord,    // the wait was called before the record
  kAfterRecordedOnOwnStream,  // the event says what the copy stream has done, not the engine's
  kDoneRecordedEarly,        // the done event goes before the last copy
  kQuerySaysDone,            // completion is sometimes believed without asking the event
  kCopiesOnSecondStream,     // copies go to a stream that nobody orders
  kSourceReadAtTheCall,      // srcAccessOrder is not the stream's
  kEventHandedOutTwice,      // an event goes back to the pool while it is used
  kBatchForgetsLast,
  kKernelForgetsLast,
  kErrorsIgnored,            // nobody looked at the result of a call
  kDestroyForgotten,
  kPlants
};

struct Settings {
  std::atomic<long> seed{0}, max_delay_us{0}, devices{2}, version{13050}, memory_limit{1L << 40},
      lockable_limit{1L << 40}, register_delay_us{0}, host_pointer_usable{1}, fail_in_stream{0},
      fail_in_stream_code{kIllegalAddress}, capturing{0};
  std::array<std::atomic<bool>, kPlants> plants{};
};
Settings& settings();
inline bool planted(Plant plant) { return settings().plants[plant]; }

struct Symbol {
  long calls = 0;
  long fail_at = 0;   // the number of the call, as counted in `calls`; 0: none
  long fail_for = 1;  // so many calls in a row; 0: all from there
  Result code = kUnknown;
  bool fails_now() const { return fail_at > 0 && calls >= fail_at && (fail_for == 0 || calls < fail_at + fail_for); }
};
bool is_sticky(Result code);  // after such an error a context answers nothing else

// --- streams.cpp ------------------------------------------------------------------------------------------------

struct Context {
  int device = 0;
  Handle handle = 0;
  int retained = 0;
  Result error = kSuccess;          // sticky: every call answers it, and nothing is written any more
  std::atomic<bool> dying{false};   // no piece of a copy may begin
  std::atomic<int> writers{0};      // pieces being copied
  std::mutex written;               // tells ThreadSanitizer, which sees no atomic of a plain library, what `writers` does
  std::uint64_t reserved = 0;       // bytes of device memory
};

struct Record {  // what one cuEventRecord captured
  bool done = false;
  Clock::time_point at;
};

struct Event {
  Handle handle;
  Context* context;
  unsigned flags;
  int handed_out = 1;  // more than 1 only by the plant
  std::shared_ptr<Record> record, former;
};

struct Stream;
struct Operation {
  std::function<bool()> ready;           // asked under the mutex; empty: at once
  std::function<void(Random&)> run;      // without the mutex
  std::function<void()> finish;          // under the mutex
  bool copies = false;
};

struct Stream {
  Context* context;
  Handle handle;
  unsigned flags;
  int priority;
  Random random;
  bool engine = false;  // a test's own: plants leave it alone
  bool held = false, closing = false, over = false, running_copies = false, has_waited = false;
  std::deque<Operation> queue;
  std::uint64_t queued = 0, completed = 0;
  std::multiset<std::uint64_t> milestones;  // of `completed`: somebody waits for these
  std::condition_variable work;
  std::shared_ptr<Stream> twin;
  std::thread thread;
};

std::shared_ptr<Stream> begin_stream(Context& context, Handle handle, unsigned flags, int priority);
// Null for an unknown handle, or for one of another context. 0 and 1 are the legacy stream of `context`.
std::shared_ptr<Stream> stream_of(Context& context, Handle handle);
void enqueue(Stream& stream, Operation operation);
// Copies go here: the stream itself, but for a plant.
Stream& copying(Stream& stream);
// Until all that is queued now has been done, or the context is dead.
void drain(Stream& stream, Lock& lock);
void end_stream(Stream& stream);
void pause(Random& random);
void poison(Context& context, Result code);
// Ends all streams of a context without doing what they have queued (of all contexts: null).
void halt_streams(const Context* context, Lock& lock);
void record_event(Event& event, Stream& stream);
void wait_for_event(Stream& stream, const Event& event);
// Under no mutex, on a stream's thread. Stops at once when the context dies.
void copy_in_pieces(Context& context, Address target, Address source, std::uint64_t size, Random& random);
void write_in_pieces(Context& context, std::uint64_t size, Random& random,
                     const std::function<void(std::uint64_t begin, std::uint64_t size)>& write);

// --- memory.cpp -------------------------------------------------------------------------------------------------

enum class Kind { kDevice, kImported, kHostAllocated, kRegistered, kFreed };
struct Range {
  Kind kind;
  std::uint64_t size;
  int device;
  int fd = -1;                     // of device memory: what an IPC handle names
  std::uint64_t inode = 0;
  int opened = 0;                  // times, of an import
};
struct Extent {
  Address address;
  std::uint64_t size;
};
enum class Place { kDevice, kPinned, kPageable, kFreed, kStraddles };
Place place_of(Extent extent, int* device = nullptr);

struct CopyOf {
  Address target, source;
  std::uint64_t size;
};
// cuMemcpyAsync and a batch: in any order, all in one turn of the stream. Pageable memory makes it wait.
enum class SourceOrder { kStream = 1, kDuringCall = 2, kAny = 3 };
Result copy_async(Stream& stream, std::vector<CopyOf> copies, SourceOrder order, Lock& lock);
Result launch_copies(Stream& stream, Address table, std::uint32_t count);
Result set_async(Stream& stream, Address target, unsigned char byte, std::uint64_t size);

Result allocate(Context& context, std::uint64_t size, Address* at);
Result free_memory(Address at);
Result allocate_host(std::uint64_t size, Address* at);
Result free_host(Address at);
Result register_host(Address at, std::uint64_t size, Lock& lock);
Result unregister_host(Address at);
Result export_handle(Address at, unsigned char* handle);
Result import_handle(Context& context, const unsigned char* handle, Address* at);
Result close_import(Address at);
void forget_memory(const Context* context);
[[noreturn]] void die(const std::string& why);

// --- everything there is ----------------------------------------------------------------------------------------

struct World {
  std::mutex mutex;
  std::condition_variable finished;  // an operation is over, a stream ended or a context died
  bool initialized = false;
  Handle last_handle = 0x10000;
  std::array<Context, kMostDevices> contexts;
  std::map<Handle, std::shared_ptr<Stream>> streams;
  std::map<int, std::shared_ptr<Stream>> legacy_streams;  // of a device
  std::vector<std::shared_ptr<Stream>> all_streams;       // these, twins, and those destroyed and not yet over
  std::map<Handle, std::shared_ptr<Event>> events;
  std::map<Handle, std::vector<Handle>> modules;  // and their functions
  std::map<Address, Range> ranges;
  std::map<std::string, Symbol> symbols;
  std::uint64_t locked = 0, streams_begun = 0, events_created = 0;
  long errors = 0, pageable_copies = 0, leaked_at_reset = 0, current = 0, captures_broken = 0;
};
World& world();
std::vector<Context*>& current_contexts();  // of this thread
int& capture_mode();                        // of this thread: 0 global, 1 thread-local, 2 relaxed

}  // namespace fake
