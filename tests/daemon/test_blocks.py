"""A block's life over the socket: slots are lent, become blocks, are found by whoever may, pinned, dropped, counted."""

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from kvtierd import SLOT, Engine, KVTierd, Peer, eventually, observer_hello, some_keys

from kvtier import protocol
from kvtier.block import ABSENT, unpack_slots

TINY = {"cpu.capacity": "32 MiB", "server.send_buffer": "64 KiB"}
ARENA_SLOTS = 32 * 1024**2 // SLOT
NEW = itertools.count()


@pytest.fixture(scope="module")
def tiny_kvtierd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KVTierd]:
    with KVTierd(tmp_path_factory.mktemp("tiny"), TINY) as daemon:
        yield daemon


@pytest.fixture
def daemon(tiny_kvtierd: KVTierd) -> KVTierd:
    """With no engine left over from the test before."""
    eventually(lambda: not tiny_kvtierd.snapshot()["engines"])
    return tiny_kvtierd


def packed(slots: list[int]) -> bytes:
    return np.array(slots, "<u4").tobytes()


def refused(peer: Peer) -> str:
    """The code of the error that ended it."""
    error = peer.end()
    assert isinstance(error, protocol.Error)
    return error.code


# --- slots -------------------------------------------------------------------------------------------------------


def test_lent_slots_are_topped_up_without_being_asked_for_when_less_than_half_is_left(daemon):
    with Engine(daemon.socket, lend=8) as engine:
        engine.save(some_keys(4, "top up"))
        assert daemon.engine("engine")["lent_slots"] == 4
        saved = engine.save(some_keys(1, "one more"))
        more = unpack_slots(engine.hear(protocol.Lend).slots).tolist()
        assert len(more) == 8 - len(engine.lent)
        assert not {*more} & {*engine.lent, *saved}


def test_slots_that_are_given_back_are_lent_again(daemon):
    with Engine(daemon.socket, lend=8) as engine:
        engine.say(protocol.GiveBack(packed(engine.lent[:5])))
        assert len(unpack_slots(engine.hear(protocol.Lend).slots)) == 5
        assert daemon.engine("engine")["lent_slots"] == 8


def test_two_engines_are_never_lent_the_same_slot(daemon):
    with (
        Engine(daemon.socket, "one", lend=50) as one,
        Engine(daemon.socket, "two", lend=50, block_bytes=5 * SLOT) as two,
    ):
        units_of_two = {unit for slot in two.lent for unit in range(slot, slot + 5)}
        assert len(units_of_two) == 5 * len(two.lent) and not units_of_two & set(one.lent)


@pytest.mark.parametrize("slots", ["another's", "twice", "given back", "beyond the arena", "absent"])
@pytest.mark.parametrize("kind", [protocol.Commit, protocol.GiveBack])
def test_a_slot_that_is_not_lent_to_the_engine_is_not_its_to_use(daemon, kind, slots):
    with Engine(daemon.socket, "honest") as honest, Engine(daemon.socket, "greedy") as greedy:
        mine = greedy.lent[0]
        greedy.say(protocol.GiveBack(packed(greedy.lent[-1:])))
        wrong = {
            "another's": [mine, honest.lent[0]],
            "twice": [mine, mine],
            "given back": [mine, greedy.lent[-1]],
            "beyond the arena": [mine, ARENA_SLOTS],
            "absent": [mine, ABSENT],
        }[slots]
        keys = (some_keys(2, "stolen"),) if kind is protocol.Commit else ()
        greedy.say(kind(*keys, packed(wrong)))
        assert refused(greedy) == "bad_slot"
        assert honest.lookup(some_keys(2, "stolen")) == [ABSENT, ABSENT]
        assert daemon.engine("honest")["lent_slots"] == 8


def test_a_commit_names_one_slot_a_key(daemon):
    with Engine(daemon.socket) as engine:
        engine.say(protocol.Commit(some_keys(2), packed(engine.lent[:1])))
        assert refused(engine) == "bad_frame"


# --- lookups -----------------------------------------------------------------------------------------------------


def test_a_saved_block_is_found_where_it_was_saved_and_others_are_absent(daemon):
    with Engine(daemon.socket) as engine:
        slots = engine.save(some_keys(3, "found"))
        assert engine.lookup(some_keys(4, "found")) == [*slots, ABSENT]
        assert engine.lookup(b"") == []


def test_all_engines_of_a_namespace_have_one_secret_and_find_each_others_blocks(daemon):
    with Engine(daemon.socket, "one") as one, Engine(daemon.socket, "two") as two:
        assert one.welcome.secret == two.welcome.secret
        slots = one.save(some_keys(2, "shared"))
        eventually(lambda: daemon.cpu()["blocks"] >= 2)
        assert two.lookup(some_keys(2, "shared")) == slots
    with Engine(daemon.socket, "three") as three:
        assert three.lookup(some_keys(2, "shared")) == slots


def test_an_engine_of_another_namespace_makes_other_keys(daemon):
    # Keys are made with the secret, so two namespaces can't name each other's blocks.
    with Engine(daemon.socket, "one", model="llama") as one, Engine(daemon.socket, "two", model="qwen") as two:
        assert one.welcome.secret != two.welcome.secret


def test_a_block_that_two_engines_save_is_kept_once(daemon):
    with Engine(daemon.socket, "one") as one, Engine(daemon.socket, "two") as two:
        before = daemon.counter("known_blocks")
        kept = one.save(some_keys(1, "both"))
        eventually(lambda: daemon.engine("one")["lent_slots"] == 7)
        two.save(some_keys(1, "both"))
        assert two.lookup(some_keys(1, "both")) == kept
        assert daemon.counter("known_blocks") == before + 1


# --- leases ------------------------------------------------------------------------------------------------------


def leases(daemon: KVTierd, engine: str = "engine") -> tuple[int, int]:
    seen = daemon.engine(engine)
    return seen["leases"], seen["leased_blocks"]


def test_what_a_lookup_finds_is_leased_until_it_is_released(daemon):
    with Engine(daemon.socket) as engine:
        engine.save(some_keys(3, "leased"))
        engine.lookup(some_keys(4, "leased"))
        engine.lookup(some_keys(1, "leased"))
        assert leases(daemon) == (2, 4)
        assert daemon.cpu()["leased_bytes"] == 4 * SLOT
        engine.release()
        eventually(lambda: leases(daemon) == (1, 3))


def test_a_lookup_that_finds_nothing_leases_nothing(daemon):
    with Engine(daemon.socket) as engine:
        engine.lookup(some_keys(3, "nowhere"))
        assert leases(daemon) == (0, 0)
        engine.release()
        assert engine.lookup(some_keys(1, "nowhere")) == [ABSENT]


def test_a_release_says_how_much_was_loaded_and_no_more_is_counted_than_was_leased(daemon):
    with Engine(daemon.socket) as engine:
        engine.save(some_keys(3, "loaded"))
        before = daemon.snapshot()["counters"]
        engine.lookup(some_keys(3, "loaded"))
        engine.release(loaded=2)
        engine.lookup(some_keys(3, "loaded"))
        engine.release(loaded=2**63 - 1)
        engine.lookup(b"")
        after = daemon.snapshot()["counters"]
        grown = {name: after[name] - before[name] for name in ("loaded_blocks", "loaded_tokens", "loaded_bytes")}
        assert grown == {"loaded_blocks": 5, "loaded_tokens": 5 * 16, "loaded_bytes": 5 * SLOT}


def test_a_lease_is_opened_once(daemon):
    with Engine(daemon.socket) as engine:
        engine.save(some_keys(1, "once"))
        engine.say(*[protocol.Lookup(1, some_keys(1, "once"))] * 2)
        assert refused(engine) == "bad_order"


def test_an_engine_has_a_limit_of_leases_and_what_it_held_comes_back(daemon):
    with Engine(daemon.socket) as engine:
        engine.save(some_keys(1, "many"))
        lookups = [protocol.Lookup(lease, some_keys(1, "many")) for lease in range(5000)]
        # The error may overtake what is still being sent.
        with contextlib.suppress(BrokenPipeError):
            engine.say(*lookups)
        assert refused(engine) == "too_many"
    eventually(lambda: daemon.cpu()["leased_bytes"] == 0)


def test_leases_and_slots_end_with_the_connection(daemon):
    with Engine(daemon.socket) as engine:
        engine.save(some_keys(3, "ends"))
        engine.lookup(some_keys(3, "ends"))
        assert daemon.cpu()["leased_bytes"] == 3 * SLOT
    eventually(lambda: daemon.engine("engine") is None)
    cpu = daemon.cpu()
    assert (cpu["leased_bytes"], cpu["lent_bytes"]) == (0, 0)
    assert cpu["used_bytes"] == cpu["blocks"] * SLOT


def test_a_leased_block_stays_while_another_engine_fills_the_arena_and_goes_when_it_is_released(daemon):
    with Engine(daemon.socket, "reader") as reader, Engine(daemon.socket, "writer", lend=64) as writer:
        slots = reader.save(some_keys(2, "pinned"))
        assert reader.lookup(some_keys(2, "pinned")) == slots
        reused = fill(writer, 2 * ARENA_SLOTS)
        assert not reused & set(slots)
        assert reader.lookup(some_keys(2, "pinned")) == slots
        reader.say(protocol.Release(1, 2), protocol.Release(2, 2))
        eventually(lambda: leases(daemon, "reader") == (0, 0))
        assert fill(writer, 2 * ARENA_SLOTS) >= set(slots)
        assert reader.lookup(some_keys(2, "pinned")) == [ABSENT, ABSENT]


def fill(engine: Engine, blocks: int) -> set[int]:
    """Saves so many new blocks, one after the other. Returns the slots that it was lent for them."""
    used = set()
    for _ in range(blocks):
        while not engine.lent:
            engine.lent = unpack_slots(engine.hear(protocol.Lend).slots).tolist()
        used.update(engine.save(some_keys(1, f"fill {next(NEW)}")))
    return used


# --- reset, reports ----------------------------------------------------------------------------------------------


def test_a_reset_drops_what_was_saved_and_gives_later_engines_another_secret(daemon):
    with Engine(daemon.socket, "old", model="tuned") as old, Engine(daemon.socket, "else", model="other") as other:
        old.save(some_keys(3, "before the reset"))
        kept = other.save(some_keys(2, "of another model"))
        before = daemon.counter("reset_blocks")
        old.say(protocol.Reset())
        assert old.lookup(some_keys(3, "before the reset")) == [ABSENT] * 3
        assert daemon.counter("reset_blocks") == before + 3
        assert other.lookup(some_keys(2, "of another model")) == kept
        with Engine(daemon.socket, "new", model="tuned") as new, Engine(daemon.socket, "more", model="other") as more:
            assert new.welcome.secret != old.welcome.secret
            assert more.welcome.secret == other.welcome.secret


def test_a_leased_block_that_a_reset_dropped_keeps_its_slot_until_it_is_released(daemon):
    with Engine(daemon.socket, model="reset while leased") as engine:
        engine.save(some_keys(3, "dropped"))
        engine.lookup(some_keys(3, "dropped"))
        used = daemon.cpu()["used_bytes"]
        engine.say(protocol.Reset())
        assert engine.lookup(some_keys(3, "dropped")) == [ABSENT] * 3
        assert daemon.cpu()["used_bytes"] == used
        engine.say(protocol.Release(1, 3))
        eventually(lambda: daemon.cpu()["used_bytes"] == used - 3 * SLOT)


def test_a_report_adds_to_what_an_engine_may_count_and_to_nothing_else(daemon):
    with Engine(daemon.socket) as engine:
        before = daemon.snapshot()["counters"]
        engine.say(protocol.Report({"skipped_no_slot": 3, "saved_blocks": 5, "no such counter": 7}))
        engine.say(protocol.Report({"skipped_no_slot": 4}))
        engine.lookup(b"")
        after = daemon.snapshot()["counters"]
        assert after["skipped_no_slot"] == before["skipped_no_slot"] + 7
        assert after["saved_blocks"] == before["saved_blocks"]
        assert after.keys() == before.keys()


def test_a_counter_that_was_pushed_over_any_number_is_shown_as_the_largest(daemon):
    with Engine(daemon.socket) as engine:
        engine.say(*[protocol.Report({"failed_saves": 2**63 - 1})] * 3)
        engine.lookup(b"")
        assert daemon.counter("failed_saves") == 2**63 - 1


# --- a client that doesn't read ----------------------------------------------------------------------------------


def test_a_client_that_never_reads_is_disconnected_and_the_others_go_on(daemon):
    with Peer(daemon.socket) as deaf, Engine(daemon.socket) as engine:
        slots = engine.save(some_keys(2, "go on"))
        deaf.ask(observer_hello(), answer=protocol.Welcome)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                deaf.say(*[protocol.Ask()] * 100)
                assert engine.lookup(some_keys(2, "go on")) == slots
                engine.release()
        eventually(lambda: [c["role"] for c in daemon.snapshot()["clients"]] == ["scheduler", "observer"])
        assert "doesn't read; it is disconnected" in daemon.said()
