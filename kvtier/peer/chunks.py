"""A Chunk of peer.proto as bytes, without a copy more than needed: protobuf's own classes make three of each. No I/O.

    field 1, header      0x0a  length  bytes
    field 2, body        0x12  length  bytes

What other programs write may have the fields in any order, twice, or have others; then the last of each counts, as
protobuf has it.
"""

from collections.abc import Iterator

from kvtier.peer import CHUNK_BYTES

HEADER, BODY = b"\x0a", b"\x12"
_LENGTH_DELIMITED = 2


def packed(header: bytes, body: memoryview) -> bytes:
    """A message. An empty header isn't there."""
    if header:
        return b"".join((HEADER, _varint(len(header)), header, BODY, _varint(len(body)), body))
    return b"".join((BODY, _varint(len(body)), body))


def of_value(header: bytes, body: memoryview) -> Iterator[bytes]:
    """All messages of a value."""
    yield packed(header, body[:CHUNK_BYTES])
    for at in range(CHUNK_BYTES, len(body), CHUNK_BYTES):
        yield packed(b"", body[at : at + CHUNK_BYTES])


def parsed(message: bytes) -> tuple[memoryview, memoryview]:
    """Header and body; empty where there is none. ValueError: this is no Chunk."""
    view, at = memoryview(message), 0
    found = {HEADER: view[:0], BODY: view[:0]}
    while at < len(view):
        tag, at = _number(view, at)
        if tag & 7 == _LENGTH_DELIMITED:
            size, at = _number(view, at)
            end = at + size
        else:
            end = _end_of_other(view, at, tag & 7)
        if end > len(view):
            raise ValueError("a chunk that ends too early")
        if (name := bytes([tag & 0x7F])) in found and tag < 0x80:
            found[name] = view[at:end]
        at = end
    return found[HEADER], found[BODY]


def _end_of_other(view: memoryview, at: int, wire_type: int) -> int:
    """Of a field that we don't know."""
    if wire_type == 0:
        return _number(view, at)[1]
    if wire_type in (1, 5):
        return at + (8 if wire_type == 1 else 4)
    raise ValueError("a chunk with a field of no kind")


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _number(view: memoryview, at: int) -> tuple[int, int]:
    """What stands there, and where it ends."""
    number = shift = 0
    while at < len(view) and shift < 64:
        byte = view[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise ValueError("a chunk with a number that has no end")
