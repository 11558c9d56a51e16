"""Chunks as bytes: what protobuf's own classes read and write."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.peer import CHUNK_BYTES, MESSAGE_BYTES_MAX, chunks, peer_pb2


@given(st.binary(max_size=300), st.binary(max_size=70_000))
def test_protobuf_reads_what_is_written_here(header, body):
    read = peer_pb2.Chunk.FromString(chunks.packed(header, memoryview(body)))
    assert (read.header, read.body) == (header, body)


@given(st.binary(max_size=300), st.binary(max_size=70_000))
def test_what_protobuf_writes_is_read_here(header, body):
    found = chunks.parsed(peer_pb2.Chunk(header=header, body=body).SerializeToString())
    assert tuple(map(bytes, found)) == (header, body)


@given(st.binary(max_size=100))
def test_whatever_comes_is_a_chunk_or_none(message):
    try:
        found = chunks.parsed(message)
    except ValueError:
        return
    assert sum(map(len, found)) <= len(message)


def test_fields_that_a_later_version_has_are_passed_over():
    later = b"\x18\x96\x01" + b"\x22\x03abc" + b"\x29" + bytes(8) + b"\x35" + bytes(4)  # 3, 4, 5 and 6, of four kinds
    assert tuple(map(bytes, chunks.parsed(later + chunks.packed(b"head", memoryview(b"body"))))) == (b"head", b"body")


@pytest.mark.parametrize("message", [b"\x12\x05abc", b"\x12", b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x13"])
def test_what_ends_too_early_is_no_chunk(message):
    with pytest.raises(ValueError):
        chunks.parsed(message)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_a_value_goes_in_chunks_with_its_header_in_the_first(size):
    body = os.urandom(size)
    messages = list(chunks.of_value(b"its header", memoryview(body)))
    parts = [tuple(map(bytes, chunks.parsed(message))) for message in messages]
    assert [header for header, _ in parts] == [b"its header"] + [b""] * (len(parts) - 1)
    assert b"".join(part for _, part in parts) == body
    assert max(map(len, messages)) < MESSAGE_BYTES_MAX
