"""The frames: what one side says, the other side hears; whatever else arrives is refused by name."""

import struct
from dataclasses import astuple, fields
from hashlib import sha256

import msgpack
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from messages import KINDS, a, messages

from kvtier import protocol
from kvtier.block import KEY_BYTES, SECRET_BYTES
from kvtier.errors import CODES, FrameError, ProtocolError

HELLO = protocol.Hello(protocol.VERSION, protocol.SCHEDULER, "engine", b"n" * 32, 1 << 20, 128, 64, 1, "int8:bf16:64")
ONE_OF_EACH = [
    HELLO,
    protocol.Welcome(protocol.VERSION, 7, 1 << 30, b"s" * 32, 64, b"w" * 32, b"g" * 64, 1 << 31, b"u" * 16, b"s" * 8),
    protocol.Mapped(1 << 30, 1, "batch"),
    protocol.Workers(2),
    protocol.Lookup(1, b"k" * 32, 1, "request", 300, 128, 5_000, b"w" * 16),
    protocol.Found(1, b"\1\0\0\0\xff\xff\xff\xff"),
    protocol.Release(1, 2),
    protocol.Lend(b"\1\0\0\0"),
    protocol.Commit(b"k" * 16, b"\1\0\0\0", b"p" * 16, "request"),
    protocol.GiveBack(b"\1\0\0\0"),
    protocol.Touch(b"k" * 16, "request"),
    protocol.Reset(),
    protocol.Report({"skipped_no_slot": 3}),
    protocol.Drain(),
    protocol.Ask(),
    protocol.Snapshot({"tiers": {"cpu": {"blocks": 1}}, "engines": ({"engine": "a"},)}),
    protocol.Error("bad_order", "not now"),
    protocol.Want(7),
    protocol.Staging(1),
    protocol.Flush(),
    protocol.Flushed(1),
    protocol.Due(1),
    protocol.Pace({"step_ns": 8_000_000}),
    protocol.Outcome("request", {"ttft_us": 250_000}),
    protocol.Explain("last", 3),
    protocol.Explained({"decisions": ({"request": "a"},)}),
    protocol.Begin("request", "a chat", b"t" * 16, "search", {"end": 1}),
]


def hear(*pieces: bytes) -> list[protocol.Message]:
    """What a reader makes of these pieces of a stream."""
    reader = protocol.FrameReader()
    return [message for piece in pieces for message in reader.feed(piece)]


def framed(*parts: object) -> bytes:
    """A well-formed frame around anything."""
    body = msgpack.packb(parts)
    return struct.pack("<I", len(body)) + body


def code_of(kind: type) -> int:
    """As it stands on the wire."""
    sample = next(message for message in ONE_OF_EACH if type(message) is kind)
    return msgpack.unpackb(protocol.encode(sample)[4:], strict_map_key=False)[0]


def changed(message: protocol.Message, name: str, value: object) -> bytes:
    """The frame of this message with one field replaced."""
    parts = [value if f.name == name else getattr(message, f.name) for f in fields(message)]
    return framed(code_of(type(message)), *parts)


# --- what is said is heard ---------------------------------------------------------------------------------------


def test_a_frame_is_a_little_endian_length_and_a_msgpack_array_of_code_and_fields():
    frame = protocol.encode(protocol.Release(5, 3))
    assert frame[:4] == b"\x05\0\0\0"
    assert msgpack.unpackb(frame[4:]) == [7, 5, 3, 0]


def test_the_codes_on_the_wire_never_change():
    assert [code_of(type(message)) for message in ONE_OF_EACH] == list(range(1, 28))


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda m: type(m).__name__)
def test_every_kind_of_message_arrives_as_it_was_sent(message):
    assert hear(protocol.encode(message)) == [message]


@given(messages)
def test_any_message_arrives_as_it_was_sent(message):
    assert hear(protocol.encode(message)) == [message]


@given(st.integers(0, 2**63 - 1), st.integers(0, 5))
def test_the_quick_encoder_writes_the_same_bytes_as_the_general_one(lease, n):
    slots = b"s" * 4 * n
    assert protocol.encode_found(lease, slots) == protocol.encode(protocol.Found(lease, slots))


def test_messages_that_arrive_together_come_out_in_order():
    assert hear(b"".join(map(protocol.encode, ONE_OF_EACH))) == ONE_OF_EACH


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda m: type(m).__name__)
def test_a_frame_that_is_cut_anywhere_arrives_when_its_rest_does(message):
    frame = protocol.encode(message)
    for cut in range(1, len(frame)):
        reader = protocol.FrameReader()
        assert list(reader.feed(frame[:cut])) == []
        assert reader.partial == cut
        assert list(reader.feed(frame[cut:])) == [message]
        assert reader.partial == 0


def test_a_stream_of_single_bytes_is_understood():
    stream = b"".join(map(protocol.encode, ONE_OF_EACH))
    assert hear(*[stream[i : i + 1] for i in range(len(stream))]) == ONE_OF_EACH


@given(st.lists(messages, max_size=6), st.data())
def test_where_a_stream_is_cut_makes_no_difference(said, data):
    stream = b"".join(map(protocol.encode, said))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)])]
    assert hear(*pieces) == said


def test_the_largest_lookup_and_its_answer_fit_a_frame():
    lookup = protocol.Lookup(1, bytes(KEY_BYTES * protocol.KEYS_MAX), 0)
    full = bytes(KEY_BYTES * protocol.KEYS_MAX)
    commit = protocol.Commit(full, bytes(4 * protocol.KEYS_MAX), full, "r" * protocol.TEXT_MAX)
    assert hear(protocol.encode(lookup), protocol.encode(commit)) == [lookup, commit]


# --- what is no frame --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, protocol.FRAME_BYTES_MAX + 1, 2**31, 2**32 - 1])
def test_a_length_of_nothing_or_over_the_limit_is_refused_before_anything_is_kept(length):
    reader = protocol.FrameReader()
    with pytest.raises(FrameError, match=f"a frame of {length} bytes; the limit is {protocol.FRAME_BYTES_MAX}"):
        list(reader.feed(struct.pack("<I", length)))
    assert reader.partial == 4


def test_what_came_before_the_nonsense_is_still_heard():
    reader = protocol.FrameReader()
    heard = []
    with pytest.raises(FrameError, match="not msgpack"):
        for message in reader.feed(protocol.encode(protocol.Ask()) + struct.pack("<I", 1) + b"\xc1"):
            heard.append(message)
    assert heard == [protocol.Ask()]


@pytest.mark.parametrize("body", [b"\xc1", b"\x92\x0f", b"\x91\x0f\x00", b"\x91\xa2\xff\xff", b"\x91" * 2000 + b"\x0f"])
def test_bytes_that_are_not_one_value_of_msgpack_are_refused(body):
    with pytest.raises(FrameError, match="not msgpack"):
        protocol.decode(body)


def test_an_array_that_claims_more_entries_than_it_has_bytes_is_refused():
    with pytest.raises(FrameError, match="not msgpack"):
        protocol.decode(b"\xdd\xff\xff\xff\xff")


@pytest.mark.parametrize("value", [None, 15, "Ask", {}, [], [0], [28], [True], ["15"], [[15]], [15.0], [-1]])
def test_a_value_that_is_no_array_with_a_known_code_is_no_message(value):
    with pytest.raises(FrameError, match="not a message"):
        protocol.decode(msgpack.packb(value))


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda m: type(m).__name__)
def test_a_field_too_many_or_too_few_is_refused(message):
    parts = [code_of(type(message)), *astuple(message)]
    with pytest.raises(FrameError, match=f"{type(message).__name__} has {len(parts) - 1} fields, not {len(parts)}"):
        hear(framed(*parts, 0))
    if len(parts) > 1:
        with pytest.raises(FrameError, match=f"has {len(parts) - 1} fields, not {len(parts) - 2}"):
            hear(framed(*parts[:-1]))


# --- what is a frame with a wrong field --------------------------------------------------------------------------

NO_COUNT = [-1, 2**63, 1.0, True, None, "1", b"1", [1]]
NO_TEXT = [b"engine", 1, None, ["e"], "x" * (protocol.TEXT_MAX + 1)]
NO_BYTES = ["kkkk", 1, None, [1], {}]
WRONG = {int: NO_COUNT, str: NO_TEXT, bytes: NO_BYTES}
ENTRY_BYTES = {
    "keys": KEY_BYTES,
    "slots": 4,
    "secret": SECRET_BYTES,
    "namespace": 1,
    "parents": KEY_BYTES,
    "witness": KEY_BYTES,
    "tenant": KEY_BYTES,
    "witness_secret": SECRET_BYTES,
    "gpu": 64,
    "gpu_uuid": 16,
    "gpu_stamp": 8,
}


def wrong_fields() -> list:
    """Every field of every kind with everything that it can't be. An Error's text may be long: it is for people."""
    cases = []
    for message in ONE_OF_EACH:
        for field in fields(message):
            values = list(WRONG.get(field.type, [[], 1, "state", None]))
            if field.type is bytes and ENTRY_BYTES[field.name] > 1:
                values.append(b"x" * (ENTRY_BYTES[field.name] + 1))
            if message is HELLO and field.name == "version":  # any other number is another version
                values = [value for value in values if type(value) is not int]
            if type(message) is protocol.Error:
                values.remove("x" * (protocol.TEXT_MAX + 1))
            cases += [(message, field.name, value) for value in values]
    return cases


@pytest.mark.parametrize(("message", "name", "value"), wrong_fields())
def test_a_wrong_field_is_refused_by_its_name(message, name, value):
    with pytest.raises(FrameError, match=rf"^{type(message).__name__}\.{name} is no") as raised:
        hear(changed(message, name, value))
    assert raised.value.code == "bad_frame"


@pytest.mark.parametrize("name", ["keys", "slots", "parents"])
def test_more_keys_or_slots_than_the_limit_are_too_many(name):
    message = protocol.Commit(b"", b"")
    full = bytes(ENTRY_BYTES[name] * protocol.KEYS_MAX)
    assert getattr(hear(changed(message, name, full))[0], name) == full
    with pytest.raises(ProtocolError, match=rf"Commit\.{name} has more than {protocol.KEYS_MAX} entries") as raised:
        hear(changed(message, name, full + bytes(ENTRY_BYTES[name])))
    assert raised.value.code == "too_many"


def test_a_witness_or_a_tenant_is_one_key_or_none():
    lookup = protocol.Lookup(1, b"k" * 16, witness=b"w" * 16)
    assert hear(changed(lookup, "witness", b"")) == [protocol.Lookup(1, b"k" * 16)]
    with pytest.raises(FrameError, match=r"Lookup\.witness is more than one"):
        hear(changed(lookup, "witness", b"w" * 32))
    begin = protocol.Begin("request", tenant=b"t" * 16)
    assert hear(changed(begin, "tenant", b"")) == [protocol.Begin("request")]
    with pytest.raises(FrameError, match=r"Begin\.tenant is more than one"):
        hear(changed(begin, "tenant", b"t" * 32))


def test_the_gpu_tiers_memory_has_one_handle_and_lies_on_one_device():
    welcome = protocol.Welcome(protocol.VERSION, 7, 1 << 30, b"", 0, b"", b"g" * 64, 1 << 31, b"u" * 16, b"s" * 8)
    assert hear(protocol.encode(welcome)) == [welcome]
    for name, value in (("gpu", bytes(128)), ("gpu_uuid", bytes(32)), ("gpu_stamp", bytes(16))):
        with pytest.raises(FrameError, match=rf"Welcome\.{name} is more than one"):
            hear(changed(welcome, name, value))


def test_a_stamp_is_of_its_seed_and_stays_the_same_in_all_releases():
    stamp = protocol.gpu_stamp_of(b"8 bytes!")
    assert stamp.nbytes == protocol.GPU_STAMP_BYTES and sha256(stamp.tobytes()).hexdigest()[:16] == "6783414e9702be34"
    assert not np.array_equal(stamp, protocol.gpu_stamp_of(b"8 others"))


def test_a_worker_copies_in_a_way_that_there_is():
    assert hear(changed(protocol.Mapped(), "copies", "kernel")) == [protocol.Mapped(copies="kernel")]
    with pytest.raises(FrameError, match=r"Mapped\.copies is none of memcpy, batch, async, kernel"):
        hear(changed(protocol.Mapped(), "copies", "\x1b[31m"))


def test_a_request_about_which_nothing_more_is_known_takes_no_more_than_before():
    assert protocol.Commit(b"", b"") == protocol.Commit(b"", b"", b"", "")
    assert protocol.Touch(b"") == protocol.Touch(b"", "")
    assert protocol.Begin("request").counts == {}


@pytest.mark.parametrize(
    "counts", [{"a": -1}, {"a": 2**63}, {"a": 1.5}, {"a": True}, {"a": "1"}, {b"a": 1}, {"a": {"b": 1}}]
)
def test_a_report_holds_names_and_counts_only(counts):
    with pytest.raises(FrameError, match=r"Report\.counts is no map"):
        hear(framed(13, counts))


def test_a_report_has_a_limit():
    counts = {f"count {i}": 1 for i in range(protocol.COUNTS_MAX)}
    assert hear(framed(13, counts)) == [protocol.Report(counts)]
    with pytest.raises(FrameError, match=f"no map of up to {protocol.COUNTS_MAX} counts"):
        hear(framed(13, {**counts, "one more": 1}))


def test_a_hello_of_another_version_is_known_as_such_whatever_else_it_holds():
    # Its sender must learn that it is of another version, so that it doesn't come back every second; and another
    # version's Hello need not have the fields of ours.
    for parts in ([9], [9, "scheduler"], [0, {}, None], [9, *astuple(HELLO)[1:], "more"]):
        with pytest.raises(ProtocolError, match=f"protocol {protocol.VERSION}, .* {parts[0]}") as raised:
            hear(framed(1, *parts))
        assert raised.value.code == "bad_version"


# --- anything ----------------------------------------------------------------------------------------------------


def refuse_or_hear(data: bytes) -> None:
    """Whatever arrives becomes messages or a ProtocolError, never anything else."""
    try:
        heard = hear(data)
    except ProtocolError as error:
        assert error.code in CODES and str(error)
    else:
        assert all(type(message) in KINDS for message in heard)


@given(st.binary(max_size=200))
@example(b"\xff" * 8)
def test_random_bytes_are_heard_or_refused(data):
    refuse_or_hear(data)


@given(st.binary(min_size=1, max_size=200))
@example(b"\x93\x06\xd6\xff\0\0\0\0\xc4\0")  # a timestamp where a count belongs
@example(b"\x93\x06\xc7\x03\xff\0\0\0\xc4\0")  # a timestamp of a length that none has
@example(b"\x92\x0d\x81\x90\x00")  # a map with an array as its key
def test_random_bytes_in_a_frame_are_heard_or_refused(body):
    refuse_or_hear(struct.pack("<I", len(body)) + body)


short = st.text(max_size=8) | st.binary(max_size=8)
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | short
anything = plain | st.lists(plain, max_size=3) | st.dictionaries(short, plain, max_size=3)


@given(st.integers(0, 28), st.lists(anything, max_size=8))
def test_any_values_under_any_code_are_heard_or_refused(code, values):
    refuse_or_hear(framed(code, *values))


@given(st.sampled_from(KINDS).flatmap(a), st.data())
def test_a_frame_with_a_flipped_byte_is_heard_or_refused(message, data):
    frame = bytearray(protocol.encode(message))
    where = data.draw(st.integers(4, len(frame) - 1))
    frame[where] ^= data.draw(st.integers(1, 255))
    refuse_or_hear(bytes(frame))
