"""The header of a value: what is packed comes back, and whatever else comes is seen."""

import random

import numpy as np
import pytest

from kvtier import _native
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
    unpack_raw,
)

KEY, OTHER_KEY = b"k" * KEY_BYTES, b"o" * KEY_BYTES
DIGEST, OTHER_DIGEST = b"\x0d" * 32, b"\x0e" * 32
BODY = np.frombuffer(random.Random(1).randbytes(2 * SLOT_UNIT), np.uint8)
FRAME = {"stored": 70_001, "codec": b"\x01\x02\x03\x40"}
HEADER_AT = {"size": 24, "stored": 32, "codec": 100, "more": 104}


def header(**other) -> Header:
    found = Header(KEY, len(BODY), checksum_of(KEY, BODY), DIGEST, 3, b"s" * 8 + b"t" * 8)
    return found._replace(**other)


def test_what_is_packed_comes_back():
    packed = pack(header())
    assert len(packed) == HEADER_BYTES == 112 and packed[:8] == b"kvtV\x03\0\0\0"
    assert unpack(packed) == unpack_raw(packed) == header() == read(packed, KEY, DIGEST, BODY)
    assert unpack(packed).body_bytes == len(BODY)


def test_a_frame_has_two_sizes_and_a_codec():
    found = unpack(pack(header(**FRAME)))
    assert found == header(**FRAME) and (found.size, found.body_bytes) == (len(BODY), 70_001)


def test_where_blocks_come_as_they_are_a_frame_is_none():
    with pytest.raises(Corrupt, match="not in a frame"):
        unpack_raw(pack(header(**FRAME)))


@pytest.mark.parametrize(
    ("stored", "codec"),
    [
        (0, b"\x01\x01\0\0"),
        (len(BODY), b"\x01\x01\0\0"),
        (len(BODY) + 1, b"\x01\x01\0\0"),
        ((1 << 64) - 1, b"\x01\x01\0\0"),
        (len(BODY) - 1, bytes(4)),
        (len(BODY) + 1, bytes(4)),
        (0, bytes(4)),
    ],
    ids=["no frame", "a frame as long", "a longer one", "the longest", "less", "more", "nothing"],
)
def test_a_header_that_lies_about_a_size_is_corrupt(stored, codec):
    with pytest.raises(Corrupt, match="bytes for a block of"):
        unpack(forged(stored=stored.to_bytes(8, "little"), codec=codec))


def test_a_codec_with_parameters_that_nobody_knows_is_not_ours_to_judge():
    with pytest.raises(OtherVersion, match="more parameters"):
        unpack(forged(header(**FRAME), more=b"\0\0\0\x01"))


def forged(of=None, **fields: bytes) -> bytes:
    """With a crc that fits."""
    packed = bytearray(pack(of or header())[:-4])
    for name, content in fields.items():
        packed[HEADER_AT[name] : HEADER_AT[name] + len(content)] = content
    return bytes(packed) + _native.crc32c(bytes(packed)).to_bytes(4, "little")


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


@pytest.mark.parametrize("size", [0, 4, 96, 111, 113, 200])
def test_a_header_of_another_size_is_corrupt(size):
    with pytest.raises(Corrupt):
        unpack((pack(header()) + bytes(200))[:size])


def test_noise_is_corrupt():
    chance = random.Random(2)
    for _ in range(1000):
        with pytest.raises(Corrupt):
            unpack(chance.randbytes(HEADER_BYTES))


@pytest.mark.parametrize("version", [1, 2, 4, 5])
def test_another_version_is_not_ours_to_judge(version):
    with pytest.raises(OtherVersion, match=f"version {version}; this kvtier reads 3"):
        unpack(b"kvtV" + bytes([version]) + bytes(200)[: HEADER_BYTES - 5])


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
        (111, 0),
        (112, 0),
        (113, 1),
        (112 + SLOT_UNIT, SLOT_UNIT),
        (SLOT_UNIT, SLOT_UNIT - 112),
        (113 + SLOT_UNIT, SLOT_UNIT + 1),
        (112 + (1 << 40), 1 << 40),
        (113 + (1 << 40), 0),
        (112 + (1 << 63), 0),
        (-SLOT_UNIT, 0),
    ],
)
def test_a_length_that_no_value_of_ours_has_is_of_nothing(length, size):
    assert body_bytes(length) == size
