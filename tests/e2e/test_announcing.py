"""What a request's client says of it, on its way through the scheduler's half of the connector; the clients are fakes."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vllm is not installed: make test installs it")

from fake_engine import BLOCK, HIT, LEND, MISS, FakeEngine
from kvtier.connectors.vllm import announcing

from kvtier.block import ABSENT, NO_KEY, block_key, unpack_keys


def engine_of(blocks: int = 3, cached: int = 0, salt: str | None = None, **hints: Any) -> FakeEngine:
    """Its request has these hints; the daemon has answered that nothing is here."""
    engine = FakeEngine(blocks, cached)
    engine.request.cache_salt = salt
    engine.request.kv_transfer_params = {"kvtier": hints} if hints else None
    for lease in range(1, 10):
        engine.client.answers_to[lease] = [ABSENT] * blocks
    return engine


def serve(engine: FakeEngine, save: int) -> None:
    """From its arrival to its end, all in one step."""
    engine.arrive()
    engine.look()
    engine.manager.admitted("request", 0)
    order = engine.manager.prepare_store(engine.keys[:save], engine.context)
    engine.manager.settle({order.store_spec.token: (1, 0)})
    engine.manager.on_request_finished(engine.context)


def said_in_order(engine: FakeEngine) -> list[str]:
    return [word[0] for word in engine.client.said if word[0] in ("begin", "commit", "touch")]


# --- Begin -------------------------------------------------------------------------------------------------------


def test_what_a_client_says_is_said_to_kvtierd_before_the_question():
    engine = engine_of(session="a chat", tool="search", end=True, expect_return_s=2.5, ttl_s=60, pin=True, max_tier="cpu")
    asked_before = []
    engine.client.begin = lambda *words, **more: asked_before.append((len(engine.client.asked), words, more))
    engine.arrive()
    counts = {"end": 1, "pin": 1, "no_disk": 1, "no_remote": 1, "expect_return_ms": 2500, "ttl_ms": 60_000}
    more = {"session": "a chat", "tenant": b"", "tool": "search", "counts": counts}
    assert asked_before == [(0, ("request", engine.now), more)]
    assert len(engine.client.asked) == 1


def test_of_a_request_without_hints_nothing_is_said():
    engine = engine_of()
    serve(engine, save=3)
    assert said_in_order(engine) == ["commit", "touch"]


def test_a_salt_makes_a_tenant_that_is_the_same_in_every_namespace_and_doesn_t_tell_it():
    engine = engine_of(salt="Ada's")
    engine.arrive()
    ((_, _, session, tenant, _, counts),) = engine.client.words("begin")
    assert (session, counts) == ("", {})
    assert tenant == block_key(engine.client.witness_secret, b"tenantAda's")


def test_vllm_s_session_id_and_envelope_are_hints_too():
    engine = engine_of()
    engine.request.session_id = "of a header"
    action = SimpleNamespace(action_type="release", payload={})
    engine.request.kv_hints = SimpleNamespace(actions=[action])
    engine.arrive()
    ((_, _, session, _, _, counts),) = engine.client.words("begin")
    assert (session, counts) == ("of a header", {"end": 1})


def test_another_kvtierd_hears_it_again_and_the_same_one_only_once():
    engine = engine_of(session="a chat")
    engine.arrive()
    engine.look()
    assert len(engine.client.words("begin")) == 1
    engine.client.generation = 2
    engine.look()
    engine.look()
    assert len(engine.client.words("begin")) == 2 and len(engine.client.asked) == 2


def test_a_kvtierd_that_comes_later_hears_it_when_it_is_asked_and_at_the_latest_at_the_end():
    engine = engine_of(session="a chat")
    engine.client.ready = False
    engine.arrive()
    assert not engine.client.words("begin")
    engine.client.ready = True
    engine.look()
    assert len(engine.client.words("begin")) == 1
    engine.client.generation = 2
    engine.manager.admitted("request", 0)
    order = engine.manager.prepare_store(engine.keys, engine.context)
    engine.client.generation = 3
    engine.manager.settle({order.store_spec.token: (1, 0)})
    engine.manager.on_request_finished(engine.context)
    assert said_in_order(engine) == ["begin", "begin", "commit", "begin", "touch"]


# --- wrong hints -------------------------------------------------------------------------------------------------


def test_wrong_hints_are_counted_named_once_and_cost_nothing_else(caplog):
    engine = engine_of(sesion="a chat", ttl_s=-1, pin=True)
    with caplog.at_level(logging.WARNING, "kvtier"):
        engine.arrive()
        engine.arrive()
    assert engine.manager._counts["hints_ignored"] == 4
    assert [record.getMessage() for record in caplog.records] == [
        "a request's hint is ignored: ttl_s must be a number of seconds above 0 and up to 604800",
        "a request's hint is ignored: there is no hint 'sesion'; did you mean 'session'?",
    ]
    assert engine.client.words("begin")[0][-1] == {"pin": 1}
    assert not engine.client.words("abandon") and engine.look() == [MISS] * 3


def test_the_log_names_no_more_kinds_than_it_bears(caplog):
    engine = engine_of()
    with caplog.at_level(logging.WARNING, "kvtier"):
        for n in range(100):
            engine.request.kv_transfer_params = {"kvtier": {f"no hint {n}": n}}
            engine.arrive()
    assert len(caplog.records) == announcing.NAMED_MAX
    assert engine.manager._counts["hints_ignored"] == 100


@pytest.mark.parametrize("params", [{"kvtier": []}, {"kvtier": "session"}, ["kvtier"], "kvtier", {"other": 1}, {}])
def test_parameters_of_another_shape_hurt_nobody(params):
    engine = engine_of()
    engine.request.kv_transfer_params = params
    engine.arrive()
    assert len(engine.client.asked) == 1 and not engine.client.words("begin") and not engine.client.words("abandon")


# --- what is not to be kept, and not to be loaded ----------------------------------------------------------------


def test_of_a_request_that_is_not_to_be_kept_nothing_is_saved_or_told():
    engine = engine_of(session="a secret", salt="Ada's", no_store=True)
    engine.client.answers_to[1] = [7, ABSENT, ABSENT]
    engine.arrive()
    assert engine.client.asked[0]["witness"] == b""
    assert engine.look() == [HIT, MISS, MISS]
    engine.manager.admitted("request", BLOCK)
    assert engine.manager.prepare_store(engine.keys[1:], engine.context).keys_to_store == []
    engine.manager.on_request_finished(engine.context)
    assert said_in_order(engine) == ["begin"]
    (begun,) = engine.client.words("begin")
    assert "a secret" not in str(begun) and "no_store" in str(begun), "that it is not to be kept, and not whose it is"
    assert engine.client.slots_at_hand == LEND
    assert engine.manager._counts["skipped_no_store"] == 2
    assert [lease for lease, *_ in engine.client.words("release")] == [1]


def test_a_request_that_is_not_to_be_kept_asks_nothing_when_nothing_is_loaded():
    engine = engine_of(no_store=True)
    engine.client.answers_to.clear()
    engine.arrive()
    engine.manager.admitted("request", 0)
    assert engine.manager.prepare_store(engine.keys, engine.context).keys_to_store == []
    assert len(engine.client.asked) == 1


def test_a_request_that_is_not_to_load_computes_at_once_and_saves_what_is_not_here():
    engine = engine_of(session="a chat", no_load=True)
    engine.client.answers_to[1] = [7, ABSENT, ABSENT]
    engine.arrive()
    assert not engine.client.asked
    assert engine.look() == [MISS] * 3
    engine.manager.admitted("request", 0)
    assert engine.client.asked == [{"keys": 3, "skip": 3}]
    assert engine.manager.prepare_store(engine.keys, engine.context).keys_to_store == engine.keys[1:]
    engine.manager.on_request_finished(engine.context)
    assert engine.client.words("begin")[0][2] == "a chat"


def test_a_request_that_neither_loads_nor_saves_is_none_of_kvtierd_s_business():
    engine = engine_of(session="a secret", no_load=True, no_store=True)
    engine.arrive()
    assert engine.look() == [MISS] * 3
    engine.manager.admitted("request", 0)
    engine.manager.prepare_store(engine.keys, engine.context)
    engine.manager.on_request_finished(engine.context)
    assert not engine.client.asked
    assert {word[0] for word in engine.client.said} == {"want", "pace"}


# --- a block's parent, and a request's end -----------------------------------------------------------------------


def commits(engine: FakeEngine) -> list[tuple[list[bytes], list[bytes], str]]:
    words = engine.client.words("commit")
    return [(list(unpack_keys(keys)), list(unpack_keys(parents)), req) for keys, _, _, _, parents, req in words]


def test_a_saved_block_says_which_one_is_before_it():
    engine = engine_of(blocks=4)
    engine.client.answers_to[1] = [7, ABSENT, ABSENT, ABSENT]
    engine.arrive()
    engine.look()
    engine.manager.admitted("request", 0)
    for part in (engine.keys[:3], engine.keys[3:]):
        order = engine.manager.prepare_store(part, engine.context)
        engine.manager.settle({order.store_spec.token: (1, 0)})
    names = [block_key(engine.client.secret, key) for key in engine.keys]
    assert commits(engine) == [(names[1:3], names[0:2], "request"), (names[3:], names[2:3], "request")]


def test_a_block_that_is_here_already_is_the_parent_of_the_next_all_the_same():
    engine = engine_of(blocks=4)
    engine.client.answers_to[1] = [ABSENT, 7, ABSENT, ABSENT]
    serve(engine, save=4)
    names = [block_key(engine.client.secret, key) for key in engine.keys]
    assert commits(engine) == [([names[0], *names[2:]], [NO_KEY, *names[1:3]], "request")]


def test_the_first_block_has_none_before_it():
    engine = engine_of(blocks=2)
    serve(engine, save=2)
    ((keys, parents, _),) = commits(engine)
    assert parents == [NO_KEY, keys[0]]


def test_where_blocks_are_no_chain_nobody_has_a_parent():
    engine = engine_of(blocks=2)
    engine.client.hello.is_chain = 0
    serve(engine, save=2)
    ((keys, parents, _),) = commits(engine)
    assert len(keys) == 2 and parents == []


def test_the_end_of_a_request_says_all_that_is_here_in_prefix_order():
    engine = engine_of(blocks=3)
    engine.client.answers_to[1] = [7, ABSENT, ABSENT]
    serve(engine, save=2)
    names = [block_key(engine.client.secret, key) for key in engine.keys]
    assert engine.client.words("touch") == [(b"".join(names[:2]), engine.now, "request")]


def test_the_end_of_a_request_that_only_asked_is_said_too():
    engine = engine_of()
    engine.arrive()
    engine.manager.on_request_finished(engine.context)
    assert engine.client.words("touch") == [(b"", engine.now, "request")]


def test_the_end_of_a_request_whose_kv_is_of_another_time_names_no_block():
    engine = engine_of()
    engine.arrive()
    engine.look()
    engine.manager.admitted("request", 0)
    engine.manager.prepare_store(engine.keys, engine.context)
    engine.manager.reset_cache()
    engine.manager.settle({1: (1, 0)})
    engine.manager.on_request_finished(engine.context)
    assert engine.client.words("touch") == [(b"", engine.now, "request")]


def test_the_end_of_a_request_of_which_nobody_has_heard_is_not_said():
    engine = engine_of()
    engine.client.ready = False
    engine.arrive()
    engine.client.ready = True
    engine.manager.on_request_finished(engine.context)
    assert not engine.client.words("touch")
