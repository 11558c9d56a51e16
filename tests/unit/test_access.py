"""Who may connect. That other users' groups are seen is tests/daemon/test_service.py."""

import os
import socket

import pytest

from kvtier.access import Access, groups_of
from kvtier.errors import ConfigError


@pytest.fixture
def here():
    ours, its = socket.socketpair(socket.AF_UNIX)
    with ours, its:
        yield ours


def test_our_own_user_may_always_connect(here):
    assert Access().allows(here)
    assert Access("0").allows(here)


def test_the_kernel_says_which_groups_a_client_has(here):
    assert groups_of(here) == set(os.getgroups())


def test_a_group_is_named_or_numbered():
    assert Access().gid is None
    assert Access("root").gid == 0
    assert Access("4711").gid == 4711


def test_a_group_that_is_not_there_is_named_with_the_setting():
    with pytest.raises(ConfigError, match=r"^admin.group = 'no-such-group': there is no such group; `groupadd"):
        Access("no-such-group", "admin.group")


@pytest.mark.parametrize(
    ("gid", "groups", "allowed"),
    [(7, set(), True), (8, {7, 9}, True), (8, {9}, False), (8, set(), False)],
    ids=["first", "further", "of-others", "none"],
)
def test_a_stranger_needs_the_group(here, monkeypatch, gid, groups, allowed):
    class Stranger:
        def getsockopt(self, *_: int) -> bytes:
            return b"".join(n.to_bytes(4, "little") for n in (1, 12345, gid))

    monkeypatch.setattr("kvtier.access.groups_of", lambda sock: groups)
    assert Access("7").allows(Stranger()) is allowed  # type: ignore[arg-type]
    assert Access().allows(Stranger()) is False  # type: ignore[arg-type]
