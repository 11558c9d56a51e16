"""What travels over the unix socket. Pure.

A frame is a little-endian uint32 length and that many bytes of msgpack: an array of a message's code and its fields,
in the order declared here. Nothing else is accepted: no other types, no extra fields, no length over FRAME_BYTES_MAX.
Keys and slot numbers travel packed in one bytes field each (block.pack_keys, block.pack_slots). Block bytes never
travel: the arena's descriptor goes with Welcome (SCM_RIGHTS), to workers only, and the GPU tier's handle in it.

    engine -> daemon                             daemon -> engine
    Hello      first, once                       Welcome    the answer
    Mapped     worker: I can copy now            Workers    scheduler: so many of your workers can
    Lookup     which of these are here?          Found      the answer, same lease
    Release    that lease is over                Lend       slots to save into
    Commit     these lent slots are blocks       Drain      worker: finish your copies, then hang up
    GiveBack   these lent slots are not used     Error      why you are disconnected
    Touch      a request is over; it used these  Snapshot   the answer to Ask
    Want       so many slots I would like        Staging    a lookup's blocks are being read; have patience
               to hold                           Flushed    the answer to Flush
    Reset      nothing saved so far counts
    Report     what I counted
    Ask        observer: what is there?
    Due        a request that asked could run    Explained  the answer to Explain
               now
    Begin      what is known of a request
               besides its keys
    Pace       how fast I am, how busy
    Outcome    what became of a request
    Flush      observer: let it survive a crash
    Explain    observer: why did you decide so?
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import msgpack
import numpy as np

from kvtier.block import KEY_BYTES, SECRET_BYTES, SLOT_TYPE
from kvtier.errors import FrameError, ProtocolError

VERSION = 6
FRAME_BYTES_MAX = 1024 * 1024
RECEIVE_BYTES = 64 * 1024  # of more, malloc maps and unmaps pages at every recv: 23 us instead of 2
KEYS_MAX = 16384  # keys or slots in one message
TEXT_MAX = 256  # characters of an engine's name or a label
COUNTS_MAX = 64  # entries of a Report
COUNT_MAX = 2**63 - 1

SCHEDULER, WORKER, OBSERVER = "scheduler", "worker", "observer"
COPIES = ("", "memcpy", "batch", "async", "kernel")  # all but the first two want registered memory
GPU_HANDLE_BYTES, GPU_UUID_BYTES, GPU_SEED_BYTES = 64, 16, 8
GPU_STAMP_BYTES = 2 * 1024 * 1024

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Hello:
    version: int
    role: str  # SCHEDULER, WORKER or OBSERVER
    engine: str  # one name for all processes of an engine, never used again by another
    namespace: bytes  # digest, 32 bytes; empty for an observer
    block_bytes: int  # of all ranks
    block_tokens: int
    lend: int  # how many slots the engine would like to hold
    is_chain: int = 1  # 1: a block is of use only together with all before it; 0: it may be without
    codec: str = ""  # a lossy one that its blocks may go through below RAM, as codec.Codec is written; empty: none may


@dataclass(frozen=True, slots=True)
class Welcome:
    version: int
    generation: int  # of the engine's stay
    capacity: int  # bytes of the arena, whose descriptor goes with this frame to a worker
    secret: bytes  # what keys of this namespace and epoch are made with; empty unless to a scheduler
    lend: int  # how many slots the engine may hold
    witness_secret: bytes = b""  # what witnesses are made with, the same for all namespaces; empty unless to a scheduler
    gpu: bytes = b""  # the handle of the GPU tier's memory; empty unless to a worker, and where there is no such tier
    gpu_capacity: int = 0  # bytes of it
    gpu_uuid: bytes = b""  # of the device where it lies
    gpu_stamp: bytes = b""  # the seed of what lies behind it: see gpu_stamp_of


@dataclass(frozen=True, slots=True)
class Memory:
    """No message: what a worker may map by its Welcome. The descriptor is its owner's to close."""

    generation: int
    fd: int
    size: int  # bytes of the arena
    gpu: bytes  # as in Welcome
    gpu_size: int
    gpu_uuid: bytes
    gpu_stamp: bytes

    @classmethod
    def of(cls, welcome: Welcome, fd: int) -> "Memory":
        gpu = (welcome.gpu, welcome.gpu_capacity, welcome.gpu_uuid, welcome.gpu_stamp)
        return cls(welcome.generation, fd, welcome.capacity, *gpu)


@dataclass(frozen=True, slots=True)
class Mapped:  # may be said again, when something of this has changed
    pinned: int = 0  # bytes of the arena that are registered for DMA
    maps_gpu: int = 0  # 1: it reads the GPU tier
    copies: str = ""  # how: one of COPIES; empty where nobody says

    @property
    def by_gpu(self) -> bool:
        """Copies don't end with the worker's threads, and want registered memory."""
        return self.copies not in COPIES[:2]


@dataclass(frozen=True, slots=True)
class Workers:
    count: int


@dataclass(frozen=True, slots=True)
class Lookup:
    lease: int
    keys: bytes
    skip: int = 0  # so many of the first need not be staged: the engine has them
    request: str = ""  # the engine's name for it; empty: the lookup is only for knowing
    prompt_tokens: int = 0
    resident_tokens: int = 0  # that the engine's own cache has
    backlog_us: int = 0  # of prefill work that is ahead of it
    witness: bytes = b""  # of its first block: one key, or none


@dataclass(frozen=True, slots=True)
class Found:
    lease: int
    slots: bytes  # one a key, ABSENT where it isn't here, BELOW where it is but is not offered


@dataclass(frozen=True, slots=True)
class Release:
    lease: int
    loaded: int  # blocks of it that were loaded
    load_us: int = 0  # from the order to its end on all ranks; 0: not known


@dataclass(frozen=True, slots=True)
class Lend:
    slots: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    keys: bytes
    slots: bytes
    parents: bytes = b""  # one a key: the block before it, zeros where it has none; empty: no block has one
    request: str = ""  # the engine's name for it


@dataclass(frozen=True, slots=True)
class GiveBack:
    slots: bytes


@dataclass(frozen=True, slots=True)
class Touch:
    keys: bytes  # all its blocks that are here, in prefix order; perhaps none
    request: str = ""


@dataclass(frozen=True, slots=True)
class Want:
    slots_wanted: int


@dataclass(frozen=True, slots=True)
class Reset:
    pass


@dataclass(frozen=True, slots=True)
class Report:
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Drain:
    pass


@dataclass(frozen=True, slots=True)
class Ask:
    pass


@dataclass(frozen=True, slots=True)
class Snapshot:
    state: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Staging:
    lease: int


@dataclass(frozen=True, slots=True)
class Flush:
    pass


@dataclass(frozen=True, slots=True)
class Flushed:
    is_durable: int  # 1: what was worth a write when Flush came survives a crash; 0: the tier below couldn't


@dataclass(frozen=True, slots=True)
class Due:
    lease: int  # of a lookup that still waits: nothing is ahead of its request any more


@dataclass(frozen=True, slots=True)
class Pace:
    counts: dict[str, int]  # cost.Prefill.to_counts and cost.Pressure


@dataclass(frozen=True, slots=True)
class Outcome:
    request: str
    counts: dict[str, int]  # decision.OUTCOME


@dataclass(frozen=True, slots=True)
class Begin:
    request: str
    session: str = ""
    tenant: bytes = b""  # one key made from its cache_salt, or none
    tool: str = ""  # that runs until the session's next request
    counts: dict[str, int] = field(default_factory=dict)  # hints.Asked.counts


@dataclass(frozen=True, slots=True)
class Explain:
    request: str  # or "last"
    last: int  # so many of the newest


@dataclass(frozen=True, slots=True)
class Explained:
    state: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Error:
    code: str
    message: str


Message = (
    Hello | Welcome | Mapped | Workers | Lookup | Found | Release | Lend | Commit | GiveBack | Touch
    | Want | Reset | Report | Drain | Ask | Snapshot | Staging | Flush | Flushed | Due | Pace | Outcome
    | Explain | Explained | Begin | Error
)  # fmt: skip

# A code is for ever: a new message gets a new one, and a changed message a new VERSION.
_CODES: dict[int, type] = {
    1: Hello, 2: Welcome, 3: Mapped, 4: Workers, 5: Lookup, 6: Found, 7: Release, 8: Lend, 9: Commit, 10: GiveBack,
    11: Touch, 12: Reset, 13: Report, 14: Drain, 15: Ask, 16: Snapshot, 17: Error, 18: Want,
    19: Staging, 20: Flush, 21: Flushed, 22: Due, 23: Pace, 24: Outcome, 25: Explain, 26: Explained,
    27: Begin,
}  # fmt: skip
_CODE_OF = {kind: code for code, kind in _CODES.items()}
_TYPES = {kind: tuple((f.name, f.type) for f in fields(kind)) for kind in _CODE_OF}
_WHOLE = {  # bytes fields are arrays of fixed-size entries
    "keys": KEY_BYTES,
    "parents": KEY_BYTES,
    "witness": KEY_BYTES,
    "tenant": KEY_BYTES,
    "witness_secret": SECRET_BYTES,
    "slots": SLOT_TYPE.itemsize,
    "namespace": 1,
    "secret": SECRET_BYTES,
    "gpu": GPU_HANDLE_BYTES,
    "gpu_uuid": GPU_UUID_BYTES,
    "gpu_stamp": GPU_SEED_BYTES,
}
_SINGLE = {"witness", "tenant", "gpu", "gpu_uuid", "gpu_stamp"}  # one entry at most


def gpu_stamp_of(seed: bytes) -> np.ndarray:
    """What lies in the GPU_STAMP_BYTES behind the GPU tier's bytes, so that whoever maps these sees whether they arrive
    right. numpy promises the raw numbers of this generator for all its versions."""
    return np.random.PCG64(int.from_bytes(seed, "little")).random_raw(GPU_STAMP_BYTES // 8)


def encode(message: Message) -> bytes:
    kind = type(message)
    body = msgpack.packb([_CODE_OF[kind], *[getattr(message, name) for name, _ in _TYPES[kind]]], default=_largest)
    assert len(body) <= FRAME_BYTES_MAX, type(message)
    return _LENGTH.pack(len(body)) + body


def encode_found(lease: int, slots: bytes) -> bytes:
    body = msgpack.packb((6, lease, slots))
    return _LENGTH.pack(len(body)) + body


def _largest(value: object) -> int:
    """In place of a counter that has outgrown msgpack's integers: it must not end the daemon."""
    assert type(value) is int, value
    return COUNT_MAX


FAREWELL = encode(Mapped())  # the last that a worker says whose copies are done


def decode(body: bytes) -> Message:
    """One message, every field checked. FrameError says what is wrong with it."""
    try:
        parts = msgpack.unpackb(body, use_list=False, strict_map_key=True, max_str_len=65536, max_map_len=4096)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise FrameError(f"not msgpack: {type(error).__name__}") from None
    if not isinstance(parts, tuple) or not parts or type(parts[0]) is not int or parts[0] not in _CODES:
        raise FrameError("not a message")
    kind = _CODES[parts[0]]
    if kind is Hello and len(parts) > 1 and type(parts[1]) is int and parts[1] != VERSION:
        # Before its other fields are looked at: those of another version may be others.
        raise ProtocolError(
            "bad_version", f"kvtierd speaks protocol {VERSION}, the client {parts[1]}; install the same kvtier for both"
        )
    declared = _TYPES[kind]
    if len(parts) - 1 != len(declared):
        raise FrameError(f"{kind.__name__} has {len(declared)} fields, not {len(parts) - 1}")
    for (name, expected), value in zip(declared, parts[1:]):
        _check(kind.__name__, name, expected, value)
    message: Message = kind(*parts[1:])
    return message


def _check(message: str, name: str, expected: Any, value: object) -> None:
    if expected is int:
        if type(value) is not int or not 0 <= value <= COUNT_MAX:
            raise FrameError(f"{message}.{name} is no count")
    elif expected is str:
        if type(value) is not str or (message != "Error" and len(value) > TEXT_MAX):
            raise FrameError(f"{message}.{name} is no text of up to {TEXT_MAX} characters")
        if name == "copies" and value not in COPIES:
            raise FrameError(f"{message}.{name} is none of {', '.join(COPIES[1:])}")
    elif expected is bytes:
        if type(value) is not bytes or len(value) % _WHOLE[name]:
            raise FrameError(f"{message}.{name} is not a whole number of {_WHOLE[name]}-byte entries")
        if name in _SINGLE and len(value) > _WHOLE[name]:
            raise FrameError(f"{message}.{name} is more than one")
        if len(value) > KEYS_MAX * _WHOLE[name]:
            raise ProtocolError("too_many", f"{message}.{name} has more than {KEYS_MAX} entries")
    elif type(value) is not dict:
        raise FrameError(f"{message}.{name} is no map")
    elif name == "counts":
        good = all(type(k) is str and type(v) is int and 0 <= v <= COUNT_MAX for k, v in value.items())
        if not good or len(value) > COUNTS_MAX:
            raise FrameError(f"{message}.{name} is no map of up to {COUNTS_MAX} counts")


class FrameReader:
    """Cuts a stream of bytes into messages. After an error the stream is of no more use."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if not 0 < length <= FRAME_BYTES_MAX:
                raise FrameError(f"a frame of {length} bytes; the limit is {FRAME_BYTES_MAX}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield decode(body)

    @property
    def partial(self) -> int:
        """Bytes of a frame that has not arrived whole."""
        return len(self._buffer)
