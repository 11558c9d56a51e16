"""What goes along of a session that moves, and when it is here already."""

from idle_world import keys, letters
from talk import HEAP, Talk

from kvtier.moving import Moving
from kvtier.session import State

TENANT = bytes(range(16))


def test_what_clients_take_for_one_is_found_the_newest_last():
    talk = Talk()
    talk.turn("abcd", session="chat")
    talk.turn("xy", session="chat")  # another prompt under its name
    talk.turn("ef", session="other")
    found = Moving(talk.sessions).called("chat", "")
    assert [letters(session.keys) for session in found] == ["abcd", "xy"]


def test_a_session_goes_with_its_keys_its_turns_and_what_was_its_last_prompt():
    talk = Talk()
    talk.turn("ab", "c", session="chat", tenant=TENANT)
    begun = talk.turn("abcd", "ef", session="chat", tenant=TENANT)
    carried = Moving(talk.sessions).carried(begun.session, 7, talk.now)
    assert (carried.name, carried.tenant, carried.namespace) == ("chat", TENANT, 7)
    assert (letters(carried.keys), carried.prompt_blocks, carried.turns) == ("abcdef", 4, 2)


def test_times_go_as_what_is_left_of_them():
    talk = Talk()
    session = talk.turn("ab", session="chat", ttl_s=100.0, tool="grep").session
    session.state, session.expected_at = State.WAITING, talk.now + 20.0
    carried = Moving(talk.sessions).carried(session, 0, talk.now + 5.0)
    assert (carried.ttl_s, carried.expect_return_s, carried.pin_s, carried.tool) == (95.0, 15.0, 0.0, "grep")
    late = Moving(talk.sessions).carried(session, 0, talk.now + 500.0)
    assert (late.ttl_s, late.expect_return_s) == (1.0, 0.0)


def test_a_pin_goes_as_a_pin_of_what_is_left():
    talk = Talk()
    session = talk.turn("ab", session="chat", pin=True, ttl_s=100.0).session
    session.pinned, session.pin_until = keys("ab"), talk.now + 90.0
    hints = Moving(talk.sessions).carried(session, 0, talk.now + 30.0).hints
    assert (hints.session, hints.pin, hints.ttl_s, hints.end) == ("chat", True, 60.0, False)


def test_a_session_that_is_as_far_or_further_is_here_already():
    talk = Talk()
    session = talk.turn("abcd", session="chat").session
    moving = Moving(talk.sessions)
    carried = moving.carried(session, 0, talk.now)
    assert moving.has(carried, 1) is session
    assert moving.has(carried._replace(keys=keys("ab")), 1) is session
    assert moving.has(carried._replace(keys=keys("abcde")), 1) is None


def test_another_tenants_another_models_or_another_name_is_not():
    talk = Talk()
    moving, session = Moving(talk.sessions), talk.turn("abcd", session="chat").session
    carried = moving.carried(session, 0, talk.now)
    assert moving.has(carried, 2) is None
    assert moving.has(carried._replace(tenant=TENANT), 1) is None
    assert moving.has(carried._replace(name="chat 2"), 1) is None


def test_one_without_a_name_is_known_by_its_blocks():
    talk = Talk()
    moving = Moving(talk.sessions)
    session = talk.turn("abcd", "e").session
    carried = moving.carried(session, 0, talk.now)
    assert moving.has(carried, 1) is session
    assert moving.has(carried._replace(keys=keys("abcx")), 1) is None
    heap = talk.turn("pqr", kind=HEAP).session
    assert moving.has(moving.carried(heap, 0, talk.now), 1) is heap


def test_who_arrives_has_been_asked_as_often_as_it_was():
    talk = Talk()
    talk.begin("abcd", session="chat")
    assert Moving(talk.sessions).begun(talk.last, 12) == "chat"
    (session,) = talk.sessions
    assert session.turns == 12
    talk.begin("xyz")
    assert Moving(talk.sessions).begun(talk.last, 0).startswith("~")
