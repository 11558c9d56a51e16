"""Names: equal where the bytes are equal, different where anything differs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvtier.block import (
    KEY_BYTES,
    SLOT_UNIT,
    block_key,
    namespace_digest,
    namespace_secret,
    pack_keys,
    pack_slots,
    private_secret,
    slot_bytes_for,
    unpack_keys,
    unpack_slots,
)

FACTS = {"model": "m", "dtype": "bf16", "layers": 24, "ranks": [0, 1]}
ROOT, OTHER_ROOT = b"a daemon", b"another daemon"
DIGEST = namespace_digest(FACTS)
SECRET = namespace_secret(ROOT, DIGEST, 0)


def test_a_key_has_16_bytes_and_is_the_same_every_time():
    assert len(block_key(SECRET, b"hash")) == KEY_BYTES == 16
    assert block_key(SECRET, b"hash") == block_key(SECRET, b"hash")


def test_a_key_does_not_show_the_engines_hash():
    assert b"hash" not in block_key(SECRET, b"hash")


def test_keys_differ_by_content():
    assert block_key(SECRET, b"hash 1") != block_key(SECRET, b"hash 2")


def test_keys_differ_by_daemon():
    assert block_key(SECRET, b"hash") != block_key(namespace_secret(OTHER_ROOT, DIGEST, 0), b"hash")


def test_keys_differ_by_epoch():
    assert block_key(SECRET, b"hash") != block_key(namespace_secret(ROOT, DIGEST, 1), b"hash")


def test_keys_differ_after_a_reset_and_again_after_the_next():
    first, second = private_secret(SECRET, b"first"), private_secret(SECRET, b"second")
    assert len({block_key(secret, b"hash") for secret in (SECRET, first, second)}) == 3


def test_the_order_of_facts_does_not_matter():
    assert namespace_digest(dict(reversed(FACTS.items()))) == DIGEST


def test_every_fact_matters():
    changed = [
        {**FACTS, "model": "n"},
        {**FACTS, "layers": "24"},
        {**FACTS, "ranks": [1, 0]},
        {**FACTS, "more": None},
        {name: fact for name, fact in FACTS.items() if name != "dtype"},
    ]
    digests = {namespace_digest(facts) for facts in [FACTS, *changed]}
    assert len(digests) == 1 + len(changed)


@given(
    st.dictionaries(st.text(), st.integers() | st.text(), max_size=4),
    st.dictionaries(st.text(), st.integers() | st.text(), max_size=4),
)
def test_facts_have_equal_digests_exactly_when_they_are_equal(these, those):
    assert (namespace_digest(these) == namespace_digest(those)) == (these == those)


@given(st.lists(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)))
def test_keys_come_out_as_they_were_packed(keys):
    assert unpack_keys(pack_keys(keys)) == keys


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_slots_come_out_as_they_were_packed(slots):
    assert unpack_slots(pack_slots(slots)).tolist() == slots


def test_unpacked_slots_are_a_view_that_nobody_can_change():
    slots = unpack_slots(pack_slots(np.array([1, 2, 3], np.uint32)))
    assert not slots.flags.writeable
    assert slots.nbytes == 12


def test_a_block_needs_whole_units():
    assert [slot_bytes_for(n) for n in (1, SLOT_UNIT, SLOT_UNIT + 1)] == [SLOT_UNIT, SLOT_UNIT, 2 * SLOT_UNIT]
