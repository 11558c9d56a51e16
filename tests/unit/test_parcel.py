"""A parcel's head and end: what is packed is read again, and nothing else is."""

import json
import struct

import pytest

from kvtier import _native
from kvtier.block import Kind
from kvtier.moving import Carried
from kvtier.parcel import (
    BEGIN_BYTES,
    COMMAS_MAX,
    END_BYTES,
    HEAD_BYTES_MAX,
    MAGIC,
    VERSION,
    Damaged,
    End,
    Head,
    Namespace,
    ParcelError,
    pack_end,
    pack_head,
    unpack_begin,
    unpack_end,
    unpack_head,
    witness_of,
)

ROOT, OTHER = bytes(32), bytes(31) + b"\1"
CHAT = Carried("my chat", bytes(range(16)), 0, bytes(range(48)), 2, 7, "grep", 12.5, 600.0, 0.0)
NAMELESS = Carried("", b"", 1, bytes(16), 1, 1, "", 0.0, 0.0, 90.0)
HEAD = Head(
    witness_of(ROOT),
    (Namespace(b"d" * 32, Kind(1024**2, 16, True)), Namespace(b"e" * 32, Kind(65_536, 32, False))),
    (CHAT, NAMELESS),
    3,
    3 * 1024**2,
)


def read(begin: bytes, text: bytes) -> Head:
    length, crc = unpack_begin(begin)
    assert length == len(text)
    return unpack_head(text, crc)


def forged(**fields: object) -> bytes:
    """A head with a crc that fits, whatever it says; None: without that field."""
    said = json.loads(pack_head(HEAD)[1]) | fields
    return json.dumps({name: value for name, value in said.items() if value is not None}).encode()


# --- what is packed is read again ----------------------------------------------------------------------------


def test_a_head_is_read_as_it_was_packed():
    begin, text = pack_head(HEAD)
    assert len(begin) == BEGIN_BYTES and begin.startswith(MAGIC)
    assert read(begin, text) == HEAD


def test_an_end_is_read_as_it_was_packed():
    end = End(3, 3 * 1024**2, 2**32 - 1)
    assert len(pack_end(end)) == END_BYTES
    assert unpack_end(pack_end(end)) == end


def test_the_witness_tells_roots_apart_and_nothing_else():
    assert witness_of(ROOT) == witness_of(ROOT) != witness_of(OTHER)
    assert witness_of(ROOT) not in ROOT and len(witness_of(ROOT)) == 16


def test_what_a_session_carries_are_its_clients_hints():
    hints = CHAT.hints
    assert (hints.session, hints.tenant, hints.tool) == ("my chat", bytes(range(16)), "grep")
    assert (hints.expect_return_s, hints.ttl_s, hints.pin, hints.end) == (12.5, 600.0, False, False)
    assert (NAMELESS.hints.pin, NAMELESS.hints.ttl_s) == (True, 90.0)


# --- and nothing else ----------------------------------------------------------------------------------------


def test_another_file_is_said_to_be_one():
    with pytest.raises(ParcelError, match="this is no file of `kvtier export`"):
        unpack_begin(b"PK\3\4" + bytes(BEGIN_BYTES - 4))


def test_another_version_names_both():
    begin = struct.pack("<4sIII", MAGIC, 9, 0, 0)
    with pytest.raises(ParcelError, match="version 9, this kvtier reads 2; install the same kvtier on both nodes"):
        unpack_begin(begin)


def test_a_head_that_says_it_is_endless_is_not_waited_for():
    with pytest.raises(Damaged, match="its head is too long"):
        unpack_begin(struct.pack("<4sIII", MAGIC, VERSION, HEAD_BYTES_MAX + 1, 0))


def test_every_flipped_bit_of_a_head_is_seen():
    begin, text = pack_head(HEAD)
    _, crc = unpack_begin(begin)
    for at in range(len(text)):
        with pytest.raises(Damaged, match="its head is not what was written"):
            unpack_head(text[:at] + bytes([text[at] ^ 4]) + text[at + 1 :], crc)


def test_every_flipped_bit_of_an_end_is_seen():
    end = pack_end(End(3, 99, 1))
    for at in range(len(end)):
        with pytest.raises(Damaged, match="its end is not what was written"):
            unpack_end(end[:at] + bytes([end[at] ^ 64]) + end[at + 1 :])


CHANGED = {
    "no witness": {"witness": None},
    "a witness too short": {"witness": "00"},
    "no sessions": {"sessions": []},
    "too many sessions": {"sessions": json.loads(pack_head(HEAD)[1])["sessions"] * 600},
    "sessions that are text": {"sessions": "chat"},
    "no namespaces": {"namespaces": []},
    "namespaces that are numbers": {"namespaces": [1, 2]},
    "a count below 0": {"blocks": -1},
    "a count that is no number": {"bytes": True},
}


@pytest.mark.parametrize("fields", CHANGED.values(), ids=CHANGED)
def test_a_head_that_makes_no_sense_is_damaged_whatever_its_crc_says(fields):
    text = forged(**fields)
    with pytest.raises(Damaged, match="its head makes no sense"):
        unpack_head(text, _native.crc32c(text))


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "~1"},
        {"name": "two\nlines"},
        {"name": None},
        {"tool": "x" * 65},
        {"tenant": "00"},
        {"tenant": "no hex"},
        {"keys": ""},
        {"keys": "00" * 15},
        {"prompt_blocks": 4},
        {"turns": 2**63},
        {"namespace": 2},
        {"ttl_s": -1},
        {"pin_s": 1e30},
        {"expect_return_s": "soon"},
    ],
    ids=str,
)
def test_a_session_that_makes_no_sense_is_refused(fields):
    sessions = json.loads(pack_head(HEAD)[1])["sessions"]
    text = forged(sessions=[sessions[0] | fields, sessions[1]])
    with pytest.raises(Damaged, match="its head makes no sense"):
        unpack_head(text, _native.crc32c(text))


@pytest.mark.parametrize(
    "fields",
    [{"digest": "00"}, {"slot_bytes": 0}, {"slot_bytes": 1000}, {"block_tokens": 0}, {"is_chain": 1}, {"is_chain": None}],
    ids=str,
)
def test_a_namespace_that_makes_no_sense_is_refused(fields):
    namespaces = json.loads(pack_head(HEAD)[1])["namespaces"]
    text = forged(namespaces=[namespaces[0] | fields, namespaces[1]])
    with pytest.raises(Damaged, match="its head makes no sense"):
        unpack_head(text, _native.crc32c(text))


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"witness":1e999}'])
def test_what_is_no_map_is_damaged(text):
    with pytest.raises(Damaged, match="its head makes no sense"):
        unpack_head(text, _native.crc32c(text))


def test_a_head_of_more_words_than_it_could_need_is_not_even_looked_at():
    text = b"[" + b"[]," * (COMMAS_MAX + 1) + b"[]]"
    with pytest.raises(Damaged, match="its head makes no sense"):
        unpack_head(text, _native.crc32c(text))
