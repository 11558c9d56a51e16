"""Engines of two users at one kvtierd: what is one's is not the other's."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kvtierd import SLOT, Engine, KVTierd, Peer, eventually, observer_hello, scheduler_hello, some_keys, worker_hello
from stranger import as_stranger, shared_by_two

from kvtier import observer, protocol
from kvtier.block import ABSENT


@pytest.fixture(scope="module")
def shared() -> Iterator[KVTierd]:
    with shared_by_two() as daemon:
        yield daemon


def strangers_engine(daemon: KVTierd, name: str) -> Engine:
    """Its slots come as they are zeroed."""
    with as_stranger():
        engine = Engine(daemon.socket, name, lend=8)
    while len(engine.lent) < 4:
        engine.passed_over(engine.hear(protocol.Lend))
    return engine


def test_two_users_with_the_same_model_have_other_keys(shared):
    with Engine(shared.socket, "ours") as ours, strangers_engine(shared, "theirs") as theirs:
        assert ours.welcome.secret != theirs.welcome.secret
        assert ours.welcome.witness_secret != theirs.welcome.witness_secret


def test_also_who_learnt_the_others_keys_finds_nothing(shared):
    keys = some_keys(3, "learnt")
    with Engine(shared.socket, "ours") as ours, strangers_engine(shared, "theirs") as theirs:
        ours.save(keys)
        assert ours.lookup(keys) != [ABSENT] * 3
        assert theirs.lookup(keys) == [ABSENT] * 3


def test_two_engines_of_the_other_user_share_blocks(shared):
    keys = some_keys(3, "shared by strangers")
    with strangers_engine(shared, "one") as one, strangers_engine(shared, "two") as two:
        assert one.welcome.secret == two.welcome.secret
        slots = one.save(keys)
        eventually(lambda: two.lookup(keys) == slots)


def test_where_users_are_one_they_share_blocks():
    keys = some_keys(3, "of all")
    with (
        shared_by_two({"tenant.share_users": "yes"}) as daemon,
        Engine(daemon.socket, "ours") as ours,
        strangers_engine(daemon, "theirs") as theirs,
    ):
        assert ours.welcome.secret == theirs.welcome.secret
        slots = ours.save(keys)
        eventually(lambda: theirs.lookup(keys) == slots)


def test_a_reset_of_one_user_drops_nothing_of_another(shared):
    keys = some_keys(2, "to stay")
    with Engine(shared.socket, "ours") as ours, strangers_engine(shared, "theirs") as theirs:
        slots = ours.save(keys)
        assert ours.lookup(keys) == slots
        theirs.say(protocol.Reset())
        theirs.lookup(some_keys(1, "anything"))  # it was heard
        assert ours.lookup(keys) == slots


@pytest.mark.parametrize("hello", [worker_hello("named"), scheduler_hello("named")], ids=["worker", "scheduler"])
def test_nobody_joins_an_engine_of_another_user(shared, hello):
    with Engine(shared.socket, "named"), as_stranger(), Peer(shared.socket) as peer:
        peer.say(hello)
        refusal = peer.end()
        assert isinstance(refusal, protocol.Error)
        assert (refusal.code, "another user" in refusal.message) == ("not_allowed", True)


def test_others_are_told_nothing_of_ones_requests(shared):
    with Engine(shared.socket, "asked of") as ours:
        ours.say(protocol.Lookup(77, some_keys(1), request="a private name", prompt_tokens=17))
        ours.hear(protocol.Found)
        assert asked(shared, "a private name") == 1
        with as_stranger():
            assert asked(shared, "a private name") == 0
    with strangers_engine(shared, "their own") as theirs:
        theirs.say(protocol.Lookup(77, some_keys(1), request="of a stranger", prompt_tokens=17))
        theirs.hear(protocol.Found)
        with as_stranger():
            assert asked(shared, "of a stranger") == 1


def test_who_takes_the_name_of_an_engine_that_left_is_told_nothing_of_its_requests(shared):
    with Engine(shared.socket, "a name") as ours:
        ours.say(protocol.Lookup(77, some_keys(1), request="of who had the name", prompt_tokens=17))
        ours.hear(protocol.Found)
    eventually(lambda: shared.engine("a name") is None)
    with strangers_engine(shared, "a name"), as_stranger():
        assert asked(shared, "of who had the name") == 0


def asked(daemon: KVTierd, request: str) -> int:
    with Peer(daemon.socket) as peer:
        peer.ask(observer_hello(), answer=protocol.Welcome)
        return len(peer.ask(protocol.Explain(request, 10), answer=protocol.Explained).state["decisions"])


def test_requests_without_a_salt_are_another_tenant_for_each_user(shared):
    with Engine(shared.socket, "ours") as ours, strangers_engine(shared, "theirs") as theirs:
        ours.save(some_keys(1, "a tenant's"))
        theirs.save(some_keys(2, "another tenant's"))
        theirs.lookup(some_keys(1, "anything"))
        ours.lookup(some_keys(1, "anything"))
        tenants = observer.ask(shared.socket, timeout_s=30)["tenants"]["most"]
        assert len({row["tenant"] for row in tenants if row["bytes"] >= SLOT}) >= 2
        assert "" in {row["tenant"] for row in tenants}


def test_it_leaves_no_core(tmp_path):
    with KVTierd(tmp_path, {"security.dumpable": "no"}) as daemon:
        limits = Path(f"/proc/{daemon.pid}/limits").read_text().splitlines()
        assert next(line.split()[4:6] for line in limits if line.startswith("Max core file size")) == ["0", "0"]
