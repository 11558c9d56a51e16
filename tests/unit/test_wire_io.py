"""Exchanges with a socket, by threads that know no Python."""

import errno
import os
import select
import socket
import struct
import threading
import time

import pytest

from kvtier import _native

MIB = 1 << 20
WAIT_S = 30.0


@pytest.fixture
def ends():
    here, there = socket.socketpair()
    with here, there:
        yield here, there


class Keeping:
    """A WireIo, and the memory that its exchanges have: whoever calls it keeps that alive."""

    def __init__(self, threads):
        self._io = _native.WireIo(threads)
        self._kept = []
        self.fileno, self.poll, self.cancel, self.close = self._io.fileno, self._io.poll, self._io.cancel, self._io.close

    def submit(self, fd, message, answer, expected=b""):
        self._kept += [*message, *answer]
        return self._io.submit(fd, message, answer, expected)

    def try_here(self, fd, message, answer, expected=b""):
        self._kept += [*message, *answer]
        return self._io.try_here(fd, message, answer, expected)


@pytest.fixture
def io():
    made = Keeping(4)
    yield made
    made.close()


def ended(io, n=1):
    """So many, by ticket."""
    found = {}
    until = time.monotonic() + WAIT_S
    while len(found) < n:
        assert select.select([io.fileno()], [], [], until - time.monotonic())[0], "never ended"
        for ticket, error, received in io.poll():
            assert ticket not in found
            found[ticket] = error, received
    return found


def ended_of(io, ticket):
    return ended(io)[ticket]


def limit(peer, seconds):
    said = struct.pack("@ll", 0, int(seconds * 1e6))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, said)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, said)


def heard(peer, size):
    said = b""
    while len(said) < size:
        said += peer.recv(MIB)
    return said


def test_a_message_is_sent_whole_and_its_answer_fills_the_memory(io, ends):
    here, there = ends
    value, begin, body = os.urandom(5 * MIB), bytearray(20), bytearray(3 * MIB)
    ticket = io.submit(here.fileno(), [b"first", b"", value], [memoryview(begin)[2:12], body], b"yes")
    assert heard(there, 5 + len(value)) == b"first" + value
    there.sendall(b"yes0123456" + value[: 3 * MIB])
    assert ended(io) == {ticket: (0, 10 + 3 * MIB)}
    assert begin == b"\0\0yes0123456" + bytes(8) and body == value[: 3 * MIB]


def test_an_answer_that_begins_otherwise_is_not_read_beyond_its_first_piece(io, ends):
    here, there = ends
    begin, body = bytearray(10), bytearray(100)
    for said in (b"n", b"no", b"yeah"):
        ticket = io.submit(here.fileno(), [b"?"], [begin, body], b"yes")
        there.recv(1)
        there.sendall(said)
        assert ended(io) == {ticket: (0, len(said))}
        assert begin[: len(said)] == said and not any(body)


def test_an_answer_may_come_byte_by_byte(io, ends):
    here, there = ends
    begin, body = bytearray(3), bytearray(3)
    ticket = io.submit(here.fileno(), [b"?"], [begin, body], b"yes")
    for byte in b"yes123":
        time.sleep(0.005)
        there.sendall(bytes([byte]))
    assert ended(io) == {ticket: (0, 6)} and body == b"123"


def test_who_hangs_up_is_an_error(io, ends):
    here, there = ends
    ticket = io.submit(here.fileno(), [b"?"], [bytearray(4)], b"")
    there.recv(1)
    there.sendall(b"ye")
    there.close()
    assert ended(io) == {ticket: (errno.ECONNRESET, 2)}
    assert ended_of(io, io.submit(here.fileno(), [bytes(MIB)], [])) == (errno.EPIPE, 0)


def test_more_than_there_are_threads_wait_for_their_turn(io):
    pairs = [socket.socketpair() for _ in range(12)]
    bodies = [bytearray(MIB) for _ in pairs]
    tickets = [io.submit(here.fileno(), [b"?"], [body]) for (here, _), body in zip(pairs, bodies, strict=True)]
    for n, (_, there) in enumerate(pairs):
        threading.Thread(target=there.sendall, args=(bytes([n]) * MIB,), daemon=True).start()
    assert ended(io, 12) == dict.fromkeys(tickets, (0, MIB))
    assert [body[0] for body in bodies] == [body[-1] for body in bodies] == list(range(12))
    for pair in pairs:
        for end in pair:
            end.close()


def test_one_that_is_cancelled_touches_nothing_any_more_and_is_not_reported(io, ends):
    here, there = ends
    body = bytearray(MIB)
    ticket = io.submit(here.fileno(), [b"?"], [body])
    there.recv(1)
    there.sendall(b"x" * 1000)
    io.cancel(ticket)
    body[:] = bytes(MIB)
    with pytest.raises(OSError):
        there.sendall(b"x" * MIB)
    assert not any(body) and io.poll() == []
    io.cancel(ticket)  # again
    io.cancel(12345)


def test_one_that_waits_for_a_thread_can_be_cancelled(ends):
    io = Keeping(1)
    here, there = ends
    first = io.submit(here.fileno(), [b"?"], [bytearray(1)])
    with socket.socket() as other:
        second = io.submit(other.fileno(), [b"!"], [])
        io.cancel(second)
    there.sendall(b"x")
    assert ended(io) == {first: (0, 1)}
    io.close()


def test_one_that_has_ended_and_is_cancelled_is_not_reported(io, ends):
    here, there = ends
    there.sendall(b"x")
    ticket = io.submit(here.fileno(), [b"?"], [bytearray(1)])
    assert select.select([io.fileno()], [], [], WAIT_S)[0]
    io.cancel(ticket)
    assert not select.select([io.fileno()], [], [], 0)[0] and io.poll() == []


# --- in the caller's thread --------------------------------------------------------------------------------------


def test_what_is_answered_at_once_needs_no_thread(io, ends):
    here, there = ends
    limit(here, 0.5)
    there.sendall(b"yes")
    body = bytearray(3)
    before = threading.active_count(), len(os.listdir("/proc/self/task"))
    assert io.try_here(here.fileno(), [b"?"], [body], b"yes") == (0, 0, 3)
    assert body == b"yes" and there.recv(1) == b"?"
    there.sendall(b"no")
    assert io.try_here(here.fileno(), [b"?"], [bytearray(3), bytearray(1)], b"yes") == (0, 0, 2)
    assert (threading.active_count(), len(os.listdir("/proc/self/task"))) == before


@pytest.mark.parametrize("said", [0, 1, 3, 1000])
def test_what_takes_longer_goes_on_in_a_thread_where_it_was(io, ends, said):
    here, there = ends
    limit(here, 0.002)
    answer = b"yes" + os.urandom(2 * MIB - 3)
    begin, body = bytearray(3), bytearray(2 * MIB - 3)
    there.sendall(answer[:said])
    ticket, *_ = io.try_here(here.fileno(), [b"?"], [begin, body], b"yes")
    assert ticket
    there.sendall(answer[said:])
    assert ended(io) == {ticket: (0, 2 * MIB)} and begin + body == answer


def test_a_message_that_nobody_takes_goes_on_in_a_thread(io, ends):
    here, there = ends
    limit(here, 0.002)
    value = os.urandom(4 * MIB)
    ticket, *_ = io.try_here(here.fileno(), [value], [bytearray(2)], b"ok")
    assert ticket and heard(there, 4 * MIB) == value
    there.sendall(b"ok")
    assert ended(io) == {ticket: (0, 2)}


# --- ends and mistakes -------------------------------------------------------------------------------------------


def test_close_ends_what_is_under_way_and_takes_nothing_more(io, ends):
    here, _ = ends
    io.submit(here.fileno(), [b"?"], [bytearray(1)])
    io.close()
    io.close()
    with pytest.raises(RuntimeError, match="closed"):
        io.submit(here.fileno(), [b"?"], [])


def test_mistakes_are_errors_of_the_call(io, ends):
    here, _ = ends
    for threads in (0, 65):
        with pytest.raises(ValueError):
            _native.WireIo(threads)
    with pytest.raises(ValueError):
        io.submit(-1, [b"?"], [])
    with pytest.raises(ValueError):
        io.submit(here.fileno(), [b"?"] * 9, [])
    with pytest.raises(ValueError, match="first piece"):
        io.submit(here.fileno(), [b"?"], [bytearray(2)], b"yes")
    with pytest.raises(TypeError):
        io.submit(here.fileno(), [b"?"], [b"read-only"])


def test_a_forked_child_can_drop_it(io, ends):
    here, there = ends
    there.sendall(b"x")
    assert ended_of(io, io.submit(here.fileno(), [b"?"], [bytearray(1)])) == (0, 1)
    child = os.fork()
    if not child:
        io.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
