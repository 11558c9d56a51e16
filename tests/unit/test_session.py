"""Sessions: which request goes on with whom, what is remembered of it, and what is forgotten first."""

import pytest
from idle_world import OTHER_TENANT, TENANT, key, keys, letters
from talk import HEAP, Talk

from kvtier.session import State


@pytest.fixture
def talk() -> Talk:
    return Talk()


# --- the drawn examples --------------------------------------------------------------------------------------------


def test_a_first_request_is_a_new_session(talk):
    begun = talk.begin("abcd")
    assert (begun.is_new, begun.came_back, begun.parted_from, begun.superseded) == (True, False, None, b"")
    session = begun.session
    assert (session.shown_name, session.state, session.turns, session.tail_at) == ("~0", State.ACTIVE, 1, 0)


def test_who_goes_on_from_where_the_last_prompt_ended_is_that_session(talk):
    first = talk.turn("abcd", "ef").session
    begun = talk.turn("abcdef", "g")
    assert begun.session is first
    assert (begun.is_new, begun.came_back, begun.superseded) == (False, True, b"")
    assert (letters(first.keys), first.turns, first.tail_at, first.prompt_blocks) == ("abcdefg", 2, 6, 6)


def test_who_tells_the_answer_with_other_words_is_that_session_and_the_former_words_are_nobodys(talk):
    first = talk.turn("abcd", "ef").session
    begun = talk.begin("abcdx")
    assert begun.session is first
    assert letters(begun.superseded) == "ef"
    assert (letters(first.keys), first.tail_at) == ("abcdx", 4)


def test_who_parts_earlier_is_another_session_that_shares_the_trunk(talk):
    first = talk.turn("abcd", "ef").session
    begun = talk.begin("aby")
    assert begun.session is not first and begun.is_new
    assert begun.parted_from is first
    assert (begun.session.tail_at, begun.session.is_branch) == (2, True)
    assert talk.chains() == {"~0": "abcdef", "~1": "aby"}


def test_a_branch_that_goes_on_is_one_no_longer(talk):
    talk.turn("abcd")
    branch = talk.turn("aby").session
    assert talk.turn("abyz").session is branch
    assert (branch.is_branch, branch.tail_at) == (False, 3)


def test_a_sixteenth_of_a_prompt_may_be_told_with_other_words(talk):
    first = talk.turn("abcdefghijklmnopqrstuvwxyzABCDEF").session  # 32 blocks
    assert talk.turn("abcdefghijklmnopqrstuvwxyzABCD12").session is first
    assert talk.turn("abcdefghijklmnopqrstuvwxyzABC345").parted_from is first


# --- states ------------------------------------------------------------------------------------------------------


def test_a_session_is_idle_when_its_last_request_is_over(talk):
    session = talk.begin("ab", session="chat").session
    first = talk.last
    talk.begin("ab", session="chat")
    talk.over("ab", first)
    assert session.state is State.ACTIVE
    talk.over("ab")
    assert session.state is State.IDLE


def test_it_came_back_only_if_nothing_of_it_was_under_way(talk):
    talk.begin("ab", session="chat")
    assert not talk.begin("ab", session="chat").came_back
    talk.over("ab")
    talk.over("ab", ("a", "1"))
    assert talk.begin("ab", session="chat").came_back


def test_how_long_it_was_idle_is_remembered(talk):
    session = talk.turn("ab").session
    talk.now = 100.0
    talk.turn("abc")
    assert session.gap_s == 100.0
    assert session.used_at == 101.0


def test_a_request_that_never_began_is_not_over(talk):
    assert talk.sessions.over(("a", "what"), keys("ab"), 1.0) is None


def test_a_request_of_which_nobody_knows_the_blocks_leaves_them_as_they_were_asked(talk):
    session = talk.begin("abc").session
    assert talk.over() == ""
    assert letters(session.keys) == "abc"


def test_a_request_that_names_fewer_blocks_than_it_asked_for_had_those_too(talk):
    session = talk.begin("abc").session
    talk.over("ab")
    assert letters(session.keys) == "abc"


def test_a_request_of_which_a_block_is_missing_had_it_too(talk):
    """It was not saved; those behind it came nevertheless."""
    session = talk.turn("abcde").session
    talk.begin("abcdef")
    talk.over("abdef")
    assert talk.begin("abcdefg").session is session


def test_once_no_disk_always_no_disk(talk):
    session = talk.turn("ab", session="chat", no_disk=True).session
    talk.turn("abc", session="chat")
    assert session.no_disk and session.hints.no_disk is False


def test_what_requests_saved_is_known_while_they_are_under_way(talk):
    session = talk.begin("ab").session
    talk.sessions.saved(talk.last, keys("a"))
    talk.sessions.saved(talk.last, keys("bc"))
    talk.sessions.saved(("a", "what"), keys("z"))
    assert session.requests == {("a", "1"): [keys("a"), keys("bc")]}
    assert talk.sessions.of_engine("a") == [("1", session)]
    assert talk.sessions.of_request("a", "1") is session
    talk.over("abc")
    assert (session.requests, talk.sessions.of_engine("a")) == ({}, [])


# --- names -------------------------------------------------------------------------------------------------------


def test_a_named_session_is_found_by_its_name_if_half_of_its_prompt_is_the_same(talk):
    session = talk.turn("abcd", session="chat").session
    begun = talk.begin("abxy", session="chat")
    assert begun.session is session
    assert letters(begun.superseded) == "cd"


def test_another_prompt_under_its_name_is_another_session_of_that_name(talk):
    """A title for the conversation, say; both go on afterwards."""
    session = talk.turn("abcd", session="chat").session
    title = talk.turn("axyz", session="chat").session
    assert title is not session
    assert talk.turn("abcde", session="chat").session is session
    assert talk.turn("axyzw", session="chat").session is title
    assert talk.sessions.named("chat") == [session, title]


def test_the_same_name_of_another_tenant_or_another_namespace_is_another_session(talk):
    sessions = [
        talk.turn("abc", session="chat", tenant=TENANT).session,
        talk.turn("abc", session="chat", tenant=OTHER_TENANT).session,
        talk.turn("abc", session="chat", tenant=TENANT, namespace=2).session,
    ]
    assert len({session.serial for session in sessions}) == 3
    assert talk.sessions.named("chat") == sessions
    assert talk.sessions.named("chat", TENANT[:6].hex()) == [sessions[0], sessions[2]]


def test_a_name_adopts_the_session_that_nobody_named(talk):
    session = talk.turn("abc").session
    begun = talk.turn("abcd", session="chat", tenant=TENANT)
    assert begun.session is session
    assert (session.name, session.tenant, session.turns) == ("chat", TENANT, 2)
    assert talk.turn("abxyz", session="chat", tenant=TENANT).session is session


def test_a_name_does_not_take_over_the_session_of_another_name(talk):
    first = talk.turn("abc", session="chat").session
    begun = talk.turn("abcd", session="other")
    assert begun.session is not first and begun.parted_from is first


def test_who_has_no_name_does_not_go_on_with_a_named_session(talk):
    first = talk.turn("abc", session="chat").session
    begun = talk.turn("abcd")
    assert begun.session is not first and begun.parted_from is first


def test_while_a_request_runs_another_of_the_same_blocks_is_another_session(talk):
    first = talk.begin("abc").session
    begun = talk.begin("abcd")
    assert begun.session is not first and begun.parted_from is first


def test_sessions_without_a_name_are_found_as_they_are_shown(talk):
    session = talk.turn("abc").session
    assert talk.sessions.named("~0") == [session]
    assert talk.sessions.named("~1") == []


def test_no_name_and_no_tenant_is_nobody(talk):
    talk.turn("abc")
    talk.turn("xyz", tenant=TENANT)
    assert talk.sessions.named("") == []
    assert [letters(session.keys) for session in talk.sessions.named("", TENANT[:6].hex())] == ["xyz"]
    assert talk.sessions.named("", TENANT[:5].hex()) == []


# --- what several have -------------------------------------------------------------------------------------------


def test_the_first_to_have_a_block_is_known_while_it_is_remembered(talk):
    first, second = talk.turn("abc").session, talk.turn("abx").session
    assert [talk.sessions.whose(key(letter)) for letter in "acxq"] == [first, first, second, None]


def test_what_one_alone_has_is_known(talk):
    first, second = talk.turn("abc").session, talk.turn("abx").session
    assert [letters(talk.sessions.alone(session)) for session in (first, second)] == ["c", "x"]


def test_who_is_dropped_leaves_what_others_have(talk):
    first = talk.turn("abc").session
    talk.turn("abx")
    assert letters(talk.sessions.drop(first)) == "c"
    assert not talk.sessions.remembers(first)
    assert talk.chains() == {"~1": "abx"}


def test_a_number_is_used_again_and_yet_the_former_owner_is_not_taken_for_the_new_one(talk):
    first = talk.turn("abc").session
    talk.turn("abx")
    talk.sessions.drop(first)
    assert talk.turn("pqr").session.number == first.number
    whose = talk.sessions.whose(key("a"))
    assert whose is None or key("a") in whose.keys


def test_who_parts_from_one_that_is_forgotten_parts_from_nobody_that_is_known(talk):
    first = talk.turn("abc").session
    talk.turn("abx")
    talk.sessions.drop(first)
    begun = talk.turn("aby")
    assert begun.is_new and begun.parted_from is not first


def test_a_session_that_ended_is_shown_for_a_while(talk, monkeypatch):
    ended = [talk.turn(letter, session=letter).session for letter in "ab"]
    for session in ended:
        talk.sessions.drop(session)
        talk.sessions.remember_ended(session)
    assert talk.sessions.named("a") == []
    assert talk.sessions.named("a", ended=True) == ended[:1]


# --- blocks that are no chain ------------------------------------------------------------------------------------


def test_of_what_is_no_chain_all_blocks_count_in_whatever_order(talk):
    first = talk.turn("abcd", kind=HEAP).session
    begun = talk.turn("dcbae", kind=HEAP)
    assert begun.session is first
    assert (letters(first.keys), first.tail_at, letters(begun.superseded)) == ("dcbae", 4, "")
