"""Hearing: what was said of requests, and whose they are."""

import pytest

from kvtier import hearing as module
from kvtier.block import Kind
from kvtier.hearing import Hearing
from kvtier.session import NOTHING, Hints, Sessions
from kvtier.tenants import Tenants, tag_of, tenant_of

SALT = bytes(range(16))
KIND = Kind(65536, 16, True)


@pytest.fixture
def hearing() -> Hearing:
    return Hearing(Sessions(), Tenants(16, 2**20))


def test_what_was_said_is_remembered_until_it_is_over(hearing):
    hearing.hear("e", "r", Hints(session="chat"))
    assert hearing.of("e", "r").session == "chat"
    assert hearing.of("e", "other") is NOTHING
    hearing.forget("e", "r")
    assert hearing.of("e", "r") is NOTHING


def test_or_until_its_engine_is_gone(hearing):
    hearing.hear("e", "r", Hints(session="chat"))
    hearing.hear("f", "r", Hints(session="talk"))
    hearing.left("e")
    assert hearing.of("e", "r") is NOTHING
    assert hearing.of("f", "r").session == "talk"


def test_of_very_many_the_oldest_is_forgotten(hearing, monkeypatch):
    monkeypatch.setattr(module, "SAID_MAX", 2)
    for request in ("one", "two", "three"):
        hearing.hear("e", request, Hints(session=request))
    assert [hearing.of("e", request).session for request in ("one", "two", "three")] == ["", "two", "three"]


def test_a_request_of_the_own_user_has_the_tenant_that_was_said(hearing):
    hearing.joined("e", "")
    hearing.hear("e", "r", Hints(tenant=SALT))
    assert hearing.of("e", "r").tenant == SALT


def test_a_request_of_another_user_has_a_tenant_of_that_user(hearing):
    hearing.joined("e", "bob")
    hearing.hear("e", "r", Hints(tenant=SALT))
    assert hearing.of("e", "r").tenant == tenant_of("bob", SALT)
    assert hearing.of("e", "silent").tenant == tenant_of("bob", b"")


def test_the_number_of_a_tenant_is_that_of_its_session(hearing):
    hearing._sessions.begin(("e", "r"), bytes(16), 0, KIND, Hints(tenant=SALT), 0.0)
    number = hearing.tenant("e", "r", 1.0)
    assert number == hearing._tenants.number(tag_of(SALT))
    assert number != hearing.tenant("e", "another", 1.0) == 0


def test_who_asks_is_active(hearing):
    number = hearing.tenant("e", "r", 5.0)
    assert hearing._tenants._used_at[number] == 5.0
