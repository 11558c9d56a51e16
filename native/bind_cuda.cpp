// Python bindings for GPUs: they convert and nothing else.
#include "bind_cuda.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>

#include "bindings.h"
#include "cuda_copier.h"
#include "cuda_driver.h"
#include "cuda_memory.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvtier {
namespace {

using SharedDriver = std::shared_ptr<const CudaDriver>;

std::string hex(std::span<const std::uint8_t> bytes) {
  constexpr const char* digits = "0123456789abcdef";
  std::string text;
  for (const std::uint8_t byte : bytes) {
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

nb::list devices(const CudaDriver& driver) {
  nb::list found;
  for (const CudaDevice& device : driver.devices()) {
    nb::dict named;
    named["ordinal"] = device.ordinal;
    named["name"] = device.name;
    named["uuid"] = hex(device.uuid);
    named["pci"] = device.pci;
    found.append(named);
  }
  return found;
}

void bind_driver(nb::module_& m) {
  nb::class_<CudaDriver>(m, "CudaDriver", "NVIDIA's driver, opened at run time. Made by CudaDriver.open.")
      .def_static(
          "open", &CudaDriver::open, "path"_a = "", ReleaseGil(),
          "Open the driver, libcuda.so.1 unless `path` names another. Never raises: `reason` says what is amiss.")
      .def_prop_ro("reason", &CudaDriver::reason, "str: why it can't be used, for people; empty when it can.")
      .def_prop_ro("version", &CudaDriver::version, "int: 13050 is CUDA 13.5; 0 when it was never asked.")
      .def_prop_ro("devices", &devices, "list[dict]: ordinal (int), name, uuid (32 hex digits), pci (bus id).")
      .def_prop_ro("missing", &CudaDriver::missing, "list[str]: the entry points that it lacks, needed or not.");
}

std::uint64_t submit(CudaCopier& self, const Column& source, const Column& target, const Column& size,
                     std::optional<std::uint64_t> after) {
  const Fragments fragments{span(source), span(target), span(size)};
  const nb::gil_scoped_release release;  // the driver may have a lock of its own to wait for
  return self.submit(fragments, after);
}

void construct(CudaCopier* self, const SharedDriver& driver, int device, const std::string& path,
               std::int64_t page_bytes, bool low_priority) {
  if (page_bytes < 1) throw nb::value_error("page_bytes must be positive");
  const nb::gil_scoped_release release;
  new (self) CudaCopier(driver, device, {path, static_cast<std::uint64_t>(page_bytes), low_priority});
}

void bind_copier(nb::module_& m) {
  nb::class_<CudaCopier> copier(
      m, "CudaCopier",
      "Copies bytes to, from and between GPUs, on a stream and a thread of its own.\n\n"
      "Addresses are of device memory, or of host memory, which should be registered (CudaPin): what isn't is copied\n"
      "slowly, and breaks the context of the whole process where the path is \"kernel\". Jobs are worked off in the\n"
      "order of submission, and there is no cancellation: memory named in a job must stay valid, and nobody may read\n"
      "a target, until the job has finished. All methods may be called from any thread. Does not survive a fork.");
  copier
      .def("__init__", &construct, "driver"_a, "device"_a, nb::kw_only(), "path"_a = "auto", "page_bytes"_a = 32768,
           "low_priority"_a = false,
           "`device`: its ordinal. `path`: how many small pieces are copied, \"batch\" (one call for many), \"async\"\n"
           "(one call each), \"kernel\" (one launch for many), or \"auto\": the fastest with pages of\n"
           "`page_bytes`, the kernel only where it is 1.3 times faster, for it takes room from those who compute. Each\n"
           "is tried there and back, and can't be had where it fails or gives wrong bytes; this takes up to some 100 ms.\n"
           "`low_priority`: other streams' work goes first.\n\n"
           "Raises ValueError (the driver can't be used, with its reason; no such device; the path can't be had),\n"
           "RuntimeError (a call to the driver failed).")
      .def("submit", &submit, "source"_a.noconvert(), "target"_a.noconvert(), "size"_a.noconvert(),
           "after"_a = nb::none(),
           "Queue one job and return its ticket (1, 2, 3 ...). Never waits for a copy.\n\n"
           "Columns as Copier.submit takes them. `after`: the handle of a CUDA stream, 0 being the default one; all\n"
           "that is in it by now is over before the first byte is read or written. None: there is nothing to wait\n"
           "for. The GIL is released.\n\n"
           "Raises what Copier.submit does, and RuntimeError when a call to the driver fails: there is no job then.")
      .def("poll", &poll_copies<CudaCopier>,
           "list[(ticket, bytes, seconds, error)]: the jobs finished since the last poll, each exactly once.\n"
           "`seconds` is measured by the GPU, from the first byte to the last. `error`: empty, or\n"
           "why the job failed; its targets then hold anything, and nobody writes them any more. Never blocks.")
      .def("wait", &wait_for_copy<CudaCopier>, "ticket"_a, "timeout_s"_a = nb::none(), ReleaseGil(),
           "Whether the job has finished, be it by failing, within `timeout_s` seconds (None: no limit). poll() still\n"
           "reports it; a job already polled is True. The GIL is released. Raises ValueError for a ticket never\n"
           "issued.")
      .def("pace", &CudaCopier::pace, "bytes_per_s"_a,
           "Copy at most so many bytes a second from now on; 0: no limit. What is in the stream already stays there.")
      .def_prop_ro("pending", &CudaCopier::pending, "int: jobs submitted and not finished.")
      .def_prop_ro("path", &CudaCopier::path, "str: \"batch\", \"async\" or \"kernel\".")
      .def_prop_ro("notes", &CudaCopier::notes,
                   "list[str]: one line for each path that was tried: what it reached, or why it can't be had.")
      .def("close", &CudaCopier::close, ReleaseGil(),
           "Finish every job submitted so far, at full speed, then give back the stream and the context. May be\n"
           "called twice; poll() and wait() still work afterwards, submit() raises RuntimeError.");
  copier.attr("MAX_JOBS") = kMaxJobs;
}

nb::bytes handle_of(const DeviceArena& arena) {
  const CUipcMemHandle handle = arena.handle();
  return nb::bytes(handle.reserved, sizeof handle.reserved);
}

std::unique_ptr<DeviceArena> attach(const SharedDriver& driver, int device, const nb::bytes& bytes,
                                    std::int64_t size) {
  CUipcMemHandle handle{};
  if (bytes.size() != sizeof handle.reserved) throw nb::value_error("a handle has 64 bytes");
  std::memcpy(handle.reserved, bytes.c_str(), sizeof handle.reserved);
  const nb::gil_scoped_release release;
  return DeviceArena::attach(driver, device, handle, size);
}

void bind_pin(nb::module_& m) {
  nb::class_<CudaPin> pin(
      m, "CudaPin",
      "Registers a range of host memory for DMA, on a thread of its own.\n\n"
      "Until a part is registered, and where it can't be, copies of it work all the same, more slowly. A copy that\n"
      "crosses a multiple of PIECE is refused by the driver: CudaCopier cuts there. Does not survive a fork.");
  pin.def(nb::init<SharedDriver, int, std::uint64_t, std::uint64_t>(), "driver"_a, "device"_a, "address"_a, "size"_a,
          ReleaseGil(),
          "Begins to register `size` bytes at `address`, for every device. The memory must stay mapped until\n"
          "close().\n\n"
          "Raises ValueError (no range, no usable driver, no such device), RuntimeError (the driver), OSError (no\n"
          "thread). Too little memory that may be locked raises nothing: see `note`.")
      .def_prop_ro("ready", &CudaPin::ready, "bool: nothing more will be registered.")
      .def_prop_ro("pinned_bytes", &CudaPin::pinned_bytes,
                   "int: bytes registered so far, by this object or by others in this process before it; 0 once\n"
                   "closed.")
      .def_prop_ro("note", &CudaPin::note,
                   "str: why it is not all, with the cure; empty when it is, or not yet `ready`.")
      .def("close", &CudaPin::close, ReleaseGil(),
           "Unregister what this object has registered; waits for a piece that is being registered. No copy may be\n"
           "using the range. May be called twice.");
  pin.attr("PIECE") = kPinPiece;
}

void bind_device_arena(nb::module_& m) {
  nb::class_<DeviceArena>(
      m, "DeviceArena",
      "One region of a GPU's memory that other processes can map by its handle.\n\n"
      "Made by DeviceArena.create (the owner) or DeviceArena.attach (a guest). The owner closes it when no guest\n"
      "copies; what a guest reads after the owner's end means nothing. Usable in a with statement. Every property\n"
      "and zero() raise ValueError after close(), and RuntimeError in a forked child.")
      .def_static("create", &DeviceArena::create, "driver"_a, "device"_a, "size"_a, ReleaseGil(),
                  "Take `size` bytes (a positive multiple of 2 MiB) on GPU `device`, zeroed.\n\n"
                  "Raises ValueError (the size, no usable driver, no such device), MemoryError (says how much is\n"
                  "free), RuntimeError (the driver).")
      .def_static("attach", &attach, "driver"_a, "device"_a, "handle"_a, "size"_a,
                  "Map the arena behind `handle`, received from its owner, for copies by GPU `device`: the owner's or\n"
                  "a peer of it. `size` is as the owner says, the driver doesn't check it. Not in the owner's\n"
                  "process: the driver refuses a handle where it was made.\n\n"
                  "Raises as create() does; ValueError too unless the handle has 64 bytes, and RuntimeError too when\n"
                  "the driver can't share memory or the owner is gone.")
      .def_prop_ro("address", &DeviceArena::address, "int: where it begins, as copies in this process name it.")
      .def_prop_ro("size", &DeviceArena::size, "int: bytes.")
      .def_prop_ro("device", &DeviceArena::device, "int: the GPU's number, as given.")
      .def_prop_ro("handle", &handle_of,
                   "bytes: 64, for attach() in other processes. Raises RuntimeError when the driver can't share\n"
                   "memory.")
      .def("zero", &DeviceArena::zero, "offset"_a, "size"_a, ReleaseGil(),
           "Clear `size` bytes from `offset` on; done on return. Raises ValueError unless they lie within the arena,\n"
           "RuntimeError (the driver).")
      .def("close", &DeviceArena::close, ReleaseGil(),
           "Free the memory, or unmap what was attached. No copy may be using it. May be called twice.")
      .def("__enter__", [](nb::object self) { return self; })
      .def("__exit__", [](DeviceArena& arena, const nb::args&) {
        const nb::gil_scoped_release release;
        arena.close();
      });
}

}  // namespace

void bind_cuda(nb::module_& m) {
  bind_driver(m);
  bind_copier(m);
  bind_pin(m);
  bind_device_arena(m);
}

}  // namespace kvtier
