"""What orders ask of a remote: blocks as they are and in frames, whoever wrote them, and whatever lies there."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from coded_blocks import of_bf16, of_noise
from remote.memory_remote import MemoryRemote

from kvtier.block import KEY_BYTES, SLOT_UNIT, pack_keys
from kvtier.codec import RAW, Codec
from kvtier.tiers.master_key import MasterKey
from kvtier.tiers.remote.base import Corrupt, OtherVersion, Unreachable
from kvtier.tiers.remote.calls import Calls, Job
from kvtier.tiers.remote.envelope import name_of
from kvtier.tiers.remote.values import Clear, Sealed
from kvtier.transfer import Demote, Finished, Promote, Seek

DIGEST = b"\x0d" * 32
A, B = b"a" * KEY_BYTES, b"b" * KEY_BYTES
SIZE, UNITS = 5 * SLOT_UNIT, 5  # large enough for a thread
EXP12 = Codec("exp12")
BLOCK = of_bf16(SIZE)


class Node:
    """One of those that share a store. Its first slot has the block, what it reads comes into the second."""

    def __init__(self, values: Clear | Sealed, store: dict[str, bytes]) -> None:
        self.remote = MemoryRemote(store)
        self.arena = np.full(2 * SIZE, 0xA5, np.uint8)
        self.arena[:SIZE] = BLOCK
        self.values = values
        self.calls = Calls(self.remote, self.arena, values, lambda: 0.0)

    def do(self, order: Demote | Promote | Seek, *keys: bytes) -> Finished:
        job = Job([order], [name_of(DIGEST, key) for key in keys or (order.key,)], DIGEST)
        (done,) = asyncio.run(self.calls.make(job))
        return done

    def write(self, codec: Codec = RAW, key: bytes = A, stored: int = 0) -> Finished:
        return self.do(Demote(1, key, 0, 0, SIZE, 7, 0, codec=codec, stored=stored))

    def read(self, stored: int = 0, key: bytes = A) -> Finished:
        """What it read without a fault is right."""
        self.arena[SIZE:] = 0xA5
        done = self.do(Promote(2, key, UNITS, 0, SIZE, 0, 7, stored))
        assert done.fault or np.array_equal(self.arena[SIZE:], BLOCK)
        return done

    def sizes(self, *keys: bytes) -> tuple[int, ...]:
        return self.do(Seek(3, 7, pack_keys(keys)), *keys).sizes


@pytest.fixture(params=["in the clear", "sealed"])
def nodes(request) -> Iterator[tuple[Node, Node]]:
    """Two, with one store."""
    store: dict[str, bytes] = {}
    made = [Clear() if request.param == "in the clear" else Sealed(MasterKey(bytes(32))) for _ in range(2)]
    yield Node(made[0], store), Node(made[1], store)
    for values in made:
        values.close()


@pytest.fixture
def node(nodes) -> Node:
    return nodes[0]


def test_a_block_as_it_is_has_as_many_bytes_there_as_in_its_slot(node):
    written, read = node.write(), node.read()
    assert written.stored == read.stored == SIZE == node.sizes(A)[0] and written.coded_s == read.coded_s == 0
    assert node.calls.counts["written_bytes"] == node.calls.counts["read_bytes"] == SIZE


def test_of_a_frame_what_lies_there_is_told_by_whoever_asks(node):
    written = node.write(EXP12, stored=SIZE)
    assert written.fault == "" and 0 < written.stored < 0.8 * SIZE and written.coded_s > 0
    assert node.sizes(A, B) == (written.stored, 0)
    assert len(node.remote.values[name_of(DIGEST, A)]) == node.values.header_bytes + written.stored
    read = node.read(written.stored)
    assert (read.stored, read.checksum, read.codec) == (written.stored, written.checksum, "exp12") and read.coded_s > 0
    assert node.calls.counts["written_bytes"] == node.calls.counts["read_bytes"] == written.stored


@pytest.mark.parametrize("stored", [0, 1000], ids=["noise", "a bound"])
def test_what_has_no_small_frame_is_larger_and_nothing_is_written(node, stored):
    if not stored:
        node.arena[:SIZE] = of_noise(SIZE)
    assert node.write(EXP12, stored=stored).fault == "larger"
    assert node.remote.calls == [] and node.calls.counts["written_bytes"] == 0


def test_one_node_codes_and_another_does_not_and_each_reads_what_the_other_wrote(nodes):
    one, other = nodes
    coded, raw = one.write(EXP12, key=A), other.write(RAW, key=B)
    assert other.sizes(A, B) == one.sizes(A, B) == (coded.stored, SIZE)
    assert other.read(coded.stored, key=A).fault == one.read(raw.stored, key=B).fault == ""


@pytest.mark.parametrize(("before", "after"), [(RAW, EXP12), (EXP12, RAW)], ids=["coded since", "no longer coded"])
def test_what_another_node_wrote_differently_since_it_was_found_is_read_all_the_same(nodes, before, after):
    one, other = nodes
    found = one.write(before).stored
    now = other.write(after).stored
    assert found != now
    read = one.read(found)
    assert (read.fault, read.stored) == ("", now) and one.remote.deleted == []
    assert one.remote.calls == ["put", "get", "lengths", "get"]


def test_what_is_too_long_is_corrupt(node):
    """Its length is asked for once."""
    node.write(EXP12)
    node.remote.values[name_of(DIGEST, A)] += b"x" * SIZE
    with pytest.raises(Corrupt):
        node.read(1000)
    assert node.remote.calls == ["put", "get", "lengths"]


def test_what_a_node_with_a_key_wrote_over_ours_is_another_version(nodes):
    ours, theirs = Node(Clear(), nodes[0].remote.values), Node(Sealed(MasterKey(bytes(32))), nodes[0].remote.values)
    for codec in (RAW, EXP12):
        stored = ours.write(codec).stored
        theirs.write(codec)
        with pytest.raises(OtherVersion):
            ours.read(stored)
        assert ours.remote.deleted == [] and len(ours.remote.values) == 1
    for node in (ours, theirs):
        node.values.close()


def test_what_goes_between_two_questions_about_it_is_gone(node):
    node.write(EXP12)
    sound = node.remote.get

    async def get(name, header, body):
        try:
            return await sound(name, header, body)
        finally:
            node.remote.values.clear()

    node.remote.get = get
    assert node.read(1000).fault == "gone" and node.calls.counts["gone"] == 1


def test_what_is_shorter_than_a_header_is_corrupt(node):
    node.write(EXP12)
    node.remote.values[name_of(DIGEST, A)] = b"kvtV"
    with pytest.raises(Corrupt):
        node.read(1000)


def test_a_value_that_grows_with_each_question_is_corrupt(node):
    node.write(EXP12)

    async def grow(names):
        node.remote.values[names[0]] += b"x"
        return [len(node.remote.values[names[0]]) - 1]

    node.remote.lengths = grow
    with pytest.raises(Corrupt):
        node.read(1000)


@pytest.mark.parametrize("stored", [SIZE + 1, 1 << 40])
def test_more_bytes_than_the_block_has_are_never_asked_for(node, stored):
    node.write()
    node.remote.calls.clear()
    assert node.read(stored).fault == "", "its length is asked for instead"
    assert node.remote.calls == ["lengths", "get"]


@pytest.mark.parametrize("lie", [1, 63, 64, 1000, SIZE - 1], ids=str)
def test_whatever_is_as_long_as_it_was_said_to_be_is_believed_by_its_header_alone(node, lie):
    written = node.write(EXP12)
    value = node.remote.values[name_of(DIGEST, A)]
    node.remote.values[name_of(DIGEST, A)] = value[: node.values.header_bytes + lie].ljust(node.values.header_bytes + lie)
    assert node.sizes(A) == (lie,) != (written.stored,)
    with pytest.raises(Corrupt):
        node.read(lie)


def test_a_value_in_the_clear_is_another_version_where_values_are_sealed_and_the_other_way_round():
    store: dict[str, bytes] = {}
    clear, sealed = Node(Clear(), store), Node(Sealed(MasterKey(bytes(32))), store)
    for writer, reader in ((clear, sealed), (sealed, clear)):
        for codec in (RAW, EXP12):
            writer.write(codec)
            with pytest.raises(OtherVersion):
                reader.read(min(SIZE, reader.sizes(A)[0]))
    sealed.values.close()


def test_too_few_answers_are_none(node):
    async def lengths(names):
        return []

    node.remote.lengths = lengths
    with pytest.raises(Unreachable, match="0 answers to 2 questions"):
        node.sizes(A, B)
