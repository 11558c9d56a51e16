"""Every error that kvtier raises on purpose. Programmer errors are asserted instead.

KVTierError
|-- ConfigError          a setting is wrong; the message names it and the cure
|-- DaemonError          kvtierd can't be reached or refuses; for commands, never for an engine
|-- HandoverError        what another kvtierd left is of no use here; the message says why
`-- ProtocolError        a peer broke the protocol; `code` is one of CODES and travels in an Error frame
    |-- FrameError       the bytes are no frame: garbage, truncated, too long
    `-- OrderError       a good frame at the wrong time
"""

CODES = {
    "bad_frame": "the bytes are no kvtier frame",
    "bad_order": "the frame is not allowed now",
    "bad_version": "another protocol version",
    "engine_leaving": "former processes of this engine are not gone yet; come back in a moment",
    "bad_slot": "a slot that is not lent to this engine",
    "bad_codec": "a codec that can't be wished for",
    "too_large": "a block larger than the arena can hold",
    "too_many": "a limit on clients, leases or keys is reached",
    "not_allowed": "this user may not connect",
}


class KVTierError(Exception):
    """The root of the tree."""


class ConfigError(KVTierError):
    """A setting is unknown, of the wrong type or out of range."""


class DaemonError(KVTierError):
    """kvtierd is absent, refuses or doesn't answer in time."""


class MemoryShortError(DaemonError):
    """There is no memory for the arena now. Idle engines may have the former one until their next step."""


class HandoverError(KVTierError):
    """What a former kvtierd handed over can't be gone on with."""


class ProtocolError(KVTierError):
    """A peer broke the protocol."""

    def __init__(self, code: str, message: str) -> None:
        assert code in CODES, code
        super().__init__(message)
        self.code = code


class FrameError(ProtocolError):
    def __init__(self, message: str) -> None:
        super().__init__("bad_frame", message)


class OrderError(ProtocolError):
    def __init__(self, message: str) -> None:
        super().__init__("bad_order", message)
