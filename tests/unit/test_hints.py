"""What clients may say: what is good is heard whatever stands beside it, what is wrong is named, and nothing raises."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvtier import hints
from kvtier.hints import NOTHING, Asked, parse


def asked(**said: Any) -> Asked:
    """Of hints all of which are good."""
    found, problems = parse(said)
    assert problems == []
    return found


def problem(**said: Any) -> str:
    """The one of hints that leave nothing."""
    found, (sentence,) = parse(said)
    assert found == NOTHING
    return sentence


def envelope(**actions: dict) -> SimpleNamespace:
    """As vLLM's KvHintsEnvelope looks."""
    return SimpleNamespace(
        actions=[SimpleNamespace(action_type=kind, payload=payload) for kind, payload in actions.items()]
    )


# --- what is good ------------------------------------------------------------------------------------------------


def test_no_hints_are_no_problem():
    assert parse(None) == parse({}) == parse(None, None, "") == (NOTHING, [])


def test_every_hint_is_heard():
    said = {"session": "Ada's chat", "tool": "web_search", "end": True, "expect_return_s": 12, "ttl_s": 3600.5, "pin": True,
            "no_store": True, "no_load": True, "max_tier": "cpu"}  # fmt: skip
    assert asked(**said) == Asked("Ada's chat", "web_search", 12, 3600.5, True, True, True, True, True, True)


@pytest.mark.parametrize("name", hints._HINTS)
def test_null_is_what_nobody_said(name):
    assert parse({name: None}) == (NOTHING, [])


def test_only_the_highest_tiers_keep_a_session_from_the_disk():
    assert [asked(max_tier=tier).no_disk for tier in ("cpu", "gpu", "nvme", "remote")] == [True, True, False, False]


def test_all_but_the_remote_keep_a_session_on_this_node():
    tiers = ("cpu", "gpu", "nvme", "remote")
    assert [asked(max_tier=tier).no_remote for tier in tiers] == [True, True, True, False]
    assert asked().no_remote is False
    assert asked(max_tier="nvme").counts() == {"no_remote": 1}


def test_the_bounds_are_within():
    assert asked(session="s" * 128, tool="t" * 64, expect_return_s=86400, ttl_s=604800).ttl_s == 604800
    assert asked(session="日本語 ü").session == "日本語 ü"


def test_vllms_session_id_names_the_session_where_no_hint_does():
    assert parse(None, None, "of the header")[0].session == "of the header"
    assert parse({"session": "of the hint"}, None, "of the header")[0].session == "of the hint"
    assert parse({"session": "of the hint"}, None, "\n") == (Asked("of the hint"), [])
    assert parse({"session": ""}, None, "of the header")[0].session == "of the header"
    assert parse(None, None, "\n")[1] == [
        "session_id must be text of 1 to 128 printable characters that doesn't begin with ~"
    ]


# --- the counts of a Begin ---------------------------------------------------------------------------------------


def test_what_was_not_said_is_not_counted():
    assert NOTHING.counts() == {}
    assert asked(session="s", tool="t", no_store=True, no_load=True, end=False).counts() == {}


def test_seconds_travel_as_milliseconds_and_are_never_lost():
    assert asked(end=True, pin=True, max_tier="cpu", expect_return_s=1.5, ttl_s=0.0001).counts() == {
        "end": 1, "pin": 1, "no_disk": 1, "no_remote": 1, "expect_return_ms": 1500, "ttl_ms": 1,
    }  # fmt: skip


# --- what is wrong -----------------------------------------------------------------------------------------------

WRONG = {
    "session": ["", "s" * 129, "two\nlines", "\x1b[2J", "\ud800", "~1f", 7, True, b"bytes", ["s"]],
    "tool": ["", "t" * 65, "\x00", 7, {}],
    "expect_return_s": [0, -1, 86400.1, math.nan, math.inf, 10**400, True, "12", [12]],
    "ttl_s": [0, -0.0, 604801, math.nan, False, "3600", {}],
    "end": [1, 0, "true", [], 1.0],
    "pin": ["yes", 1],
    "no_store": ["no", 1],
    "no_load": [2, "true"],
    "max_tier": ["ram", "CPU", "", 1, True, ["cpu"], {"cpu": 1}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_hint_is_left_out_and_its_cure_is_named(name, value):
    assert problem(**{name: value}).startswith(f"{name} must be ")


def test_the_cure_says_the_bounds():
    assert problem(expect_return_s=0) == "expect_return_s must be a number of seconds above 0 and up to 86400"
    assert problem(max_tier="disk") == "max_tier must be one of cpu, gpu, nvme, remote"
    assert problem(end="yes") == "end must be true or false"


def test_an_unknown_hint_is_named_with_what_it_may_have_meant():
    assert problem(sesion="s") == "there is no hint 'sesion'; did you mean 'session'?"
    assert problem(colour=1) == f"there is no hint 'colour'; known are {', '.join(hints._HINTS)}"


def test_a_name_is_shown_as_far_as_a_log_line_bears_it():
    name = "\n" * 10_000
    assert "\n" not in problem(**{name: 1}) and len(problem(**{name: 1})) < 400


@pytest.mark.parametrize("raw", [[], "session", 7, 1.5, True, b"", (("session", "s"),), {1, 2}, object()])
def test_hints_that_are_no_map_are_one_problem(raw):
    assert parse(raw) == (NOTHING, ['kvtier\'s hints must be a map, such as {"session": "a name"}'])


def test_names_that_are_no_text_are_problems():
    assert parse({1: 2, None: 3, (4,): 5}) == (NOTHING, ["a hint's name must be text"] * 3)


def test_of_a_huge_map_only_the_first_entries_are_looked_at_but_every_known_hint_is_heard():
    found, problems = parse({f"junk {i}": i for i in range(100_000)} | {"session": "the last one"})
    assert found == Asked("the last one") and len(problems) == hints.LOOKED_AT


# --- vLLM's envelope ---------------------------------------------------------------------------------------------


def test_actions_that_have_an_equivalent_mean_the_same():
    assert parse(None, envelope(session={"session_id": "a chat"})) == (Asked("a chat"), [])
    assert parse(None, envelope(session={"session": "a chat"})) == (Asked("a chat"), [])
    assert parse(None, envelope(pin={})) == (Asked(pin=True), [])
    assert parse(None, envelope(retain={"ttl_s": 300})) == (Asked(pin=True, ttl_s=300), [])
    assert parse(None, envelope(release={})) == (Asked(end=True), [])
    assert parse(None, envelope(**{"kv.release": {"more": 1}})) == (Asked(end=True), [])


@pytest.mark.parametrize("kind", ["prefetch", "fetch", "demote", "kv.fetch"])
def test_actions_that_have_none_are_known_and_change_nothing(kind):
    assert parse(None, envelope(**{kind: {"anything": [1]}})) == (NOTHING, [])


def test_what_the_request_says_itself_has_precedence():
    found, problems = parse({"session": "mine", "ttl_s": 7}, envelope(session={"session": "another"}, pin={"ttl_s": 9}))
    assert (found, problems) == (Asked("mine", ttl_s=7, pin=True), [])


def test_an_unknown_action_or_a_wrong_payload_is_a_problem():
    assert parse(None, envelope(relase={}))[1] == ["kvtier knows no action 'relase'; did you mean 'release'?"]
    assert parse(None, envelope(retain={"ttl_s": -1})) == (
        Asked(pin=True), ["ttl_s must be a number of seconds above 0 and up to 604800"],
    )  # fmt: skip
    nonsense = SimpleNamespace(actions=[None, SimpleNamespace(action_type=3, payload={}), envelope()])
    assert parse(None, nonsense)[1] == ["an action of kv_hints must have an action_type and a payload"] * 3


@pytest.mark.parametrize("thing", [7, "pin", {"actions": []}, SimpleNamespace(actions={"pin": 1})])
def test_what_is_no_envelope_is_one_problem(thing):
    assert parse(None, thing) == (NOTHING, ["kv_hints must be an envelope with a list of actions"])


def test_of_a_long_envelope_only_the_first_actions_are_looked_at():
    one = SimpleNamespace(action_type="nonsense", payload={})
    assert len(parse(None, SimpleNamespace(actions=[one] * 10_000))[1]) == hints.LOOKED_AT


# --- anything ----------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=140) | st.binary(max_size=8)
json = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)
names = st.sampled_from(list(hints._HINTS)) | st.text(max_size=20)
names_of_actions = st.sampled_from(hints.ACTIONS) | st.text(max_size=20) | st.integers()
actions = st.builds(SimpleNamespace, action_type=names_of_actions, payload=st.dictionaries(names, json, max_size=4) | json)


def holds_what_it_may(found: Asked) -> bool:
    texts = all(len(t) <= n and t.isprintable() for t, n in ((found.session, 128), (found.tool, 64)))
    seconds = 0 <= found.expect_return_s <= 86400 and 0 <= found.ttl_s <= 604800
    flags = (found.end, found.pin, found.no_disk, found.no_remote, found.no_store, found.no_load)
    return texts and seconds and all(type(flag) is bool for flag in flags)


@settings(max_examples=50)
@given(
    st.dictionaries(names, json, max_size=40) | json,
    st.none() | st.builds(SimpleNamespace, actions=st.lists(actions)),
    json,
)
@example({"ttl_s": 1e-300, "expect_return_s": 5e-324}, None, None)
def test_whatever_is_sent_nothing_raises_and_only_good_hints_come_out(raw, sent, session_id):
    found, problems = parse(raw, sent, session_id)
    assert holds_what_it_may(found)
    assert all(isinstance(sentence, str) and len(sentence) < 400 for sentence in problems)
    assert all(0 < n < 2**63 for n in found.counts().values())


GOOD = {
    "session": st.text("abc é7-_", min_size=1, max_size=128), "tool": st.text("xyz_", min_size=1, max_size=64),
    "expect_return_s": st.floats(0.001, 86400), "ttl_s": st.integers(1, 604800),
    **dict.fromkeys(("end", "pin", "no_store", "no_load"), st.just(True)),
}  # fmt: skip


@settings(max_examples=50)
@given(st.sampled_from(list(GOOD)).flatmap(lambda name: st.tuples(st.just(name), GOOD[name])),
       st.dictionaries(names, json, max_size=40), st.booleans())  # fmt: skip
def test_a_good_hint_survives_whatever_stands_beside_it(good, neighbours, is_first):
    name, value = good
    neighbours.pop(name, None)
    raw = {name: value, **neighbours} if is_first else {**neighbours, name: value}
    assert getattr(parse(raw)[0], name) == value
