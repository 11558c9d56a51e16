"""FileIo with a seal: what is in the file is encrypted, and what was changed there is never given back."""

import errno
import os

import numpy as np
import pytest
from kvtier._native import Seal

from kvtier import _native

MIB = 1 << 20
BLOCK = 64 << 10
KEY, AAD = b"k" * 32, b"block 7"
PIECE = 2 * MIB  # is encrypted and written at once
SIZES = (BLOCK, PIECE - BLOCK, PIECE, PIECE + BLOCK, 3 * PIECE + 2 * BLOCK)
HALF = 16 * MIB


@pytest.fixture(scope="module")
def crypto():
    return _native.Crypto.open()


@pytest.fixture
def arena():
    with _native.Arena.create(2 * HALF, "kvtier-test", pin=False) as made:
        made.view()[:HALF] = np.random.default_rng(1).integers(0, 256, HALF, dtype=np.uint8)
        yield made


def ended(io, count: int = 1) -> dict[int, tuple[int, int]]:
    """Of each ticket the error and the checksum."""
    reports = []
    while len(reports) < count:
        assert io.wait(30)
        reports += io.poll()
    return {ticket: (error, crc) for ticket, error, crc, *_ in reports}


def nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def write(io, file, arena, size: int, crypto, at: int = 0, number: int = 0) -> bytes:
    """Its tag."""
    seal = Seal(crypto, KEY, nonce(number), AAD)
    ticket = io.write(file, at, arena.address + at, size, seal=seal)
    assert ended(io) == {ticket: (0, 0)}
    return seal.tag


def read(io, file, arena, size: int, seal: Seal, at: int = 0) -> tuple[int, np.ndarray]:
    """The error, and what is in memory then."""
    into = arena.view()[HALF + at : HALF + at + size]
    into[:] = 0xEE
    ticket = io.read(file, at, arena.address + HALF + at, size, seal=seal)
    return ended(io)[ticket][0], into


@pytest.mark.parametrize("size", SIZES)
def test_what_is_in_the_file_is_what_the_standard_says_and_comes_back(io, file, path, arena, crypto, size):
    text = arena.view()[:size].copy()
    tag = write(io, file, arena, size, crypto)
    hidden = np.empty_like(text)
    assert crypto.seal(KEY, nonce(0), AAD, text, hidden) == tag
    assert path.read_bytes() == hidden.tobytes()
    assert np.array_equal(arena.view()[:size], text), "who is written is left as he is"
    seal = Seal(crypto, KEY, nonce(0), AAD, tag)
    error, found = read(io, file, arena, size, seal)
    assert error == 0 and not seal.is_forged and np.array_equal(found, text)


@pytest.mark.parametrize("at", [0, PIECE, 2 * PIECE - 1])
def test_a_changed_byte_is_an_error_and_leaves_zeros(io, file, path, arena, crypto, at):
    tag = write(io, file, arena, 2 * PIECE, crypto)
    with path.open("r+b") as opened:
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))
    seal = Seal(crypto, KEY, nonce(0), AAD, tag)
    error, found = read(io, file, arena, 2 * PIECE, seal)
    assert error == errno.EBADMSG and seal.is_forged and not found.any()


@pytest.mark.parametrize("wrong", ["key", "nonce", "aad", "tag", "no tag", "place"])
def test_another_seal_opens_nothing(io, file, arena, crypto, wrong):
    tag = write(io, file, arena, BLOCK, crypto)
    other = write(io, file, arena, BLOCK, crypto, at=BLOCK, number=1)
    seals = {
        "key": (b"K" * 32, nonce(0), AAD, tag),
        "nonce": (KEY, nonce(1), AAD, tag),
        "aad": (KEY, nonce(0), b"block 8", tag),
        "tag": (KEY, nonce(0), AAD, other),
        "no tag": (KEY, nonce(0), AAD),
        "place": (KEY, nonce(1), AAD, other),
    }
    seal = Seal(crypto, *seals[wrong])
    error, found = read(io, file, arena, BLOCK, seal)
    assert error == errno.EBADMSG and seal.is_forged and not found.any()


def test_many_at_once_with_plain_ones_between_them(io, file, arena, crypto):
    """More than there are bounce buffers; each a piece and a bit."""
    size, count = PIECE + BLOCK, 7
    seals = {}
    for n in range(count):
        seal = None if n % 3 == 2 else Seal(crypto, bytes([n]) * 32, nonce(n), AAD)
        seals[io.write(file, n * size, arena.address + n * size, size, seal=seal)] = n, seal
    for ticket, (error, crc) in ended(io, count).items():
        n, seal = seals[ticket]
        plain = _native.crc32c(arena.view()[n * size : (n + 1) * size])
        assert (error, crc) == (0, 0 if seal else plain)
    for n, seal in seals.values():
        again = seal and Seal(crypto, bytes([n]) * 32, nonce(n), AAD, seal.tag)
        error, found = read(io, file, arena, size, again, at=n * size)
        assert error == 0 and np.array_equal(found, arena.view()[n * size : (n + 1) * size])


def test_a_read_beyond_the_end_of_the_file_is_an_error_that_accuses_nobody(io, file, arena, crypto):
    write(io, file, arena, BLOCK, crypto)
    seal = Seal(crypto, KEY, nonce(0), AAD, bytes(16))
    error, _ = read(io, file, arena, BLOCK, seal, at=MIB)
    assert error == errno.EIO and not seal.is_forged


def test_a_write_that_fails_is_an_error_and_the_next_one_is_whole(io, file, path, arena, crypto):
    unwritable = os.open(path, os.O_RDONLY)
    seal = Seal(crypto, KEY, nonce(5), AAD)
    ticket = io.write(unwritable, 0, arena.address, 2 * PIECE, seal=seal)
    assert ended(io) == {ticket: (errno.EBADF, 0)}
    os.close(unwritable)
    tag = write(io, file, arena, 2 * PIECE, crypto)
    error, found = read(io, file, arena, 2 * PIECE, Seal(crypto, KEY, nonce(0), AAD, tag))
    assert error == 0 and np.array_equal(found, arena.view()[: 2 * PIECE])
