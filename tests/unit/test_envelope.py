"""The header of a value: what is packed comes back, and whatever else comes is seen."""

import random

import numpy as np
import pytest

from kvtier.block import KEY_BYTES, SLOT_UNIT
from kvtier.tiers.remote.base import Corrupt, OtherVersion
from kvtier.tiers.remote.envelope import (
    HEADER_BYTES,
    Header,
    body_bytes,
    checksum_of,
    name_of,
    pack,
    read,
    unpack,
)

KEY, OTHER_KEY = b"k" * KEY_BYTES, b"o" * KEY_BYTES
DIGEST, OTHER_DIGEST = b"\x0d" * 32, b"\x0e" * 32
BODY = np.frombuffer(random.Random(1).randbytes(2 * SLOT_UNIT), np.uint8)


def header(**other) -> Header:
    found = Header(KEY, len(BODY), checksum_of(KEY, BODY), DIGEST, 3, b"s" * 8 + b"t" * 8)
    return found._replace(**other)


def test_what_is_packed_comes_back():
    packed = pack(header())
    assert len(packed) == HEADER_BYTES == 96 and packed[:4] == b"kvtV"
    assert unpack(packed) == header() == read(packed, KEY, DIGEST, BODY)


def test_no_origin_is_zeros_on_the_way():
    assert unpack(pack(header(origin=b""))).origin == b""


def test_every_flipped_bit_of_a_header_is_seen():
    packed = pack(header())
    for bit in range(8 * len(packed)):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(OtherVersion if 4 <= bit // 8 < 8 else Corrupt):
            unpack(bytes(damaged))


def test_every_flipped_byte_of_a_body_is_seen_at_its_ends_and_in_between():
    for at in (0, 1, SLOT_UNIT - 1, SLOT_UNIT, len(BODY) - 1):
        body = BODY.copy()
        body[at] ^= 1
        with pytest.raises(Corrupt, match="not those that were written"):
            read(pack(header()), KEY, DIGEST, body)


@pytest.mark.parametrize("size", [0, 4, 95, 97, 200])
def test_a_header_of_another_size_is_corrupt(size):
    with pytest.raises(Corrupt):
        unpack((pack(header()) + bytes(200))[:size])


def test_noise_is_corrupt():
    chance = random.Random(2)
    for _ in range(1000):
        with pytest.raises(Corrupt):
            unpack(chance.randbytes(HEADER_BYTES))


def test_another_version_is_not_ours_to_judge():
    with pytest.raises(OtherVersion, match="version 2; this kvtier reads 1"):
        unpack(b"kvtV\x02\0\0\0" + bytes(200)[: HEADER_BYTES - 8])


@pytest.mark.parametrize("other", [{"key": OTHER_KEY}, {"digest": OTHER_DIGEST}, {"size": SLOT_UNIT}])
def test_a_whole_value_under_the_wrong_name_is_corrupt(other):
    with pytest.raises(Corrupt, match="another block's"):
        read(pack(header(**other)), KEY, DIGEST, BODY)


def test_the_same_bytes_under_another_key_have_another_checksum():
    assert checksum_of(KEY, BODY) != checksum_of(OTHER_KEY, BODY)


def test_a_name_has_the_namespace_and_the_key():
    assert name_of(DIGEST, KEY) == "0d" * 8 + "/" + "6b" * 16


@pytest.mark.parametrize(
    ("length", "size"),
    [
        (None, 0),
        (0, 0),
        (95, 0),
        (96, 0),
        (97, 0),
        (96 + SLOT_UNIT, SLOT_UNIT),
        (SLOT_UNIT, 0),
        (97 + SLOT_UNIT, 0),
        (96 + (1 << 40), 1 << 40),
        (96 + (1 << 63), 0),
        (-SLOT_UNIT, 0),
    ],
)
def test_a_length_that_no_value_of_ours_has_is_of_nothing(length, size):
    assert body_bytes(length) == size
