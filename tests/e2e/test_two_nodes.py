"""Two nodes, a real engine on each: what one has computed the other finds, in the remote that they share or in a file, the
first time that it is asked. Other tenants and other models never meet."""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
from engine import Answer, Engine
from kvtierd import KVTierd, eventually, root_file
from remote.servers import Absent, Redis, redis_or_valkey
from terminal import run

from kvtier import observer
from kvtier.estimators import CALIBRATED_STEPS

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

BLOCK = 32
PROMPT = 300  # tokens
WHOLE = PROMPT // BLOCK * BLOCK
BLOCKS = WHOLE // BLOCK


class Node(NamedTuple):
    daemon: KVTierd
    engine: Engine
    connector: dict[str, Any]

    def ask(self, prompt: list[int], salt: str | None = None, **hints: Any) -> Answer:
        """Nothing comes from the engine's own cache."""
        assert self.engine.reset()
        hinted = {"kvtier": hints} if hints else None
        return self.engine.generate([prompt], salt=salt, kv_transfer_params=hinted)[0]

    def save(self, prompt: list[int], salt: str | None = None) -> Answer:
        """And wait until all of it is in the remote: what is asked for a second time is worth that. The answer when it was
        loaded."""
        before = self.daemon.counter("remote_demoted_blocks")
        self.ask(prompt, salt)
        loaded = self.ask(prompt, salt)
        assert loaded.external_tokens == WHOLE
        eventually(lambda: self.daemon.counter("remote_demoted_blocks") - before == BLOCKS)
        return loaded

    def record(self) -> dict[str, Any]:
        """The last decision, when its request is over."""
        return eventually(lambda: [r for r in observer.explain(self.daemon.socket, "last") if r["actual"]])[0]

    def run(self, *words: object) -> str:
        ended = run("kvtier", *words, "--socket", self.daemon.socket)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


def _prompt(seed: int, length: int = PROMPT) -> list[int]:
    return [random.Random(seed * 10_000 + i).randrange(3, 900) for i in range(length)]


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    try:
        program = redis_or_valkey()
    except Absent as reason:
        pytest.skip(str(reason))
    with Redis(tmp_path_factory.mktemp("shared"), program) as server:
        yield server


@pytest.fixture(scope="module")
def nodes(tmp_path_factory, remote, connector_for, start_engine, tiny_llama_path) -> Iterator[list[Node]]:
    """Each with a folder of its own. What they have in common: the remote, the root secret, and the weights' name."""
    with ExitStack() as ended:
        made = []
        for name in ("one", "other"):
            folder = tmp_path_factory.mktemp(name)
            settings = {
                "cpu.capacity": "256 MiB",
                "remote.url": remote.url,
                "remote.secret_file": root_file(folder),
                "remote.deadline_ms": 10_000,
                "cost.mode": "always",  # so small a model computes sooner than anything is loaded
            }
            daemon = ended.enter_context(KVTierd(folder, settings))
            connector = connector_for(daemon, lookup_deadline_ms=10_000, weights_id="the same")
            connector["kv_connector_extra_config"]["blocks_per_chunk"] = 1
            engine = start_engine(tiny_llama_path, connector=connector, block_size=BLOCK)
            made.append(Node(daemon, engine, connector))
        yield made


@pytest.fixture(scope="module")
def one(nodes) -> Node:
    return nodes[0]


@pytest.fixture(scope="module")
def other(nodes) -> Node:
    """Its engine has computed a little, so that it knows how fast it is."""
    for seed in range(900, 900 + CALIBRATED_STEPS):
        nodes[1].ask(_prompt(seed, 100 + 20 * (seed % 10)))
    return nodes[1]


# --- through the remote --------------------------------------------------------------------------------------


def test_the_first_request_of_the_other_node_is_served_from_the_remote(one, other):
    saved = one.save(_prompt(1))
    before = other.daemon.counter("remote_promoted_blocks")
    served = other.ask(_prompt(1))
    assert served.external_tokens == WHOLE
    assert (served.tokens, served.logprobs) == (saved.tokens, saved.logprobs)
    assert other.daemon.counter("remote_promoted_blocks") - before == BLOCKS
    record = other.record()
    assert record["matched"]["remote"] == WHOLE
    assert record["offered"]["remote"] == WHOLE
    assert (record["arm"], record["saved_tokens"]) == ("fetch", WHOLE)
    assert record["predicted"]["fetch_ms"] > 0
    assert record["predicted"]["recompute_ms"] > 0


def test_what_was_fetched_is_in_ram_from_then_on(one, other):
    one.save(_prompt(2))
    other.ask(_prompt(2))
    before = other.daemon.counter("remote_promoted_blocks")
    assert other.ask(_prompt(2)).external_tokens == WHOLE
    assert other.daemon.counter("remote_promoted_blocks") == before
    assert other.record()["offered"] == {"cpu": WHOLE}


def test_a_conversation_that_began_there_goes_on_here_with_the_same_text(one, other):
    first = one.save(_prompt(3))
    turn = _prompt(3) + first.tokens + _prompt(33, 80)
    expected = one.ask(turn, salt="computed anew")
    assert expected.external_tokens == 0
    went_on = other.ask(turn)
    assert went_on.external_tokens >= WHOLE
    assert went_on.tokens == expected.tokens


def test_another_tenant_finds_nothing_there(one, other):
    one.save(_prompt(4), salt="tenant A")
    assert other.ask(_prompt(4), salt="tenant B").external_tokens == 0
    assert other.ask(_prompt(4)).external_tokens == 0
    assert other.ask(_prompt(4), salt="tenant A").external_tokens == WHOLE


@pytest.mark.long
def test_other_weights_find_nothing_there(one, other, start_engine, tiny_llama_path):
    one.save(_prompt(5))
    connector = {**other.connector, "kv_connector_extra_config": {**other.connector["kv_connector_extra_config"]}}
    extra = connector["kv_connector_extra_config"]
    extra["kvtier"] = {**extra["kvtier"], "weights_id": "of another training"}
    stranger = other._replace(engine=start_engine(tiny_llama_path, connector=connector, block_size=BLOCK))
    assert stranger.ask(_prompt(5)).external_tokens == 0
    assert other.ask(_prompt(5)).external_tokens == WHOLE
    stranger.engine.stop()


# --- by hand -------------------------------------------------------------------------------------------------


def test_what_was_asked_for_once_is_there_for_the_other_node_after_a_drain(one, other):
    computed = one.ask(_prompt(6))
    assert other.ask(_prompt(66)).external_tokens == 0
    assert "remote" in one.run("drain")
    served = other.ask(_prompt(6))
    assert (served.external_tokens, served.tokens) == (WHOLE, computed.tokens)


def test_a_session_moves_in_a_file_and_its_next_turn_is_served(one, other, tmp_path):
    first = one.ask(_prompt(7), session="moving", max_tier="remote")
    path = tmp_path / "moving"
    assert one.run("export", "moving", path).startswith("session moving: ")
    said = other.run("import", path)
    assert said.startswith("session moving: ")
    before = other.daemon.counter("remote_promoted_blocks")
    turn = _prompt(7) + first.tokens + _prompt(77, 80)
    went_on = other.ask(turn, session="moving")
    assert went_on.external_tokens >= WHOLE
    assert other.daemon.counter("remote_promoted_blocks") == before
    assert went_on.tokens == one.ask(turn, salt="computed anew").tokens


# --- without it ----------------------------------------------------------------------------------------------


def test_without_the_remote_each_goes_on_alone(one, other, remote):
    expected = one.save(_prompt(8))
    remote.kill()
    answered = other.ask(_prompt(8))
    assert answered.external_tokens == 0
    assert answered.tokens == expected.tokens
    assert one.ask(_prompt(8)).external_tokens == WHOLE
