"""What a certificate's URIs allow."""

import pytest

from kvtier.peer.rights import ALL, right_to, rights_of

RED, BLUE = bytes(range(32)), bytes(range(1, 33))


def test_a_namespace_is_allowed_by_the_first_digits_of_its_digest():
    rights = rights_of([b"spiffe://example.org/node", b"kvtier:namespace:0001020304050607"])
    assert rights and rights.allow(RED) and rights.allow(RED[:8]) and not rights.allow(BLUE)


def test_several_are_allowed():
    rights = rights_of([right_to(RED).encode(), right_to(BLUE).encode()])
    assert rights.allow(RED) and rights.allow(BLUE) and not rights.allow(bytes(32))


def test_a_star_allows_all():
    assert rights_of([b"kvtier:namespace:*"]) == ALL and ALL.allow(RED)


@pytest.mark.parametrize(
    "uri",
    [
        b"",
        b"kvtier:namespace:",
        b"kvtier:namespace:**",
        b"kvtier:namespace:*x",
        b"kvtier:namespace:000102030405060",
        b"kvtier:namespace:00010203040506070",
        b"kvtier:namespace:000102030405060G",
        b"kvtier:namespace: 001020304050607",
        b"Kvtier:namespace:*",
        b"https://kvtier:namespace:*",
        b"\xff\xfe",
    ],
)
def test_what_means_nothing_gives_no_right(uri):
    rights = rights_of([uri])
    assert not rights and not rights.allow(RED)
