// Python bindings: they convert and nothing else.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <system_error>
#include <tuple>

#include "arena.h"
#include "bind_aead.h"
#include "bind_codec.h"
#include "bind_cuda.h"
#include "bind_wire.h"
#include "bindings.h"
#include "copier.h"
#include "crc32c.h"
#include "file_io.h"
#include "key_table.h"
#include "stream_copy.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace kvtier;

namespace {

// Populating takes seconds on large arenas: Ctrl-C must get through.
void raise_pending_signal() {
  const nb::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

nb::object view(const Arena& arena) {
  auto* const held = new std::shared_ptr<Mapping>(arena.mapping());
  const nb::capsule owner(held, [](void* pointer) noexcept { delete static_cast<std::shared_ptr<Mapping>*>(pointer); });
  using Bytes = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>;
  return nb::cast(Bytes((*held)->address(), {(*held)->size()}, owner));
}

// Other threads see the arena closed before the GIL is let go for the unmapping.
void close(Arena& arena) {
  std::shared_ptr<Mapping> mapping = arena.close();
  const nb::gil_scoped_release release;
  mapping.reset();
}

// A new array of `count` values that `fill` writes.
template <typename T, typename Fill>
nb::object filled(std::size_t count, Fill fill) {
  auto* const values = new T[count];
  const nb::capsule owner(values, [](void* pointer) noexcept { delete[] static_cast<T*>(pointer); });
  fill(values);
  return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<1>>(values, {count}, owner));
}

// Letting the GIL go and taking it again costs as much as the checksum of a few pages.
constexpr std::size_t kChecksumWithGil = std::size_t{64} << 10;

template <typename Compute>
auto computed(std::size_t bytes, Compute compute) {
  std::optional<nb::gil_scoped_release> release;
  if (bytes > kChecksumWithGil) release.emplace();
  return compute();
}

std::uint32_t checksum(const Flat<std::uint8_t, 1>& bytes, std::uint32_t seed) {
  return computed(bytes.size(), [&] { return crc32c(bytes.data(), bytes.size(), seed); });
}

nb::object checksum_rows(const Flat<std::uint8_t, 2>& rows) {
  const std::size_t width = rows.shape(1);
  return filled<std::uint32_t>(rows.shape(0), [&](std::uint32_t* sums) {
    computed(rows.size(), [&] {
      for (std::size_t i = 0; i < rows.shape(0); ++i) sums[i] = crc32c(rows.data() + i * width, width);
    });
  });
}

std::uint64_t submit(FileIo& io, Direction direction, std::array<std::int64_t, 6> numbers, const SealOfPython* seal,
                     const CodecOfPython* codec) {
  const auto [fd, offset, address, size, seed, stored] = numbers;
  if (*std::min_element(numbers.begin(), numbers.end()) < 0) throw nb::value_error("no argument may be negative");
  if (fd > std::numeric_limits<int>::max()) throw nb::value_error("fd is too large");
  if (seed > std::numeric_limits<std::uint32_t>::max()) throw nb::value_error("seed must be less than 2**32");
  return io.submit({direction, static_cast<int>(fd), static_cast<std::uint64_t>(offset),
                    static_cast<std::uint64_t>(address), static_cast<std::uint64_t>(size),
                    static_cast<std::uint32_t>(seed), seal == nullptr ? nullptr : seal->seal,
                    codec == nullptr ? nullptr : codec->codec, static_cast<std::uint64_t>(stored)});
}

std::uint64_t read(FileIo& io, std::int64_t fd, std::int64_t offset, std::int64_t address, std::int64_t stored,
                   std::int64_t seed, const SealOfPython* seal, std::int64_t size) {
  return submit(io, Direction::kRead, {fd, offset, address, size == 0 ? stored : size, seed, stored}, seal, nullptr);
}

std::uint64_t write(FileIo& io, std::int64_t fd, std::int64_t offset, std::int64_t address, std::int64_t size,
                    std::int64_t seed, const SealOfPython* seal, const CodecOfPython* codec, std::int64_t stored) {
  return submit(io, Direction::kWrite, {fd, offset, address, size, seed, stored}, seal, codec);
}

using Transferred = std::tuple<std::uint64_t, int, std::uint32_t, double, std::uint64_t, double, std::string>;

std::vector<Transferred> poll_transfers(FileIo& io) {
  std::vector<Transferred> records;
  for (const TransferDone& done : io.poll())
    records.emplace_back(done.ticket, done.error, done.crc, done.seconds, done.stored, done.coded_s, done.codec);
  return records;
}

Key key_of(const nb::bytes& bytes) {
  if (bytes.size() != kKeyBytes) throw nb::value_error("a key has 16 bytes");
  return Key::load(bytes.c_str());
}

[[noreturn]] void raise_key_error(const nb::bytes& key) {
  PyErr_SetObject(PyExc_KeyError, key.ptr());
  throw nb::python_error();
}

std::span<const char> packed(const nb::bytes& keys) {
  if (keys.size() % kKeyBytes != 0) throw nb::value_error("packed keys must be a multiple of 16 bytes");
  return {keys.c_str(), keys.size()};
}

nb::object find(const KeyTable& table, const nb::bytes& keys) {
  const std::span<const char> all = packed(keys);
  return filled<std::uint32_t>(all.size() / kKeyBytes, [&](std::uint32_t* slots) { table.find(all, slots); });
}

nb::object add_many(KeyTable& table, const nb::bytes& keys, const Flat<std::uint32_t, 1>& slots) {
  const std::span<const char> all = packed(keys);
  const std::size_t count = all.size() / kKeyBytes;
  if (slots.size() != count) throw nb::value_error("keys and slots must have the same length");
  if (std::find(slots.data(), slots.data() + count, kAbsent) != slots.data() + count)
    throw nb::value_error("slot must be 0 to ABSENT - 1");
  return filled<bool>(count, [&](bool* added) { table.add(all, slots.data(), added); });
}

nb::object remove_many(KeyTable& table, const nb::bytes& keys) {
  const std::span<const char> all = packed(keys);
  return filled<std::uint32_t>(all.size() / kKeyBytes, [&](std::uint32_t* slots) { table.remove(all, slots); });
}

void add(KeyTable& table, const nb::bytes& key, std::int64_t slot) {
  if (slot < 0 || slot >= kAbsent) throw nb::value_error("slot must be 0 to ABSENT - 1");
  if (!table.add(key_of(key), static_cast<std::uint32_t>(slot))) raise_key_error(key);
}

std::uint32_t remove(KeyTable& table, const nb::bytes& key) {
  const std::uint32_t slot = table.remove(key_of(key));
  if (slot == kAbsent) raise_key_error(key);
  return slot;
}

void translate_os_error(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const std::system_error& failure) {
    const nb::object arguments = nb::make_tuple(failure.code().value(), failure.what());
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
  }
}

void bind_arena(nb::module_& m) {
  nb::class_<Arena>(m, "Arena",
                    "One region of shared memory that other processes can map by its descriptor.\n\n"
                    "Made by Arena.create (the owner) or Arena.attach (a guest). Usable in a with statement. Every\n"
                    "property and view() raise ValueError after close().")
      .def_static(
          "create",
          [](std::int64_t size, const std::string& name, bool pin, int numa_node) {
            const nb::gil_scoped_release release;
            return Arena::create(size, name, pin, numa_node, raise_pending_signal);
          },
          "size"_a, "name"_a, "pin"_a = true, "numa_node"_a = -1,
          "Take `size` bytes (a positive multiple of 2 MiB) of zeroed memory now: every page is touched, lies on\n"
          "2 MiB pages and is pinned where that can be had; `notes` says what could not, and how to cure it. The\n"
          "file is sealed: it can neither shrink nor grow. Takes about 0.15 s a GiB, or 1-5 s where 2 MiB pages\n"
          "can't be had; the GIL is released, and Ctrl-C works. `name` shows up in /proc/<pid>/maps. `numa_node`:\n"
          "its pages lie on this node as far as there is room; -1: where the kernel puts them.\n\n"
          "Raises ValueError (size), MemoryError (it does not fit into what is available), OSError.")
      .def_static("attach", &Arena::attach, "fd"_a, "size"_a,
                  "Map the arena behind `fd`, received from its owner. The descriptor is duplicated: the caller still\n"
                  "closes its own. Touches no page; `huge_bytes` is 0 (unknown) and `pinned` False.\n\n"
                  "Raises ValueError when the file has another size or is not sealed against shrinking, OSError.")
      .def_static(
          "adopt",
          [](int fd, std::int64_t size, bool pin) {
            const nb::gil_scoped_release release;
            return Arena::adopt(fd, size, pin, raise_pending_signal);
          },
          "fd"_a, "size"_a, "pin"_a = true,
          "Take over the arena behind `fd`, which a former owner made by Arena.create, with all that is in it. Its pages\n"
          "are there: they are mapped, and pinned where that can be had, some milliseconds a GiB on 2 MiB pages; what\n"
          "can't be had stands in `notes`. The descriptor is duplicated; the GIL is released, and Ctrl-C works.\n\n"
          "Raises ValueError when the file has another size or other seals, MemoryError, OSError.")
      .def_prop_ro("fd", &Arena::fd, "int: the descriptor, owned by this object; send it over a unix socket.")
      .def_prop_ro(
          "address", [](const Arena& a) { return reinterpret_cast<std::uintptr_t>(a.mapping()->address()); },
          "int: where the region begins in this process; a multiple of 2 MiB.")
      .def_prop_ro("size", &Arena::size, "int: bytes.")
      .def_prop_ro("huge_bytes", &Arena::huge_bytes, "int: bytes known to lie on 2 MiB pages; 0 when unknown.")
      .def_prop_ro("pinned", &Arena::pinned, "bool: whether the kernel has promised never to swap it out.")
      .def_prop_ro("notes", &Arena::notes, "list[str]: one line for each thing that could not be had, with its cure.")
      .def("view", &view,
           "The whole region as a writable numpy uint8 array of shape (size,), without a copy.\n\n"
           "The memory stays mapped for as long as the array lives, even after close(). Addresses given to a Copier\n"
           "are not protected in this way.")
      .def("close", &close,
           "Close the descriptor and unmap the region as soon as no view() of it is left. May be called twice.")
      .def("__enter__", [](nb::object self) { return self; })
      .def("__exit__", [](Arena& arena, const nb::args&) { close(arena); });
}

void bind_copier(nb::module_& m) {
  nb::class_<HostCopier> copier(
      m, "Copier",
      "Copies bytes between addresses of this process on its own threads.\n\n"
      "Jobs may finish in any order, and there is no cancellation: memory named in a job must stay valid, and nobody\n"
      "may read a target, until the job has finished. All methods may be called from any thread. Does not survive a\n"
      "fork: a child makes its own.");
  copier
      .def(nb::init<int>(), "threads"_a = 0,
           "`threads`: 1 to MAX_THREADS; 0 takes 2, or fewer on a smaller machine. Raises ValueError otherwise.")
      .def(
          "submit",
          [](HostCopier& self, const Column& source, const Column& target, const Column& size) {
            return self.submit({span(source), span(target), span(size)});
          },
          "source"_a.noconvert(), "target"_a.noconvert(), "size"_a.noconvert(),
          "Queue one job and return its ticket (1, 2, 3 ...). Never waits for a copy.\n\n"
          "Three contiguous numpy uint64 arrays of shape (n,): addresses, addresses, bytes. They are copied, so the\n"
          "caller may reuse them. n = 0 is allowed and is finished at once. No target may overlap another fragment of\n"
          "any unfinished job.\n\n"
          "Raises TypeError (not such arrays), ValueError (unequal lengths, address 0), RuntimeError (closed, or\n"
          "\"queue full\": MAX_JOBS jobs are submitted and not polled).")
      .def("poll", &poll_copies<HostCopier>,
           "list[(ticket, bytes, seconds, error)]: the jobs finished since the last poll, each exactly once. `seconds`\n"
           "runs from the first byte to the last; time spent in the queue is not in it. `error` is a str, here always\n"
           "empty. Never blocks.")
      .def("wait", &wait_for_copy<HostCopier>, "ticket"_a, "timeout_s"_a = nb::none(), ReleaseGil(),
           "Whether the job has finished within `timeout_s` seconds (None: no limit). poll() still reports it; a job\n"
           "already polled is True. The GIL is released. Raises ValueError for a ticket never issued.")
      .def_prop_ro("pending", &HostCopier::pending, "int: jobs submitted and not finished.")
      .def("close", &HostCopier::close, ReleaseGil(),
           "Finish every job submitted so far, then stop the threads. May be called twice; poll() and wait() still\n"
           "work afterwards, submit() raises RuntimeError.");
  copier.attr("MAX_JOBS") = kMaxJobs;
  copier.attr("MAX_THREADS") = kMaxThreads;
}

void bind_file_io(nb::module_& m) {
  nb::class_<FileIo> io(
      m, "FileIo",
      "Moves whole ranges between open files and memory on its own threads, and computes their CRC-32C.\n\n"
      "Made for descriptors opened with O_DIRECT and aligned ranges; works with others too. There is no cancellation:\n"
      "descriptor and memory belong to the transfer until poll() has reported it, and nobody may write the memory (or\n"
      "read it, if it is being read into). Reads are started before writes, each in their order, and while a read is\n"
      "queued or in flight at most WRITES_BESIDE_READS writes are. Completions come in any order. All methods may be\n"
      "called from any thread. Does not survive a fork: a child makes its own.");
  io.def(nb::init<int, int, const std::string&>(), "depth"_a = 8, "threads"_a = 2, "backend"_a = "auto",
         "At most `depth` (1 to MAX_DEPTH) transfers are in flight. `threads` (1 to MAX_THREADS) compute checksums\n"
         "and, each with a ring of its own, talk to io_uring; without it every transfer in flight takes a thread.\n"
         "`backend`: \"io_uring\", \"threads\", or \"auto\", which is io_uring where the kernel allows it.\n\n"
         "Raises ValueError, OSError (\"io_uring\" was asked for and refused; no descriptors or threads left).")
      .def("read", &read, "fd"_a, "offset"_a, "address"_a, "stored"_a, "seed"_a = 0, "seal"_a = nb::none(),
           "size"_a = 0,
           "Queue the read of `stored` bytes at `offset` to `address` and return its ticket (1, 2, 3 ...). The checksum\n"
           "goes on from `seed`, over the memory after the read. With a `seal` (its tag is that of the bytes in the\n"
           "file) they are decrypted in place instead, and the checksum is 0. With a larger `size` they are a frame, and\n"
           "decoded in place to so many bytes; the checksum is the frame's. Never waits for I/O.\n\n"
           "Raises ValueError (negative, address or size 0, beyond any file or memory), RuntimeError (closed, or\n"
           "\"queue full\": MAX_OPS transfers are submitted and not polled).")
      .def("write", &write, "fd"_a, "offset"_a, "address"_a, "size"_a, "seed"_a = 0, "seal"_a = nb::none(),
           "codec"_a = nb::none(), "stored"_a = 0,
           "Queue the write of `size` bytes at `address` to `offset`, otherwise as read(). The checksum is that of\n"
           "the memory before the write. With a `codec` a frame of `stored` bytes, fewer than `size`, is written instead.")
      .def("poll", &poll_transfers,
           "list[(ticket, error, crc, seconds, stored, coded_s, codec)]: the transfers finished since the last poll, each\n"
           "exactly once. Error is 0 or an errno: EIO when the file ends within a read, ENOSPC when a write moves\n"
           "nothing, EFBIG when a frame doesn't fit, EBADMSG when what was read is none, ENOTSUP when its codec isn't\n"
           "known or can't be used here; what the kernel cuts short is continued. crc is 0 after an error. `seconds` runs\n"
           "from the hand-over to the kernel to the completion; neither queue nor checksum are in it. `stored`: the bytes\n"
           "of a frame that count, 0 where there is none; `coded_s`: seconds that making or decoding it took; `codec`: of\n"
           "one that was read, or isn't known, its codec's name. Never blocks.")
      .def(
          "wait", [](FileIo& self, double timeout_s) { return self.wait(std::chrono::duration<double>(timeout_s)); },
          "timeout_s"_a, ReleaseGil(),
          "Whether there is something to poll, within `timeout_s` seconds. The GIL is released.")
      .def("fileno", &FileIo::event_fd,
           "int: a descriptor that can be read exactly while there is something to poll. It stays this object's:\n"
           "poll() empties it, and nobody else reads or closes it.")
      .def_prop_ro("backend", &FileIo::backend, "str: \"io_uring\" or \"threads\".")
      .def_prop_ro("fallback", &FileIo::fallback, "str: why it is not io_uring; empty when it is, or wasn't wanted.")
      .def_prop_ro("pending", &FileIo::pending, "int: transfers submitted and not finished.")
      .def("close", &FileIo::close, ReleaseGil(),
           "Finish every transfer submitted so far, then stop the threads. May be called twice; poll() and wait()\n"
           "still work afterwards, read() and write() raise RuntimeError.");
  io.attr("MAX_OPS") = kMaxOps;
  io.attr("MAX_DEPTH") = kMaxDepth;
  io.attr("MAX_THREADS") = kMaxIoThreads;
  io.attr("WRITES_BESIDE_READS") = kWritesBesideReads;
}

void bind_checksums(nb::module_& m) {
  m.def("crc32c", &checksum, "data"_a.noconvert(), "seed"_a = 0,
        "The CRC-32C of contiguous bytes (numpy uint8 array, bytes, memoryview ...), going on from `seed`, that of\n"
        "what came before: crc32c(b, crc32c(a)) == crc32c(a + b). The GIL is released beyond 64 KiB.");
  m.def("crc32c_rows", &checksum_rows, "rows"_a.noconvert(),
        "The CRC-32C of each row of a contiguous numpy uint8 array of shape (n, width): a new uint32 array of shape\n"
        "(n,). The GIL is released beyond 64 KiB.");
  m.def(
      "_crc32c_by_table",
      [](const Flat<std::uint8_t, 1>& bytes, std::uint32_t seed) {
        return crc32c_by_table(bytes.data(), bytes.size(), seed);
      },
      "data"_a.noconvert(), "seed"_a = 0, "As crc32c(), without the CPU's instruction: for tests.");
}

void bind_key_table(nb::module_& m) {
  nb::class_<KeyTable> table(
      m, "KeyTable",
      "A hash table from 16-byte keys to slot numbers (0 to ABSENT - 1), in a flat array outside Python's memory.\n\n"
      "Made for keys that are keyed digests: the last bytes of a key choose its bucket as they are, so keys that\n"
      "somebody crafts to share them make every call slow. Not thread safe: one thread owns it (in kvtierd the event\n"
      "loop). The GIL is kept, since every call is short. All methods raise TypeError unless a key is `bytes`.");
  table
      .def(nb::init<std::int64_t>(), "expected"_a = 0,
           "With room for `expected` keys; beyond that it doubles, and each add() moves some of the keys, so that none\n"
           "takes long. It never shrinks. Raises ValueError (negative), MemoryError.")
      .def("__len__", &KeyTable::size)
      .def("__contains__", [](const KeyTable& self, const nb::bytes& key) { return self.find(key_of(key)) != kAbsent; },
           "key"_a, "Raises ValueError unless the key has 16 bytes.")
      .def("find", &find, "keys"_a,
           "The slots of the n keys that are packed in `keys` (16 bytes each, one after the other), in their order: a\n"
           "new numpy uint32 array of shape (n,), ABSENT where a key is missing. Keys may repeat; n may be 0.\n\n"
           "Raises ValueError unless len(keys) is a multiple of 16.")
      .def("add", &add, "key"_a, "slot"_a,
           "Raises KeyError when the key is there already, ValueError (not 16 bytes, slot out of range), MemoryError.\n"
           "Nothing has changed then.")
      .def("remove", &remove, "key"_a,
           "Forget the key and return the slot it had. Raises KeyError when it is missing, ValueError (not 16 bytes).")
      .def("add_many", &add_many, "keys"_a, "slots"_a.noconvert(),
           "Add the n keys packed in `keys` as find() takes them, with `slots`, a contiguous numpy uint32 array of\n"
           "shape (n,). A new numpy bool array: whether each was added, False where the key was there already, be it\n"
           "from earlier in the same call; the slot it had stays.\n\n"
           "Raises ValueError (len(keys) is no multiple of 16 or does not fit len(slots), a slot is ABSENT),\n"
           "TypeError (not such an array), MemoryError. Nothing has changed then.")
      .def("remove_many", &remove_many, "keys"_a,
           "Forget the n keys packed in `keys` and return the slots they had, as find() does: ABSENT where one was\n"
           "missing, be it removed earlier in the same call. Raises ValueError unless len(keys) is a multiple of 16.")
      .def_prop_ro("memory_bytes", &KeyTable::memory_bytes, "int: bytes of the array, full or empty; while it grows, of the former one too.");
  table.attr("ABSENT") = kAbsent;
  table.attr("KEY_BYTES") = kKeyBytes;
}

}  // namespace

NB_MODULE(_native, m) {
  // The daemon ends with its key table alive; the operating system takes it back.
  nb::set_leak_warnings(false);
  m.doc() = "Shared memory, copies, file and wire I/O and a table of keys: nothing about messages, tiers or sessions.";
  nb::register_exception_translator(translate_os_error);
  bind_arena(m);
  bind_copier(m);
  bind_file_io(m);
  bind_checksums(m);
  bind_key_table(m);
  bind_cuda(m);
  bind_aead(m);
  bind_codec(m);
  bind_wire(m);
  m.def("cpu_copy_path", &copy_path,
        "How large copies are stored on this CPU: \"avx512\" or \"avx2\" (non-temporal), or \"memcpy\".");
}
