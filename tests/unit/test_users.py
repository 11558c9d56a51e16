"""Users: who shares blocks with whom."""

import os
import pwd

from kvtier.block import namespace_digest, namespace_secret, witness_secret
from kvtier.users import Users, namespace_of, root_of

DIGEST, ROOT = namespace_digest({"model": "m"}), bytes(range(32))
NOBODY_HAS = 2**31 - 7


def test_the_own_user_is_nobody_in_particular():
    assert Users().name(os.geteuid()) == ""


def test_other_users_are_called_by_their_name_and_without_one_by_their_number():
    other = next(entry for entry in pwd.getpwall() if entry.pw_uid != os.geteuid())
    assert Users().name(other.pw_uid) == pwd.getpwuid(other.pw_uid).pw_name
    assert Users().name(NOBODY_HAS) == f"uid {NOBODY_HAS}"


def test_where_all_are_one_nobody_has_a_name():
    assert Users(are_one=True).name(NOBODY_HAS) == ""


def test_namespaces_and_all_secrets_of_users_differ():
    users = ("", "alice", "bob")
    assert len({namespace_of(user, DIGEST) for user in users}) == 3
    assert len({namespace_secret(ROOT, namespace_of(user, DIGEST), 0) for user in users}) == 3
    assert len({witness_secret(root_of(user, ROOT)) for user in users}) == 3


def test_what_is_the_own_users_is_called_as_if_there_were_no_others():
    assert namespace_of("", DIGEST) == DIGEST
    assert root_of("", ROOT) == ROOT


def test_nodes_that_share_a_root_agree_on_what_a_user_of_one_name_has():
    """Whatever its number is there."""
    assert namespace_of("vllm", DIGEST) == namespace_of("vllm", DIGEST)
    assert len(namespace_of("vllm", DIGEST)) == 32


def test_a_name_and_a_namespace_are_not_mixed_up():
    assert namespace_of("ab", b"c" * 32) != namespace_of("a", b"bc" * 16)


def test_root_and_the_own_user_see_all_requests_and_others_their_own():
    users = Users()
    assert users.see_all(0)
    assert users.see_all(os.geteuid())
    assert not users.see_all(NOBODY_HAS)
