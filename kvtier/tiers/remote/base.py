"""What a kind of remote store can do, and how it fails: all that RemoteTier (remote.py) asks of it.

A kind is one small file: it opens connections, moves bytes, and says its own errors in the words below. It counts
nothing, retries nothing, verifies nothing and waits for nobody: deadlines, the breaker, checksums and limits are
RemoteTier's.

A name is "<16 hex digits of the namespace's digest>/<the key in hex>". A kind may put something before it, and change
the separator. A value is a header (envelope.py) and a body of any length behind it, nothing else; written over, it may be
longer or shorter than before. It is written whole or not at all: whoever reads while it is written finds the former value,
the new one, or none.

A kind guarantees

*   Each call is a coroutine on the tier's loop, and nothing runs before the first: connections are made when needed.
*   A call may be cancelled at any await. When it has ended, however it ended, `header` and `body` are touched no more,
    not by another thread either; and its connection is usable, or dropped. An answer that comes late is nobody's.
*   No call waits for another, up to CALLS_MAX at once.
*   It raises RemoteError or OSError. Whatever else comes out of it is taken for Unreachable.
"""

from collections.abc import Sequence
from typing import Protocol

CALLS_MAX = 32  # under way at once
NAMES_MAX = 1024  # of one call
SAID_MAX = 300  # letters of an error


class RemoteError(Exception):
    """The message is for people: it goes into `state`, so no password stands in it."""


class Unreachable(RemoteError):
    """No connection, no answer, or one that says: not now (a server that loads, a 503, a cluster without a master)."""


class Refused(RemoteError):
    """It is there, and doesn't let us: credentials, rights, a replica that takes no writes."""


class NotOurs(Refused):
    """Of this namespace alone; others may be ours."""


class Full(RemoteError):
    """It has no room for a value. What is there can be read."""


class Corrupt(RemoteError):
    """What lies under the name is not what was written."""


class OtherVersion(RemoteError):
    """A whole value, of a kvtier with another envelope or a codec that we don't have. Not for us to read, nor to delete."""


def said(error: BaseException) -> str:
    """For people, whatever a server says."""
    said = "".join(letter if letter.isprintable() else "?" for letter in str(error)[:SAID_MAX])
    return said or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)


class Remote(Protocol):
    async def lengths(self, names: Sequence[str]) -> list[int | None]:
        """Of each value, header and body, in bytes; None: it isn't there. One round trip where the kind can."""
        ...

    async def get(self, name: str, header: memoryview, body: memoryview) -> bool:
        """Fills both, straight from the wire where the kind can. False: it isn't there. Corrupt: it is shorter, or longer;
        then they hold anything."""
        ...

    async def put(self, name: str, header: bytes, body: memoryview) -> None:
        """Over what is there; or leaves it, where the kind would rather: one name has one content. When it raised, the
        value may be there all the same, whole."""
        ...

    async def delete(self, names: Sequence[str]) -> None:
        """Those of them that are there."""
        ...

    async def close(self) -> None:
        """Once, when no call is under way."""
        ...
