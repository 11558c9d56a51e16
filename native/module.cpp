// Python bindings: they convert and nothing else.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <system_error>
#include <tuple>

#include "arena.h"
#include "copier.h"
#include "key_table.h"
#include "stream_copy.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace kvtier;

namespace {

using Column = nb::ndarray<const std::uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu, nb::ro>;
using Record = std::tuple<std::uint64_t, std::uint64_t, double>;
using ReleaseGil = nb::call_guard<nb::gil_scoped_release>;

std::span<const std::uint64_t> span(const Column& column) { return {column.data(), column.size()}; }

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

std::vector<Record> poll(HostCopier& copier) {
  std::vector<Record> records;
  for (const Completion& done : copier.poll()) records.emplace_back(done.ticket, done.bytes, done.seconds);
  return records;
}

bool wait(HostCopier& copier, std::int64_t ticket, std::optional<double> timeout_s) {
  std::optional<std::chrono::duration<double>> timeout;
  if (timeout_s) timeout.emplace(*timeout_s);
  return copier.wait(ticket, timeout);
}

Key key_of(const nb::bytes& bytes) {
  if (bytes.size() != kKeyBytes) throw nb::value_error("a key has 16 bytes");
  return Key::load(bytes.c_str());
}

[[noreturn]] void raise_key_error(const nb::bytes& key) {
  PyErr_SetObject(PyExc_KeyError, key.ptr());
  throw nb::python_error();
}

nb::object find(const KeyTable& table, const nb::bytes& keys) {
  if (keys.size() % kKeyBytes != 0) throw nb::value_error("packed keys must be a multiple of 16 bytes");
  const std::size_t count = keys.size() / kKeyBytes;
  auto* const slots = new std::uint32_t[count];
  const nb::capsule owner(slots, [](void* pointer) noexcept { delete[] static_cast<std::uint32_t*>(pointer); });
  table.find({keys.c_str(), keys.size()}, slots);
  using Slots = nb::ndarray<nb::numpy, std::uint32_t, nb::ndim<1>>;
  return nb::cast(Slots(slots, {count}, owner));
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
          [](std::int64_t size, const std::string& name, bool pin) {
            const nb::gil_scoped_release release;
            return Arena::create(size, name, pin, raise_pending_signal);
          },
          "size"_a, "name"_a, "pin"_a = true,
          "Take `size` bytes (a positive multiple of 2 MiB) of zeroed memory now: every page is touched, lies on\n"
          "2 MiB pages and is pinned where that can be had; `notes` says what could not, and how to cure it. The\n"
          "file is sealed: it can neither shrink nor grow. Takes about 0.15 s a GiB, or 1-5 s where 2 MiB pages\n"
          "can't be had; the GIL is released, and Ctrl-C works. `name` shows up in /proc/<pid>/maps.\n\n"
          "Raises ValueError (size), MemoryError (it does not fit into what is available), OSError.")
      .def_static("attach", &Arena::attach, "fd"_a, "size"_a,
                  "Map the arena behind `fd`, received from its owner. The descriptor is duplicated: the caller still\n"
                  "closes its own. Touches no page; `huge_bytes` is 0 (unknown) and `pinned` False.\n\n"
                  "Raises ValueError when the file has another size or is not sealed against shrinking, OSError.")
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
      .def("poll", &poll,
           "list[(ticket, bytes, seconds)]: the jobs finished since the last poll, each exactly once. `seconds` runs\n"
           "from the first byte to the last; time spent in the queue is not in it. Never blocks.")
      .def("wait", &wait, "ticket"_a, "timeout_s"_a = nb::none(), ReleaseGil(),
           "Whether the job has finished within `timeout_s` seconds (None: no limit). poll() still reports it; a job\n"
           "already polled is True. The GIL is released. Raises ValueError for a ticket never issued.")
      .def_prop_ro("pending", &HostCopier::pending, "int: jobs submitted and not finished.")
      .def("close", &HostCopier::close, ReleaseGil(),
           "Finish every job submitted so far, then stop the threads. May be called twice; poll() and wait() still\n"
           "work afterwards, submit() raises RuntimeError.");
  copier.attr("MAX_JOBS") = kMaxJobs;
  copier.attr("MAX_THREADS") = kMaxThreads;
}

void bind_key_table(nb::module_& m) {
  nb::class_<KeyTable> table(
      m, "KeyTable",
      "A hash table from 16-byte keys to slot numbers (0 to ABSENT - 1), in one flat array outside Python's memory.\n\n"
      "Made for keys that are keyed digests: the last bytes of a key choose its bucket as they are, so keys that\n"
      "somebody crafts to share them make every call slow. Not thread safe: one thread owns it (in kvtierd the event\n"
      "loop). The GIL is kept, since every call is short. All methods raise TypeError unless a key is `bytes`.");
  table
      .def(nb::init<std::int64_t>(), "expected"_a = 0,
           "With room for `expected` keys; beyond that it doubles at once, which takes 15 to 20 ns a key. It never\n"
           "shrinks. Raises ValueError (negative), MemoryError.")
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
      .def_prop_ro("memory_bytes", &KeyTable::memory_bytes, "int: bytes that the array takes, full or empty.");
  table.attr("ABSENT") = kAbsent;
  table.attr("KEY_BYTES") = kKeyBytes;
}

}  // namespace

NB_MODULE(_native, m) {
  // The daemon ends with its key table alive; the operating system takes it back.
  nb::set_leak_warnings(false);
  m.doc() = "Shared memory, copies and a table of keys: nothing about messages, tiers or sessions.";
  nb::register_exception_translator(translate_os_error);
  bind_arena(m);
  bind_copier(m);
  bind_key_table(m);
  m.def("cpu_copy_path", &copy_path,
        "How large copies are stored on this CPU: \"avx512\" or \"avx2\" (non-temporal), or \"memcpy\".");
}
