"""RemoteTier over a remote in memory that is slow, frozen, failing, full or lying, each by a switch."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from remote.memory_remote import MemoryRemote, always, first, never
from remote.tier_bench import DIGEST, OTHER_DIGEST, PROBE_S, SILENT_S, WAIT_S, Bench

from kvtier.block import KEY_BYTES, SLOT_UNIT
from kvtier.codec import Codec
from kvtier.tiers.remote import remote as remote_module
from kvtier.tiers.remote.base import Corrupt, Refused, Unreachable
from kvtier.tiers.remote.envelope import HEADER_BYTES, name_of
from kvtier.tiers.remote.remote import Deadlines, RemoteTier
from kvtier.transfer import Finished, Flush, Forget, Remember

A, B, C = (letter * KEY_BYTES for letter in (b"a", b"b", b"c"))


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.remote.hang(False)
    made.close()


# --- what is there -----------------------------------------------------------------------------------------------


def test_what_one_node_wrote_another_finds_and_reads(bench):
    """A slot's number, a place and a namespace's number mean nothing on the other node."""
    bench.arena[:SLOT_UNIT] = 7
    assert bench.faults(bench.demote(A)) == [""]
    other = Bench()
    other.remote.values = bench.remote.values
    other.do(Remember(0, DIGEST, 99, 5))
    (found,) = other.do(other.seek(A, B, namespace=99))
    assert found.sizes == (SLOT_UNIT, 0)
    assert other.faults(other.promote(A, slot=20, namespace=99)) == [""]
    assert (other.arena[20 * SLOT_UNIT : 21 * SLOT_UNIT] == 7).all() and not other.arena[: 20 * SLOT_UNIT].any()
    other.close()


def test_another_namespace_finds_nothing_under_the_same_key(bench):
    bench.do(bench.demote(A))
    assert bench.do(bench.seek(A, namespace=8))[0].sizes == (0,)
    assert bench.faults(bench.promote(A, namespace=8)) == ["gone"]


def test_a_seek_is_one_call_for_all_its_keys(bench):
    bench.do(bench.demote(A), bench.demote(C, units=2))
    bench.remote.calls.clear()
    (found,) = bench.do(bench.seek(A, B, C))
    assert found.sizes == (SLOT_UNIT, 0, 2 * SLOT_UNIT) and bench.remote.calls == ["lengths"]


def test_what_is_not_there_is_gone_and_no_failure(bench):
    assert bench.faults(*(bench.promote(A) for _ in range(10))) == ["gone"] * 10
    assert bench.breaker() == "closed" and bench.tier.state()["gone"] == 10


def test_an_erase_deletes_and_many_that_wait_are_one_call(bench):
    bench.do(*(bench.demote(key) for key in (A, B, C)))
    bench.remote.delay_s = 0.02
    bench.remote.calls.clear()
    assert bench.faults(*(bench.erase(bytes([n]) * KEY_BYTES) for n in range(90)), bench.erase(A)) == [""] * 91
    assert bench.remote.calls.count("delete") <= remote_module.WRITES + 1
    assert bench.do(bench.seek(A, B, C))[0].sizes == (0, SLOT_UNIT, SLOT_UNIT)


def test_a_connection_is_made_before_the_first_question(bench):
    bench.do(bench.seek(A))
    assert bench.remote.calls == ["lengths", "lengths"] and bench.tier.state()["sought_keys"] == 1


def test_nobody_hears_of_a_remote_that_does_not_answer_before_it_is_asked():
    remote = MemoryRemote()
    remote.fails = always(Unreachable)
    tier = RemoteTier(remote, np.zeros(SLOT_UNIT, np.uint8))
    tier.start(Remember(1, DIGEST, 7, 0))
    tier.close()
    assert remote.calls == ["lengths"] and tier.state()["breaker_opened"] == 0


def test_forgets_flushes_and_namespaces_ask_nobody(bench):
    bench.do(bench.seek(A))
    bench.remote.calls.clear()
    bench.remote.hang()
    assert bench.faults(Forget(1, 0, 5), Flush(2), Remember(3, DIGEST, 7, 1)) == ["", "", ""]
    assert bench.remote.calls == []


# --- who goes first ----------------------------------------------------------------------------------------------


def test_questions_and_reads_overtake_writes_that_wait(bench):
    bench.do(bench.demote(A))
    bench.remote.delay_s = 0.02
    writes = [bench.demote(bytes([n]) * KEY_BYTES) for n in range(20)]
    read, question = bench.promote(A), bench.seek(A)
    done = [one.ticket for one in bench.do(*writes, read, question)]
    assert {read.ticket, question.ticket} <= set(done[: 2 * remote_module.WRITES + 2])


def test_no_more_than_so_many_calls_and_bytes_are_under_way(bench, monkeypatch):
    bench.do(bench.demote(A))
    bench.remote.delay_s = 0.005
    bench.remote.most = 0
    bench.do(*(bench.promote(A, slot=n % 60) for n in range(200)))
    assert bench.remote.most == remote_module.CALLS
    monkeypatch.setattr(remote_module, "BYTES_MAX", 3 * SLOT_UNIT)
    bench.remote.most = 0
    bench.do(*(bench.promote(A, slot=n) for n in range(20)))
    assert bench.remote.most == 3
    bench.remote.most = 0
    assert bench.faults(*(bench.demote(bytes([n]) * KEY_BYTES, units=5) for n in range(3))) == [""] * 3
    assert bench.remote.most == 1, "one that is larger goes by itself"


def test_start_and_poll_return_at_once_while_it_hangs(bench):
    bench.remote.hang()
    slowest = 0.0
    for n in range(500):
        begun = time.monotonic()
        bench.start(bench.promote(A, slot=n % 60))
        bench.poll()
        slowest = max(slowest, time.monotonic() - begun)
    assert slowest < 0.1


# --- slow and frozen ---------------------------------------------------------------------------------------------


def test_a_frozen_remote_is_left_alone_within_the_silence_and_nobody_waits_longer(bench):
    bench.do(bench.demote(A))
    bench.remote.hang()
    begun = time.monotonic()
    assert bench.faults(*(bench.promote(A, slot=n) for n in range(40))) == ["unreachable"] * 40
    assert time.monotonic() - begun < SILENT_S + 0.3
    assert bench.breaker() in ("open", "half-open") and bench.tier.read_only
    begun = time.monotonic()
    assert bench.faults(bench.promote(A), bench.demote(B), bench.seek(A), bench.erase(A)) == ["unreachable"] * 4
    assert time.monotonic() - begun < 0.1, "not even tried"


def test_silence_opens_it_before_a_long_deadline():
    bench = Bench(Deadlines(30.0, 30.0), silent_s=0.3)
    bench.remote.hang()
    begun = time.monotonic()
    assert bench.faults(bench.promote(A), bench.seek(A)) == ["unreachable"] * 2
    assert 0.25 < time.monotonic() - begun < 1.0
    assert str(bench.tier.state()["breaker_reason"]).startswith("no answer for")
    bench.remote.hang(False)
    bench.close()


def test_a_slot_is_not_written_after_its_transfer_is_finished(bench):
    bench.arena[:SLOT_UNIT] = 7
    bench.do(bench.demote(A))
    bench.remote.delay_s = 0.6  # longer than the deadline
    assert bench.faults(bench.promote(A, slot=9)) == ["unreachable"]
    time.sleep(0.3)
    assert not bench.arena[9 * SLOT_UNIT : 10 * SLOT_UNIT].any()


def test_a_call_that_does_not_let_go_keeps_its_own_transfer_and_no_other(bench):
    """A slot is the kind's until its call has ended, however long that takes; what waits behind it ends at once."""
    holds = True

    async def get(name, header, body):
        while holds:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return False

    bench.remote.get = get
    orders = [bench.promote(A, slot=n) for n in range(remote_module.CALLS + 10)]
    begun = time.monotonic()
    done = bench.do_some(orders, 10)
    assert time.monotonic() - begun < SILENT_S + 0.3
    assert {one.ticket for one in done} == {order.ticket for order in orders[remote_module.CALLS :]}
    time.sleep(0.2)
    assert bench.tier.poll() == []
    holds = False
    assert {one.ticket for one in bench.wait(remote_module.CALLS)} == {
        order.ticket for order in orders[: remote_module.CALLS]
    }


def test_it_is_used_again_soon_after_it_answers_again_without_any_order(bench):
    bench.do(bench.demote(A))
    bench.remote.hang()
    bench.faults(bench.seek(A), bench.seek(A), bench.seek(A))
    assert bench.tier.read_only
    time.sleep(0.5)
    bench.remote.hang(False)
    assert bench.until_breaker("closed") < PROBE_S + 0.3
    assert not bench.tier.read_only
    assert bench.do(bench.seek(A))[0].sizes == (SLOT_UNIT,)


def test_while_it_is_left_alone_there_are_only_probes(bench):
    bench.remote.fails = always(Unreachable)
    bench.faults(bench.seek(A), bench.seek(A), bench.seek(A))
    bench.remote.calls.clear()
    begun = time.monotonic()
    while time.monotonic() - begun < 4 * PROBE_S:
        bench.faults(bench.promote(A), bench.demote(B))
        time.sleep(0.01)
    assert set(bench.remote.calls) == {"lengths"} and 2 <= len(bench.remote.calls) <= 5


# --- failing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Unreachable, ConnectionResetError, OSError, TimeoutError, KeyError, EOFError])
def test_the_third_failure_in_a_row_opens_the_breaker_whatever_the_kind_raises(bench, error):
    bench.remote.fails = always(error)
    for state in ("closed", "closed", "open"):
        assert bench.faults(bench.promote(A)) == ["unreachable"]
        assert bench.breaker() == state


def test_failures_with_answers_between_them_do_not_open_it(bench):
    bench.do(bench.demote(A))
    for _ in range(5):
        bench.remote.fails = first(2)
        assert bench.faults(bench.seek(A), bench.seek(A)) == ["unreachable"] * 2
        assert bench.faults(bench.promote(A)) == [""]
    assert bench.breaker() == "closed" and bench.tier.state()["failed"] == 10


def test_after_it_opened_what_waits_is_finished_at_once(bench):
    bench.remote.delay_s = 0.05
    bench.remote.fails = always(Unreachable)
    assert bench.faults(*(bench.demote(bytes([n]) * KEY_BYTES) for n in range(60))) == ["unreachable"] * 60
    assert bench.remote.calls.count("put") <= 2 * remote_module.WRITES


def test_a_block_that_has_no_small_frame_says_nothing_of_the_remote(bench):
    bench.remote.fails = always(Unreachable)
    larger = [replace(bench.demote(A), codec=Codec("exp12"), stored=1) for _ in range(3)]
    assert bench.faults(bench.seek(A), bench.seek(A)) == ["unreachable"] * 2
    assert bench.faults(*larger) == ["larger"] * 3 and "put" not in bench.remote.calls
    assert bench.breaker() == "closed"
    assert bench.faults(bench.seek(A)) == ["unreachable"] and bench.breaker() == "open"


# --- full and read-only ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("switch", "fault"), [("is_full", "full"), ("is_read_only", "refused")])
def test_where_nothing_can_be_written_reads_go_on_and_writes_are_tried_again_later(bench, monkeypatch, switch, fault):
    monkeypatch.setattr(remote_module, "RETRY_S", 0.3)
    bench.do(bench.demote(A))
    setattr(bench.remote, switch, True)
    assert bench.faults(bench.demote(B)) == [fault]
    assert bench.tier.read_only and bench.breaker() == "closed"
    tried = bench.remote.calls.count("put")
    assert bench.faults(bench.demote(B), bench.erase(A)) == [fault] * 2
    assert bench.remote.calls.count("put") == tried, "not even tried"
    assert bench.faults(bench.promote(A)) == [""] and bench.do(bench.seek(A))[0].sizes == (SLOT_UNIT,)
    setattr(bench.remote, switch, False)
    time.sleep(0.35)
    assert not bench.tier.read_only
    assert bench.faults(bench.demote(B)) == [""]


def test_whom_it_lets_read_nothing_leaves_it_alone(bench):
    bench.remote.fails = always(Refused)
    assert bench.faults(bench.seek(A), bench.promote(A), bench.promote(A)) == ["refused"] * 3
    assert bench.tier.state()["breaker_reason"] == "3 failures in a row: made to fail"


@pytest.mark.parametrize(("switch", "fault"), [("is_full", "full"), ("is_read_only", "refused")])
def test_writes_that_are_refused_side_by_side_leave_the_breaker_closed(bench, switch, fault):
    setattr(bench.remote, switch, True)
    bench.remote.delay_s = 0.02
    assert set(bench.faults(*(bench.demote(bytes([n]) * KEY_BYTES) for n in range(20)))) == {fault}
    assert bench.remote.calls.count("put") >= 3 and bench.breaker() == "closed"


# --- lying -------------------------------------------------------------------------------------------------------


def until_deleted(bench: Bench, n: int) -> None:
    until = time.monotonic() + WAIT_S
    while len(bench.remote.deleted) < n:
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.parametrize("at", [0, 8, 30, 40, 95, HEADER_BYTES, HEADER_BYTES + SLOT_UNIT - 1])
def test_a_flipped_bit_is_a_fault_and_the_value_is_deleted(bench, at):
    bench.do(bench.demote(A))
    bench.damage(A, at)
    assert bench.faults(bench.promote(A)) == ["corrupt"]
    until_deleted(bench, 1)
    assert bench.remote.deleted == [name_of(DIGEST, A)] and bench.tier.state()["corrupt_blocks"] == 1
    assert bench.faults(bench.promote(A)) == ["gone"]


@pytest.mark.parametrize("change", [lambda v: v[:-1], lambda v: v + b"x", lambda v: v[:50], lambda v: b""])
def test_a_value_of_another_length_is_corrupt(bench, change):
    bench.do(bench.demote(A))
    bench.remote.values = {name: change(value) for name, value in bench.remote.values.items()}
    (length,) = (len(value) for value in bench.remote.values.values())
    assert bench.do(bench.seek(A))[0].sizes == (max(0, length - HEADER_BYTES),)
    assert bench.faults(bench.promote(A)) == ["corrupt"]


def test_another_blocks_value_under_the_name_is_corrupt(bench):
    bench.do(bench.demote(A), bench.demote(B))
    values = bench.remote.values
    values[name_of(DIGEST, A)] = values[name_of(DIGEST, B)]
    assert bench.faults(bench.promote(A), bench.promote(B)) == ["corrupt", ""]


def test_a_value_of_another_namespace_moved_here_is_corrupt(bench):
    bench.do(bench.demote(A, namespace=8))
    bench.remote.values[name_of(DIGEST, A)] = bench.remote.values.pop(name_of(OTHER_DIGEST, A))
    assert bench.faults(bench.promote(A)) == ["corrupt"]


def test_a_value_of_another_release_is_a_miss_and_stays(bench):
    bench.do(bench.demote(A))
    bench.damage(A, at=4)
    assert bench.faults(bench.promote(A)) == ["gone"]
    assert bench.remote.deleted == [] and len(bench.remote.values) == 1


def test_three_lies_in_a_row_and_it_is_left_alone(bench):
    for key in (A, B, C):
        bench.do(bench.demote(key))
        bench.damage(key)
    assert bench.faults(*(bench.promote(key) for key in (A, B, C))) == ["corrupt"] * 3
    assert bench.tier.read_only and bench.tier.state()["breaker_opened"] == 1


def test_a_kind_that_says_corrupt_by_itself_is_believed(bench):
    bench.do(bench.demote(A))
    bench.remote.fails = lambda verb: Corrupt("short") if verb == "get" else None
    assert bench.faults(bench.promote(A)) == ["corrupt"]


def test_too_few_answers_to_a_question_are_none(bench):
    async def lengths(names):
        return [None]

    bench.remote.lengths = lengths
    assert bench.faults(bench.seek(A, B)) == ["unreachable"]


# --- flapping, and the end ---------------------------------------------------------------------------------------


def test_every_order_ends_once_and_no_wrong_byte_is_offered_whatever_happens(bench):
    """Up, down, frozen and lying in turn, with orders all the time."""
    keys = [bytes([n]) * KEY_BYTES for n in range(30)]
    for n, key in enumerate(keys):
        bench.arena[:SLOT_UNIT] = n + 1
        bench.do(bench.demote(key))
    read: dict[int, tuple[int, int]] = {}
    done: list[Finished] = []
    for turn in range(60):
        bench.remote.fails = [never, always(Unreachable), first(1), never][turn % 4]
        bench.remote.hang(turn % 7 == 6)
        if turn % 5 == 4 and name_of(DIGEST, keys[turn % 30]) in bench.remote.values:
            bench.damage(keys[turn % 30])
        for slot in range(30, 40):
            order = bench.promote(keys[(turn + slot) % 30], slot)
            read[order.ticket] = slot, (turn + slot) % 30
            bench.start(order)
        done += (ended := bench.wait(10))
        for one in ended:
            slot, n = read[one.ticket]
            assert one.fault or (bench.arena[slot * SLOT_UNIT : (slot + 1) * SLOT_UNIT] == n + 1).all()
    assert len(done) == len({one.ticket for one in done}) == 600
    assert any(not one.fault for one in done)


def test_close_ends_what_is_under_way_by_its_deadline_and_hangs_up(bench):
    bench.remote.hang()
    orders = [bench.promote(A, slot=n) for n in range(40)]
    for order in orders:
        bench.tier.start(order)
    begun = time.monotonic()
    bench.tier.close()
    assert time.monotonic() - begun < 1.0 and bench.remote.is_closed
    faults = {done.ticket: done.fault for done in bench.tier.poll()}
    assert set(faults) == {order.ticket for order in orders} and set(faults.values()) <= {"closed", "unreachable"}
    bench.tier.start(bench.promote(A))
    assert [done.fault for done in bench.tier.poll()] == ["closed"]
    bench.tier.close()  # again
