"""Tenants: what each has, may have, and who pays."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier import tenants as module
from kvtier.tenants import ACTIVE_S, COUNTED_S, NOBODY, NONE, SHOWN_MAX, WRITE_BURST_S, Limits, Tenants, tag_of, tenant_of

SALT, OTHER = bytes(range(16)), bytes(range(16, 32))
CAPACITY = 1000


def made(**limits: float) -> Tenants:
    tenants = Tenants(64, CAPACITY)
    tenants.limits = Limits(**limits)
    return tenants


def with_two(mine: int, others: int, now: float = 0.0) -> tuple[Tenants, int, int]:
    """Two active tenants that have so many bytes; those of the second from slot 32 on."""
    tenants = made()
    one, two = tenants.number(1), tenants.number(2)
    tenants.add(0, one, mine)
    tenants.add(32, two, others)
    tenants.use(one, now)
    tenants.use(two, now)
    return tenants, one, two


def test_a_tenant_of_the_own_user_is_what_its_salt_made_it():
    assert tenant_of("", SALT) == SALT
    assert tenant_of("", b"") == b""


def test_a_tenant_of_another_user_is_that_users_alone():
    named = {tenant_of(user, said) for user in ("", "alice", "bob") for said in (SALT, OTHER)}
    assert len(named) == 6
    assert all(len(tenant) == 16 for tenant in named)


def test_also_requests_without_a_salt_of_another_user_are_its_own():
    assert len({tenant_of(user, b"") for user in ("", "alice", "bob")}) == 3


def test_a_tag_is_what_its_blocks_carry():
    assert tag_of(b"") == 0
    assert tag_of(SALT) == tag_of(SALT[:6] + OTHER[6:]) != tag_of(OTHER)
    assert module.shown_tag(tag_of(SALT)) == SALT[:6].hex()


def test_a_tenant_keeps_its_number():
    tenants = made()
    assert tenants.number(0) == NONE
    assert tenants.number(7) == tenants.number(7) != tenants.number(8)
    assert len(tenants) == 3


def test_there_may_be_many():
    tenants = made()
    assert len({tenants.number(tag) for tag in range(1000)}) == 1000


def test_when_there_are_too_many_one_without_blocks_gives_its_number_to_another(monkeypatch):
    monkeypatch.setattr(module, "TENANTS_MAX", 64)
    tenants = made()
    first = tenants.number(1)
    tenants.add(0, first, 10)
    for tag in range(2, 64):
        tenants.use(tenants.number(tag), float(tag))
    fresh = tenants.number(1000)
    assert fresh not in (NONE, first)
    assert tenants.number(1) == first
    assert len(tenants) <= 64


def test_when_all_have_something_one_more_counts_as_one_without_a_salt(monkeypatch):
    monkeypatch.setattr(module, "TENANTS_MAX", 64)
    tenants = made()
    for tag in range(1, 64):
        tenants.load_begins(tenants.number(tag))
    assert tenants.number(1000) == NONE


def test_what_each_has_is_counted():
    tenants = made()
    mine = tenants.number(7)
    tenants.add(3, mine, 100)
    tenants.add(4, mine, 200)
    tenants.remove(3, 100)
    assert (tenants.bytes[mine], tenants.blocks[mine]) == (200, 1)
    assert (tenants.of(4), tenants.of(3)) == (mine, NOBODY)


def test_a_slot_without_a_block_is_not_looked_at_for_those_without_a_salt():
    tenants = made()
    tenants.add(3, NONE, 100)
    tenants.add(4, NONE, 100)
    tenants.remove(3, 100)
    assert tenants.slots_of(NONE).tolist() == [4]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 31), st.integers(0, 5), st.integers(1, 9)), max_size=60))
def test_counts_are_those_of_a_recount(steps):
    tenants, held = made(), {}
    for slot, tag, size in steps:
        if slot in held:
            tenants.remove(slot, held.pop(slot)[1])
        else:
            held[slot] = tenants.number(tag), size
            tenants.add(slot, *held[slot])
    for number in range(len(tenants.bytes)):
        assert tenants.bytes[number] == sum(size for whose, size in held.values() if whose == number)
        assert tenants.blocks[number] == sum(1 for whose, _ in held.values() if whose == number)


def test_without_limits_there_is_always_room():
    tenants = made()
    tenants.add(0, NONE, 10**15)
    assert tenants.has_room(NONE, 10**15)
    assert not tenants.is_limited
    assert tenants.may_load(NONE)
    assert tenants.may_write(0, 10**15, 0.0)


@pytest.mark.parametrize(("limits", "size", "has_room"), [
    ({"bytes": 100}, 40, True), ({"bytes": 100}, 41, False),
    ({"blocks": 2}, 10**9, True), ({"blocks": 1}, 1, False),
])  # fmt: skip
def test_nobody_has_room_for_more_than_his_quota(limits, size, has_room):
    tenants = made(**limits)
    tenants.add(0, NONE, 60)
    assert tenants.has_room(NONE, size) is has_room
    assert tenants.has_room(tenants.number(1), 100), "another has his own"


def test_nobody_has_more_leases_than_he_may():
    tenants = made(loads=2)
    mine, other = tenants.number(1), tenants.number(2)
    tenants.load_begins(mine)
    assert tenants.may_load(mine)
    tenants.load_begins(mine)
    assert not tenants.may_load(mine)
    assert tenants.may_load(other)
    tenants.load_ends(mine)
    assert tenants.may_load(mine)


def test_what_comes_together_in_a_burst_is_written_and_then_as_much_as_the_rate_says():
    tenants = made(write_rate=10.0)
    burst = int(10 * WRITE_BURST_S)
    tenants.written(0, burst, 0.0)
    assert not tenants.may_write(0, 1, 0.0)
    assert tenants.may_write(0, 10, 1.0)
    assert not tenants.may_write(0, 11, 1.0)
    tenants.add(1, tenants.number(1), 1)
    assert tenants.may_write(1, burst, 0.0), "another has his own"


def test_what_was_not_written_after_all_does_not_count():
    tenants = made(write_rate=10.0)
    burst = int(10 * WRITE_BURST_S)
    tenants.add(0, NONE, 1)
    tenants.written(0, burst, 0.0)
    tenants.unwritten(0, 30)
    assert tenants.may_write(0, 30, 0.0) and not tenants.may_write(0, 31, 0.0)
    tenants.unwritten(0, 2 * burst)
    assert tenants.may_write(0, burst, 0.0)
    tenants.remove(0, 1)
    tenants.unwritten(0, 1)
    assert tenants.may_write(0, burst, 0.0), "a slot that is nobody's"


def test_a_block_larger_than_a_burst_is_written_when_nothing_else_was():
    tenants = made(write_rate=1.0)
    assert tenants.may_write(0, 1000, 0.0)
    tenants.written(0, 1000, 0.0)
    assert not tenants.may_write(0, 1000, 999.0)
    assert tenants.may_write(0, 1000, 1000.0)


def test_who_has_more_than_his_fair_share_pays_for_one_who_has_not():
    tenants, one, two = with_two(mine=600, others=400)
    assert tenants.pays(one, 32, 0.0)
    assert not tenants.pays(two, 0, 0.0)


def test_nobody_pays_for_one_who_has_more_than_his_fair_share_himself():
    tenants, one, _ = with_two(mine=700, others=501)
    assert not tenants.pays(one, 32, 0.0)


def test_nobody_pays_for_one_who_is_not_active():
    tenants, one, _ = with_two(mine=600, others=400)
    tenants.use(one, ACTIVE_S)
    assert not tenants.pays(one, 32, ACTIVE_S)


def test_one_who_is_not_active_has_no_share():
    tenants, one, two = with_two(mine=600, others=400)
    third = tenants.number(3)
    tenants.add(40, third, 1)
    tenants.use(third, 0.0)
    assert not tenants.pays(one, 32, 0.0), "a third each"
    later = ACTIVE_S + COUNTED_S
    tenants.use(one, later)
    tenants.use(two, later)
    assert tenants.pays(one, 32, later), "a half each"
    assert not tenants.pays(one, 40, later)


def test_nobody_pays_for_his_own_and_nobody_in_particular_never_pays():
    tenants, one, _ = with_two(mine=900, others=100)
    assert not tenants.pays(one, 0, 0.0)
    assert not tenants.pays(NOBODY, 32, 0.0)


def test_those_that_have_the_most_are_shown():
    tenants = made()
    for tag in range(1, SHOWN_MAX + 10):
        tenants.add(tag, tenants.number(tag), tag)
    shown = tenants.snapshot()
    assert shown["known"] == SHOWN_MAX + 10
    assert [row["bytes"] for row in shown["most"]] == list(range(SHOWN_MAX + 9, 9, -1))
    assert shown["most"][0] == {
        "tenant": (SHOWN_MAX + 9).to_bytes(6, "little").hex(),
        "bytes": SHOWN_MAX + 9,
        "blocks": 1,
        "loads": 0,
    }


def test_who_has_nothing_is_not_shown():
    tenants = made()
    tenants.number(5)
    assert tenants.snapshot()["most"] == []
