"""The master key: what is made from it is the same on every node, and tells nothing of it."""

import pytest

from kvtier.errors import DaemonError
from kvtier.tiers.master_key import ID_BYTES, KEY_BYTES, SALT_BYTES, MasterKey

SECRET, OTHER = bytes(range(32)), bytes(range(1, 33))
TENANT, SALT = b"tenant..", b"s" * SALT_BYTES


def made(secret: bytes) -> list[bytes]:
    key = MasterKey(secret)
    return [key.wrapping, key.id, key.remote_key(TENANT, SALT), key.remote_key(b"another.", SALT),
            key.remote_key(TENANT, b"t" * SALT_BYTES), key.root_mask(b"one store"), key.root_mask(b"another")]  # fmt: skip


def test_the_same_key_file_makes_the_same_keys_everywhere():
    assert made(SECRET) == made(SECRET)


def test_no_two_keys_are_the_same_whatever_they_are_for_and_whosever_they_are():
    keys = made(SECRET) + made(OTHER)
    assert len({key[:ID_BYTES] for key in keys}) == len(keys) == 14
    assert not any(SECRET[:ID_BYTES] in key for key in keys)
    assert {len(key) for key in keys} == {KEY_BYTES, ID_BYTES}


def test_without_openssl_it_says_which_setting_wants_it_and_how_to_get_it():
    with pytest.raises(DaemonError, match=r"^encryption\.key_file needs OpenSSL 3: .*; install it \(Debian: apt install"):
        MasterKey(SECRET, "/nowhere/libcrypto.so.3")
