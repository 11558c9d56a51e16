"""Extents: whose block lies where. What was dropped is known until it was erased, for its bytes are there still."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.block import SLOT_UNIT, pack_keys
from kvtier.extents import Extents

MIB = 1024**2
EXTENT = 2 * MIB
BLOCK = MIB // 2  # 4 of them fill an extent
CHAT, OTHER, NO_CHAT = b"chat 1..", b"chat 2..", bytes(8)
ACME, OWN = b"acme....", b"own....."


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def write(extents: Extents, number: int, origin: bytes = b"", size: int = BLOCK) -> int:
    place = extents.take(size)
    assert place is not None
    extents.add(place, key(number), 0, number, origin)
    return place


def of(extents: Extents, session: bytes = b"", tenant: bytes = b"") -> list[int]:
    return sorted(extents.of_origin(session, tenant).tolist())


def test_blocks_are_found_by_session_by_tenant_and_by_both():
    extents = Extents(4, EXTENT)
    origins = [CHAT + ACME, OTHER + ACME, b"", CHAT + OWN, NO_CHAT + ACME]
    a, b, c, d, e = (write(extents, number, origin) for number, origin in enumerate(origins))
    assert of(extents, CHAT) == [a, d]
    assert of(extents, tenant=ACME) == [a, b, e]
    assert of(extents, CHAT, OWN) == [d]
    assert of(extents, NO_CHAT, ACME) == [e]
    assert of(extents, b"chat 3..") == []
    assert of(extents) == [a, b, c, d, e]


def test_it_says_who_saved_a_block_first():
    extents = Extents(4, EXTENT)
    places = [write(extents, 1), write(extents, 2, CHAT + ACME), write(extents, 3)]
    assert [extents.origin(place) for place in places] == [b"", CHAT + ACME, b""]
    assert extents.size(places[1]) == BLOCK


def test_blocks_of_all_sizes_are_found_where_they_are():
    extents = Extents(8, EXTENT, drives=2)
    places = [
        write(extents, number, CHAT + ACME, size) for number, size in enumerate([BLOCK, MIB, SLOT_UNIT, 5 * SLOT_UNIT] * 2)
    ]
    assert of(extents, CHAT) == sorted(places)


def test_a_dropped_block_leaves_its_bytes_until_they_are_erased():
    extents = Extents(4, EXTENT)
    gone, here = write(extents, 1, CHAT + ACME), write(extents, 2, CHAT + ACME)
    extents.drop(gone)
    assert of(extents, CHAT) == [gone, here] and not extents.holds(gone)
    extents.erased(gone)
    assert of(extents, CHAT) == [here]


def test_what_a_reset_dropped_can_still_be_erased():
    extents = Extents(4, EXTENT)
    places = [write(extents, number, CHAT + ACME) for number in range(3)]
    assert extents.drop_namespace(0) == 3
    assert of(extents, tenant=ACME) == places and of(extents) == places


def test_a_write_that_was_given_up_may_have_left_bytes():
    extents = Extents(4, EXTENT)
    place = extents.take(BLOCK)
    extents.give_up(place, CHAT + ACME)
    assert of(extents, CHAT) == [place] and not extents.holds(place)


def test_what_was_reclaimed_is_nobodys():
    extents = Extents(2, EXTENT)
    for number in range(8):
        write(extents, number, CHAT + ACME)
    first, end, _ = extents.reclaim()
    assert of(extents, CHAT) == of(extents) == [place for place in range(0, 64, 8) if not first <= place < end]
    extents.freed(first)
    assert len(of(extents, CHAT)) == 4
    assert extents.origin(write(extents, 100)) == b"", "its row was another block's"


@pytest.mark.parametrize("tags", [[CHAT + ACME, b"", OTHER + ACME], [b"", b"", b""]])
def test_origins_are_recovered(tags):
    extents = Extents(4, EXTENT)
    origins = np.frombuffer(b"".join(tag or bytes(16) for tag in tags), np.uint8).reshape(-1, 16)
    places = np.array([32, 40, 96], np.uint32)
    columns = places, np.full(3, BLOCK), np.zeros(3, np.int32), np.zeros(3, np.uint32)
    assert extents.recover(pack_keys(map(key, range(3))), *columns, origins) == 0
    assert [extents.origin(place) for place in (32, 40, 96)] == tags
    assert of(extents, CHAT) == ([32] if tags[0] else [])
    assert of(extents) == [32, 40, 96]


# --- a model -------------------------------------------------------------------------------------------------


class Model:
    """A dict of what lies where beside the real one."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.extents = Extents(6, EXTENT, drives=2)
        self.number = 0
        self.origins: dict[int, bytes] = {}  # of places with bytes
        self.alive: set[int] = set()

    def step(self) -> None:
        self.chance.choices([self.write, self.drop, self.erase, self.give_up, self.reclaim], [50, 15, 15, 5, 10])[0]()

    def origin(self) -> bytes:
        known = [session + tenant for session in (CHAT, OTHER) for tenant in (ACME, OWN)]
        return self.chance.choice([b"", *known])

    def take(self) -> int | None:
        """Two kinds of frames among them."""
        sizes = [(BLOCK, 0), (MIB, 0), (3 * SLOT_UNIT, 0), (BLOCK, 5 * SLOT_UNIT), (MIB, 12 * SLOT_UNIT)]
        return self.extents.take(*self.chance.choice(sizes))

    def write(self) -> None:
        if (place := self.take()) is not None:
            self.number += 1
            self.origins[place] = self.origin()
            self.alive.add(place)
            self.extents.add(place, key(self.number), 0, 0, self.origins[place])

    def give_up(self) -> None:
        if (place := self.take()) is not None:
            self.origins[place] = self.origin()
            self.extents.give_up(place, self.origins[place])

    def drop(self) -> None:
        if self.alive:
            self.alive.discard(place := self.chance.choice(sorted(self.alive)))
            self.extents.drop(place)

    def erase(self) -> None:
        if dropped := sorted(self.origins.keys() - self.alive):
            del self.origins[place := self.chance.choice(dropped)]
            self.extents.erased(place)

    def reclaim(self) -> None:
        if (reclaimed := self.extents.reclaim()) is not None:
            first, end, _ = reclaimed
            self.origins = {place: origin for place, origin in self.origins.items() if not first <= place < end}
            self.alive = {place for place in self.alive if not first <= place < end}
            self.extents.freed(first)

    def check(self) -> None:
        known = {place: origin for place, origin in self.origins.items() if origin or place in self.alive}
        for session in (b"", CHAT, OTHER):
            for tenant in (b"", ACME, OWN):
                expected = [p for p, o in known.items() if o[:8].startswith(session) and o[8:].startswith(tenant)]
                assert of(self.extents, session, tenant) == sorted(expected)
        assert all(self.extents.origin(place) == origin for place, origin in known.items())


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_what_it_knows_agrees_with_a_dict_whatever_happens(seed):
    model = Model(seed)
    for _ in range(60):
        model.step()
        if model.chance.random() < 0.2:
            model.check()
