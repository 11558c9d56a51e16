"""FileIo with a codec: what is in the file is a frame, and whatever else lies there is an error."""

import errno
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from coded_blocks import forged, of_bf16
from kvtier._native import Codec, Seal

from kvtier import _native

UNIT = 64 << 10
SIZE = 16 * UNIT
STORED = 13 * UNIT  # what a frame of SIZE fits into
HALF = 32 * SIZE
KEY, AAD = b"k" * 32, b"block 7"
CODEC = Codec("exp12")
MEMORY_LEFT = 24 << 20  # when all is done; the allocator of Python moves too


@pytest.fixture
def arena():
    with _native.Arena.create(2 * HALF, "kvtier-test", pin=False) as made:
        made.view()[:HALF] = of_bf16(HALF)
        yield made


def ended(io, count: int = 1) -> dict[int, tuple]:
    """Of each ticket error, checksum, seconds, bytes of the frame, seconds for it, its codec."""
    reports = []
    while len(reports) < count:
        assert io.wait(30)
        reports += io.poll()
    return {ticket: rest for ticket, *rest in reports}


def frame_of(content: np.ndarray, seed: int) -> tuple[np.ndarray, int, int]:
    """As it fills its place; its bytes that count; its checksum."""
    frame = np.empty(STORED, np.uint8)
    stored, checksum = CODEC.encode(content, frame, seed, True)
    return frame, stored, checksum


def write(io, file, arena, seed: int = 5, seal: Seal | None = None, stored: int = STORED, at: int = 0) -> list:
    ticket = io.write(file, at, arena.address + at, SIZE, seed, seal, CODEC, stored)
    return ended(io)[ticket]


def read(io, file, arena, seed: int = 5, seal: Seal | None = None, stored: int = STORED) -> tuple[list, np.ndarray]:
    """The report, and what is in memory then."""
    into = arena.view()[HALF : HALF + SIZE]
    into[:] = 0xEE
    ticket = io.read(file, 0, arena.address + HALF, stored, seed, seal, SIZE)
    return ended(io)[ticket], into


def test_the_frame_fills_its_place_and_the_block_comes_back(io, file, path, arena):
    content = arena.view()[:SIZE].copy()
    frame, counted, checksum = frame_of(content, 5)
    error, crc, seconds, stored, coded_s, _ = write(io, file, arena)
    assert (error, crc, stored) == (0, checksum, counted) and seconds > 0 and coded_s > 0
    assert path.read_bytes() == frame.tobytes()
    assert np.array_equal(arena.view()[:SIZE], content), "what is written is left as it is"
    (error, crc, seconds, stored, coded_s, codec), found = read(io, file, arena)
    assert (error, crc, stored, codec) == (0, checksum, counted, "exp12") and seconds > 0 and coded_s > 0
    assert np.array_equal(found, content) and not arena.view()[HALF + SIZE :].any()


def test_an_encrypted_frame_is_the_frame_encrypted(io, file, path, arena):
    crypto = _native.Crypto.open()
    seal = Seal(crypto, KEY, bytes(12), AAD)
    error, crc, _, counted, _, _ = write(io, file, arena, seal=seal)
    frame, stored, _ = frame_of(arena.view()[:SIZE], 5)
    hidden = np.empty_like(frame)
    assert crypto.seal(KEY, bytes(12), AAD, frame, hidden) == seal.tag
    assert (error, crc, counted) == (0, 0, stored) and path.read_bytes() == hidden.tobytes()
    report, found = read(io, file, arena, seal=Seal(crypto, KEY, bytes(12), AAD, seal.tag))
    assert report[:2] == [0, 0] and np.array_equal(found, arena.view()[:SIZE])


@pytest.mark.parametrize("sealed", [False, True], ids=["clear", "encrypted"])
def test_a_frame_that_does_not_fit_is_not_written(io, file, path, arena, sealed):
    path.write_bytes(b"u" * SIZE)
    seal = Seal(_native.Crypto.open(), KEY, bytes(12), AAD) if sealed else None
    error, crc, _, stored, coded_s, _ = write(io, file, arena, seal=seal, stored=8 * UNIT)
    assert (error, crc, stored) == (errno.EFBIG, 0, 0) and coded_s > 0
    assert path.read_bytes() == b"u" * SIZE
    assert write(io, file, arena)[0] == 0


@pytest.mark.parametrize("at", [0, SIZE // 2, STORED - 100, STORED - 64, STORED - 1])
def test_a_changed_byte_is_an_error(io, file, path, arena, at):
    write(io, file, arena)
    change(path, at)
    report, _ = read(io, file, arena)
    assert report[:2] == [errno.EBADMSG, 0] and report[3] == 0
    assert not arena.view()[HALF + SIZE :].any(), "and nothing beside is touched"


def test_a_changed_byte_of_an_encrypted_frame_accuses_its_seal_and_leaves_zeros(io, file, path, arena):
    crypto = _native.Crypto.open()
    seal = Seal(crypto, KEY, bytes(12), AAD)
    write(io, file, arena, seal=seal)
    change(path, STORED // 2)
    opening = Seal(crypto, KEY, bytes(12), AAD, seal.tag)
    report, found = read(io, file, arena, seal=opening)
    assert report[0] == errno.EBADMSG and opening.is_forged and not found[:STORED].any()


def test_a_sound_seal_of_what_is_no_frame_accuses_nobody(io, file, arena):
    crypto = _native.Crypto.open()
    seal = Seal(crypto, KEY, bytes(12), AAD)
    ticket = io.write(file, 0, arena.address, STORED, 5, seal)
    assert ended(io)[ticket][0] == 0
    opening = Seal(crypto, KEY, bytes(12), AAD, seal.tag)
    report, _ = read(io, file, arena, seal=opening)
    assert report[0] == errno.EBADMSG and not opening.is_forged


@pytest.mark.parametrize("what", ["zeros", "noise", "another seed", "another size", "cut"])
def test_what_is_no_frame_of_this_block_is_an_error(io, file, path, arena, what):
    write(io, file, arena)
    if what == "zeros":
        path.write_bytes(bytes(SIZE))
    elif what == "noise":
        path.write_bytes(os.urandom(SIZE))
    elif what == "another size":
        ticket = io.read(file, 0, arena.address + HALF, STORED, 5, None, SIZE + UNIT)
        assert ended(io)[ticket][0] == errno.EBADMSG
        return
    report, _ = read(io, file, arena, seed=6 if what == "another seed" else 5, stored=STORED - UNIT * (what == "cut"))
    assert report[0] == errno.EBADMSG


def test_a_whole_frame_that_nobody_here_knows_is_another_error(io, file, path, arena):
    write(io, file, arena)
    frame = np.fromfile(path, np.uint8)
    for changes, codec in (({"version": 9}, "exp12"), ({"codec": 99}, "codec 99")):
        path.write_bytes(forged(frame, 5, **changes).tobytes())
        error, crc, _, stored, _, named = read(io, file, arena)[0]
        assert (error, crc, stored, named) == (errno.ENOTSUP, 0, 0, codec)
        assert read(io, file, arena, seed=6)[0][0] == errno.EBADMSG, "nor is it one of this block"
    path.write_bytes(frame.tobytes())
    assert read(io, file, arena)[0][0] == 0


def change(path, at: int) -> None:
    with path.open("r+b") as opened:
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))


def test_coded_encrypted_and_plain_ones_in_both_directions_at_once(io, file, arena):
    crypto, count = _native.Crypto.open(), 24
    seals = {n: Seal(crypto, bytes([n]) * 32, bytes(12), AAD) for n in range(0, count, 2)}
    tickets = {}
    for n in range(count):
        how = (None, 0) if n % 3 == 0 else (CODEC, STORED)
        tickets[io.write(file, n * SIZE, arena.address + n * SIZE, SIZE, n, seals.get(n), *how)] = n
    assert all(report[0] == 0 for report in ended(io, count).values())
    expected = {}
    for n in range(count):
        seal = Seal(crypto, bytes([n]) * 32, bytes(12), AAD, seals[n].tag) if n in seals else None
        stored = SIZE if n % 3 == 0 else STORED
        expected[io.read(file, n * SIZE, arena.address + HALF + n * SIZE, stored, n, seal, SIZE)] = n
        if n % 4 == 0:
            io.write(file, HALF + n * SIZE, arena.address + n * SIZE, SIZE, n, None, CODEC, STORED)
    for ticket, report in ended(io, count + count // 4).items():
        assert report[0] == 0 and (ticket not in expected or bool(report[5]) == (expected[ticket] % 3 != 0))
    assert np.array_equal(arena.view()[: count * SIZE], arena.view()[HALF : HALF + count * SIZE])


@pytest.mark.parametrize(
    ("verb", "more"),
    [
        ("write", (0, None, CODEC, 0)),
        ("write", (0, None, CODEC, SIZE)),
        ("write", (0, None, None, STORED)),
        ("write", (0, None, CODEC, SIZE + UNIT)),
        ("read", (0, None, SIZE - UNIT)),
    ],
    ids=["no place", "a place as large", "no codec", "a larger place", "less than is read"],
)
def test_what_makes_no_sense_is_refused(io, file, arena, verb, more):
    with pytest.raises(ValueError, match=r"stored|codec|less"):
        getattr(io, verb)(file, 0, arena.address, SIZE, *more)


# --- memory ------------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    with open("/proc/self/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith("RssAnon"))) << 10


def test_memory_for_frames_goes_back_when_nothing_is_left_to_do(io, file, arena):
    size, stored = 8 * SIZE, 8 * STORED
    before = resident_bytes()
    for turn in range(3):
        for n in range(4):
            io.write(file, 0, arena.address + n * size, size, turn, None, CODEC, stored)
        assert all(report[0] == 0 for report in ended(io, 4).values())
    until = time.monotonic() + 30
    while resident_bytes() - before > MEMORY_LEFT and time.monotonic() < until:
        time.sleep(0.01)
    assert resident_bytes() - before <= MEMORY_LEFT


@pytest.mark.parametrize("backend", ["auto", "threads"])
def test_where_memory_is_short_that_transfer_alone_is_an_error(backend, tmp_path):
    """80 MiB for its frame are not there; what needs less goes on."""
    program = f"""
import os, resource
import numpy as np
from kvtier import _native
SIZE, STORED, SMALL = 96 << 20, 80 << 20, 1 << 20
fd = os.open({str(tmp_path / "file")!r}, os.O_RDWR | os.O_CREAT)
memory, codec = np.zeros(SIZE, np.uint8), _native.Codec("exp12")
io = _native.FileIo(2, 1, {backend!r})
address = memory.ctypes.data
def error(*order):
    io.write(*order)
    while not io.wait(30):
        pass
    ((_, error, *_),) = io.poll()
    return error
assert error(fd, 0, address, SMALL, 0, None, codec, SMALL - 65536) == 0
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (32 << 20), resource.RLIM_INFINITY))
print(error(fd, 0, address, SIZE, 0, None, codec, STORED), error(fd, 0, address, SMALL, 0, None, codec, SMALL - 65536))
"""
    found = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    assert found.stdout == f"{errno.ENOMEM} 0\n"
