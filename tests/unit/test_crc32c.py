"""CRC-32C: the standard's numbers, and one answer however the bytes are cut, placed and computed."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvtier._native import crc32c, crc32c_rows

from kvtier import _native

POLYNOMIAL = 0x82F63B78
LANES = (256, 4 << 10, 64 << 10)  # bytes; three lanes of one length are computed together
PATHS = [crc32c, _native._crc32c_by_table]

# RFC 3720, appendix B.4, and the check value that every catalogue has.
VECTORS = [
    (b"", 0x00000000),
    (b"a", 0xC1D04330),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (
        bytes.fromhex("01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018")
        + bytes.fromhex("28000000 00000000 02000000 00000000"),
        0xD9963A56,
    ),
]


@functools.cache
def table() -> list[int]:
    remainders = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ POLYNOMIAL * (byte & 1)
        remainders.append(byte)
    return remainders


def expected(content: bytes, seed: int = 0) -> int:
    crc = ~seed & 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ table()[(crc ^ byte) & 0xFF]
    return ~crc & 0xFFFFFFFF


@functools.cache
def content() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, 1 << 19, dtype=np.uint8)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("text, crc", VECTORS, ids=lambda value: value[:9].hex() if isinstance(value, bytes) else "")
def test_the_numbers_of_the_standard(path, text, crc):
    assert expected(text) == crc
    assert path(text) == crc


@pytest.mark.parametrize("path", PATHS)
def test_every_short_length(path):
    for size in range(301):
        assert path(content()[:size]) == expected(content()[:size].tobytes()), size


@pytest.mark.parametrize("path", PATHS)
def test_lengths_around_whole_lanes(path):
    for size in (3 * lane + more for lane in LANES for more in (-9, -8, -1, 0, 1, 7, 8, 9)):
        assert path(content()[:size]) == expected(content()[:size].tobytes()), size


@pytest.mark.parametrize("path", PATHS)
def test_bytes_may_begin_anywhere(path):
    for start in range(64):
        part = content()[start : start + 1000]
        assert path(part) == expected(part.tobytes()), start


sizes = st.integers(0, 1 << 19)


@given(start=st.integers(0, 70), size=sizes, cut=sizes, seed=st.integers(0, 2**32 - 1))
def test_both_paths_agree_and_go_on_from_where_the_other_stopped(start, size, cut, seed):
    part = content()[start : start + size]
    whole = crc32c(part, seed)
    assert _native._crc32c_by_table(part, seed) == whole
    assert crc32c(part[cut:], _native._crc32c_by_table(part[:cut], seed)) == whole


def test_a_seed_is_the_checksum_of_what_came_before():
    assert crc32c(b"56789", crc32c(b"1234")) == crc32c(b"123456789")
    assert crc32c(b"abc", 0xFFFFFFFF) == expected(b"abc", 0xFFFFFFFF)


def test_whatever_holds_contiguous_bytes_is_taken():
    text = b"123456789"
    frozen = np.frombuffer(text, np.uint8)
    for same in (bytearray(text), memoryview(text), frozen, frozen.copy()):
        assert crc32c(same) == 0xE3069283


@pytest.mark.parametrize("wrong", [None, 5, "text", np.zeros(4, np.uint32), np.zeros((2, 2), np.uint8)])
def test_anything_else_is_a_typeerror(wrong):
    with pytest.raises(TypeError):
        crc32c(wrong)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5])
def test_a_seed_is_a_checksum(seed):
    with pytest.raises(TypeError):
        crc32c(b"", seed)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (7, 300), (3, 32 << 10)])
def test_each_row_has_its_checksum(shape):
    rows = content()[: shape[0] * shape[1]].reshape(shape)
    sums = crc32c_rows(rows)
    assert sums.dtype == np.uint32 and sums.shape == shape[:1]
    assert sums.tolist() == [crc32c(row) for row in rows]


@pytest.mark.parametrize("wrong", [np.zeros(4, np.uint8), np.zeros((2, 2), np.int8), np.zeros((4, 4), np.uint8)[:, ::2]])
def test_rows_are_a_contiguous_table_of_bytes(wrong):
    with pytest.raises(TypeError):
        crc32c_rows(wrong)
