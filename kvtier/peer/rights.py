"""Which namespaces a client may read and write, as its certificate says: URIs among its subject's alternative names.

    kvtier:namespace:<16 hex digits>      one; the digits are the first of the namespace's digest
    kvtier:namespace:*                    all

Who may sign certificates is the operator's business: peer.client_ca. Keys can't be guessed, so a right is a right to what
one knows the key of.
"""

from collections.abc import Iterable
from typing import NamedTuple

from kvtier.peer import NAMESPACE_BYTES

PREFIX = "kvtier:namespace:"


class Rights(NamedTuple):
    """`namespaces`: the first bytes of their digests."""

    namespaces: frozenset[bytes]
    all: bool = False

    def allow(self, namespace: bytes) -> bool:
        return self.all or namespace[:NAMESPACE_BYTES] in self.namespaces

    def __bool__(self) -> bool:
        return self.all or bool(self.namespaces)


ALL = Rights(frozenset(), all=True)


def rights_of(uris: Iterable[bytes]) -> Rights:
    """What means nothing gives no right."""
    named = set()
    for uri in uris:
        text = uri.decode("ascii", "replace")
        name = text.removeprefix(PREFIX)
        if name == text:
            continue
        if name == "*":
            return ALL
        if len(name) == 2 * NAMESPACE_BYTES and set(name) <= set("0123456789abcdef"):
            named.add(bytes.fromhex(name))
    return Rights(frozenset(named))


def right_to(namespace: bytes) -> str:
    """The URI that a certificate lacks."""
    return f"{PREFIX}{namespace[:NAMESPACE_BYTES].hex()}"
