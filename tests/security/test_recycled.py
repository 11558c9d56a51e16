"""Places that had bytes of one tenant and go to another, or are nobody's any more: no such byte is in them. Looked for in
the arena, in the files of the drives, in whatever else kvtierd writes, and in what leaves it for other nodes."""

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from admin_caller import caller_of, listed
from arena_bytes import ArenaBytes, content_of
from chat import BLOCK, Chat, nvme_settings, turn
from kvtierd import PATIENCE_S, Engine, KVTierd, eventually, root_file, some_keys
from stranger import as_stranger, shared_by_two

from kvtier import observer, protocol
from kvtier.block import SLOT_UNIT, unpack_keys, unpack_slots

TENANT = bytes(range(16))
PIECE, PAGE = 24, 4096  # bytes; a piece is long enough to be nobody else's
ROUNDS = 3
SMALL, SLOT_OF_SMALL = 70_000, 2 * SLOT_UNIT  # a block that leaves much of its slot over


class Traces:
    """Some bytes of each page of these blocks. Slots and places begin with pages, so that is where they would be."""

    def __init__(self, keys: bytes, size: int = BLOCK) -> None:
        contents = [content_of(key, size) for key in unpack_keys(keys)]
        self._of_pages = np.unique(np.concatenate([words_of(content) for content in contents]))
        self._begins = [content[:PIECE] for content in contents]

    def are_in(self, content: bytes | mmap.mmap) -> bool:
        return bool(np.isin(words_of(content), self._of_pages).any()) or any(content.find(b) >= 0 for b in self._begins)

    def files(self, folder: Path) -> list[str]:
        """Of all that lies there."""
        return [str(file) for file in folder.rglob("*") if file.is_file() and self.are_in(file.read_bytes())]


def words_of(content: bytes | mmap.mmap) -> np.ndarray:
    """The first 8 bytes of each page."""
    return np.frombuffer(bytes(content[: len(content) // PAGE * PAGE]), np.uint64)[:: PAGE // 8]


# --- one user's tenants ------------------------------------------------------------------------------------------


def test_of_a_forgotten_tenant_no_byte_is_left_anywhere(tmp_path):
    theirs, others = some_keys(6, "theirs"), some_keys(6, "others")
    with KVTierd(tmp_path, nvme_settings(tmp_path)) as daemon, caller_of(daemon) as admin, Chat(daemon) as chat:
        turn(chat, "one", theirs, TENANT)
        turn(chat, "two", others)
        assert observer.flush(daemon.socket, PATIENCE_S)
        traces = Traces(theirs)
        assert traces.are_in(chat.arena._map) and traces.files(tmp_path)
        tenant = eventually(lambda: listed(admin, "one")["tenant"])
        proof = admin.forget("", tenant)
        assert (proof["blocks"]["cpu"], proof["blocks"]["nvme"]) == (6, 6)
        assert not traces.are_in(chat.arena._map)
        assert not traces.files(tmp_path)
        assert chat.load(others) == 6


def test_with_a_key_no_byte_of_a_block_ever_lies_in_a_file(tmp_path):
    keys = some_keys(12, "theirs")
    settings = {**nvme_settings(tmp_path), "encryption.key_file": root_file(tmp_path)}
    with KVTierd(tmp_path, settings) as daemon, caller_of(daemon) as admin, Chat(daemon) as chat:
        turn(chat, "one", keys, TENANT)
        assert observer.flush(daemon.socket, PATIENCE_S)
        traces = Traces(keys)
        assert traces.are_in(chat.arena._map) and daemon.snapshot()["tiers"]["nvme"]["blocks"] == 12
        assert not traces.files(tmp_path)
        admin.forget("one")
        assert not traces.are_in(chat.arena._map) and not traces.files(tmp_path)


def test_what_a_block_leaves_over_of_its_slot_is_zero_when_it_is_saved(tmp_path):
    """A slot goes to drives, remotes and other nodes whole."""
    with KVTierd(tmp_path, {"cpu.capacity": "32 MiB"}) as daemon:
        with Engine(daemon.socket, "first", block_bytes=SLOT_OF_SMALL, lend=64) as first:
            arena = ArenaBytes(daemon, "first")
            for number, key in enumerate(unpack_keys(some_keys(600))):
                while not first.lent:
                    first.passed_over(first.hear_any())
                arena.write(first.lent[0], content_of(key, SLOT_OF_SMALL))
                first.save(key)
                assert number < 600
            arena.close()
        eventually(lambda: not daemon.snapshot()["engines"])
        with Engine(daemon.socket, "second", model="other", block_bytes=SMALL, lend=64) as second:
            arena = ArenaBytes(daemon, "second")
            seen = 0
            for key in unpack_keys(some_keys(300, "second")):
                while not second.lent:
                    second.passed_over(second.hear_any())
                slot = second.lent[0]
                assert not any(arena.read(slot, SLOT_OF_SMALL)[SMALL:]), "bytes of another block lie behind it"
                arena.write(slot, content_of(key, SMALL))
                second.save(key)
                seen += 1
            arena.close()
        assert seen == 300


# --- two users ---------------------------------------------------------------------------------------------------


class Strangers:
    """An engine of a user that isn't the daemon's."""

    def __init__(self, daemon: KVTierd, name: str, lend: int = 8) -> None:
        with as_stranger():
            self.engine = Engine(daemon.socket, name, block_bytes=BLOCK, lend=lend)
            self.arena = ArenaBytes(daemon, name)

    def next_slot(self) -> int:
        while not self.engine.lent:
            self.engine.lent += unpack_slots(self.engine.hear(protocol.Lend).slots).tolist()
        return self.engine.lent[0]

    def close(self) -> None:
        self.engine.close()
        self.arena.close()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[KVTierd]:
    """One that two users use."""
    with shared_by_two(nvme_settings(tmp_path)) as daemon:
        yield daemon


def look_through(stranger: Strangers, traces: Traces, blocks: int, name: str) -> None:
    """So many blocks are saved, and each slot is looked at before it is written."""
    for key in unpack_keys(some_keys(blocks, name)):
        slot = stranger.next_slot()
        assert not traces.are_in(stranger.arena.read(slot, BLOCK)), "a byte of another user lies in a slot that is lent"
        stranger.arena.write(slot, content_of(key, BLOCK))
        stranger.engine.save(key)


def test_a_slot_that_is_lent_has_no_byte_of_another_user(shared):
    stranger = Strangers(shared, "stranger")
    try:
        for n in range(ROUNDS):
            keys = some_keys(40, f"round {n}")
            with Chat(shared) as chat:
                chat.save(keys)
                chat.load(keys)
            look_through(stranger, Traces(keys), 40, f"strangers' round {n}")
    finally:
        stranger.close()


def test_nor_has_one_that_was_only_lent_before_or_was_reset(shared):
    stranger = Strangers(shared, "stranger")
    try:
        for n in range(ROUNDS):
            keys = some_keys(8, f"round {n}")
            with Chat(shared) as chat:
                if n == 1:
                    chat.save(keys)
                    chat.engine.say(protocol.Reset())
                else:
                    for key, slot in zip(unpack_keys(keys), chat.engine.lent, strict=False):
                        chat.arena.write(slot, content_of(key, BLOCK))
                    if n == 2:
                        chat.engine.say(protocol.GiveBack(b"".join(s.to_bytes(4, "little") for s in chat.engine.lent)))
                assert chat.engine.ask(protocol.Ask(), answer=protocol.Snapshot)
            eventually(lambda: len(shared.snapshot()["engines"]) == 1)
            look_through(stranger, Traces(keys), 40, f"strangers' round {n}")
    finally:
        stranger.close()


def test_what_is_read_back_into_a_slot_of_another_user_covers_all_of_it(shared):
    theirs, keys = some_keys(24, "strangers'"), some_keys(40)
    stranger = Strangers(shared, "stranger")
    try:
        look_through(stranger, Traces(keys), 24, "strangers'")
        assert observer.flush(shared.socket, PATIENCE_S)
        with Chat(shared) as chat:
            chat.save(keys)
            assert observer.flush(shared.socket, PATIENCE_S)
        slots = stranger.engine.lookup(theirs[: 8 * 16])
        here = [(key, slot) for key, slot in zip(unpack_keys(theirs), slots, strict=False) if slot < 2**31]
        assert here
        for key, slot in here:
            assert stranger.arena.read(slot, BLOCK) == content_of(key, BLOCK)
        stranger.engine.release(len(here))
    finally:
        stranger.close()
