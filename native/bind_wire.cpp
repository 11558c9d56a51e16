// Python bindings for sockets: they convert and nothing else.
#include "bind_wire.h"

#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <vector>

#include "bindings.h"
#include "wire_io.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvtier {
namespace {

using Sent = Flat<std::uint8_t, 1>;

template <typename Memory>
std::vector<Piece> pieces(const std::vector<Memory>& memories) {
  std::vector<Piece> found;
  for (const Memory& memory : memories) found.push_back({reinterpret_cast<std::uint64_t>(memory.data()), memory.size()});
  return found;
}

using Ended = std::tuple<std::uint64_t, int, std::uint64_t>;

Exchange exchange(int fd, const std::vector<Sent>& message, const std::vector<Filled>& answer,
                  const nb::bytes& expected) {
  return {fd, pieces(message), pieces(answer), {expected.c_str(), expected.size()}};
}

std::uint64_t submit(WireIo& io, int fd, const std::vector<Sent>& message, const std::vector<Filled>& answer,
                     const nb::bytes& expected) {
  return io.submit(exchange(fd, message, answer, expected));
}

Ended try_here(WireIo& io, int fd, const std::vector<Sent>& message, const std::vector<Filled>& answer,
                const nb::bytes& expected) {
  Exchange begun = exchange(fd, message, answer, expected);
  const nb::gil_scoped_release release;
  const ExchangeDone done = io.try_here(std::move(begun));
  return {done.ticket, done.error, done.received};
}

std::vector<Ended> poll_exchanges(WireIo& io) {
  std::vector<Ended> records;
  for (const ExchangeDone& done : io.poll()) records.emplace_back(done.ticket, done.error, done.received);
  return records;
}

}  // namespace

void bind_wire(nb::module_& m) {
  nb::class_<WireIo> io(
      m, "WireIo",
      "Sends messages over sockets and receives the answers into memory, each on a thread of its own, without the GIL.\n\n"
      "Descriptor and memory belong to an exchange until poll() has reported it, or cancel() has returned. All methods\n"
      "may be called from any thread. Does not survive a fork: a child makes its own.");
  io.def(nb::init<int>(), "threads"_a,
         "At most `threads` (1 to MAX_THREADS) exchanges are under way; others wait. Threads are begun when they are\n"
         "needed. Raises ValueError, OSError.")
      .def("submit", &submit, "fd"_a, "message"_a, "answer"_a, "expected"_a = nb::bytes("", 0),
           "Queue an exchange and return its ticket (1, 2, 3 ...): the buffers of `message` are sent, all of them, then\n"
           "those of `answer` filled, in their order (at most MAX_PIECES each). An answer that doesn't begin with the\n"
           "bytes `expected`, which fit into its first buffer, is not received beyond that buffer. Never waits.\n\n"
           "The caller keeps the buffers alive. Raises ValueError, TypeError (no flat writable buffer of bytes),\n"
           "RuntimeError (closed), OSError (no thread can be had).")
      .def("try_here", &try_here, "fd"_a, "message"_a, "answer"_a, "expected"_a = nb::bytes("", 0),
           "Begin an exchange in this thread: (0, error, received) when it was over within the socket's own time limits\n"
           "(SO_SNDTIMEO, SO_RCVTIMEO; at most thrice), else (ticket, 0, 0): the rest is queued as by submit(). The GIL\n"
           "is released.")
      .def("poll", &poll_exchanges,
           "list[(ticket, error, received)]: those that ended since the last poll, each exactly once. Error is 0 or an\n"
           "errno; `received` the bytes of the answer: less than all, without an error, when it began with something\n"
           "else than was expected. Never blocks.")
      .def("cancel", &WireIo::cancel, "ticket"_a, ReleaseGil(),
           "Shut its socket down, and return when its memory is touched no more; poll() doesn't report it. The GIL is\n"
           "released. Does nothing for a ticket that poll() has reported.")
      .def("fileno", &WireIo::event_fd,
           "int: a descriptor that can be read exactly while there is something to poll. It stays this object's.")
      .def("close", &WireIo::close, ReleaseGil(),
           "Cancel all there is and stop the threads. May be called twice; submit() raises RuntimeError afterwards.");
  io.attr("MAX_THREADS") = kMaxWireThreads;
  io.attr("MAX_PIECES") = kMaxPieces;
}

}  // namespace kvtier
