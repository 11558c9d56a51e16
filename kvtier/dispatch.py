"""What an engine's scheduler says, as calls of the store. The sockets are the server's."""

import logging
from typing import get_args

import numpy as np

from kvtier import protocol
from kvtier.block import KEY_BYTES, unpack_slots
from kvtier.codec import RAW, Codec, read_codec
from kvtier.decision import Ask
from kvtier.errors import FrameError, ProtocolError
from kvtier.hints import RETURN_S_MAX, SESSION_MAX, TOOL_MAX, TTL_S_MAX, is_name
from kvtier.session import Hints
from kvtier.store import BlockStore
from kvtier.users import namespace_of

log = logging.getLogger("kvtierd")

FromScheduler = (
    protocol.Lookup | protocol.Release | protocol.Commit | protocol.GiveBack | protocol.Touch | protocol.Want
    | protocol.Reset | protocol.Report | protocol.Due | protocol.Pace | protocol.Outcome | protocol.Begin
)  # fmt: skip
FROM_SCHEDULERS = get_args(FromScheduler)


def join(store: BlockStore, hello: protocol.Hello, user: str, now: float) -> tuple[bytes, int, int]:
    """An engine begins; `user`: whose it is, as Users.name has it. Its namespace as that user's engines have it, the epoch
    of that, and how many slots it may hold. ProtocolError where it may not."""
    if len(hello.namespace) != 32 or not hello.block_bytes or not hello.block_tokens:
        raise ProtocolError("bad_frame", "a scheduler's Hello names its namespace and block size")
    lend, wish = min(hello.lend, protocol.KEYS_MAX), _wish(hello.codec)  # they go out in one Lend
    namespace, of = namespace_of(user, hello.namespace), (hello.block_bytes, hello.block_tokens)
    known = store.namespaces.get(namespace)
    if known is not None and known.wish not in (None, wish):
        raise ProtocolError("bad_codec", f"other engines of this namespace have said codec {known.wish}, not {wish}")
    epoch, lend = store.join(hello.engine, namespace, *of, lend, now, is_chain=bool(hello.is_chain), user=user)
    known = store.namespaces[namespace]
    if known.wish is None:
        known.wish = wish
        for tier in (store.lower, store.away):
            if tier is not None and wish != RAW:
                tier.coding.wish(known.number, wish)
    return namespace, epoch, lend


def _wish(codec: str) -> Codec:
    """Lossy, or RAW: none. Lossless ones nobody need wish for."""
    try:
        wish = read_codec(codec) if codec else RAW
    except ValueError as error:
        raise ProtocolError("bad_codec", str(error)) from None
    if codec and not wish.is_lossy:
        raise ProtocolError("bad_codec", f"codec {codec!r} loses nothing: it is kvtierd's to choose, see nvme.codec")
    return wish


def carry_out(store: BlockStore, engine: str, namespace: bytes, message: FromScheduler, now: float) -> bytes:
    """The frame that answers it at once, if any. ProtocolError where the engine may not say this."""
    match message:
        case protocol.Lookup():
            return _lookup(store, engine, message, now)
        case protocol.Release():
            store.release(engine, message.lease, message.loaded, now, message.load_us / 1e6)
        case protocol.Commit():
            _commit(store, engine, message, now)
        case protocol.GiveBack():
            store.give_back(engine, unpack_slots(message.slots))
        case protocol.Touch():
            store.touch(engine, message.keys, message.request, now)
        case protocol.Want():
            store.want(engine, message.slots_wanted)
        case protocol.Reset():
            store.reset(engine, namespace)
            log.info("engine %(engine)s has reset its cache: nothing older of its namespace is served", {"engine": engine})
        case protocol.Report():
            store.report(message.counts)
        case protocol.Due():
            store.due(engine, message.lease, now)
        case protocol.Pace():
            store.pace(engine, message.counts)
        case protocol.Outcome():
            store.outcome(engine, message.request, message.counts, now)
        case protocol.Begin():
            store.begin(engine, message.request, _hints(message), now)
    return b""


def _lookup(store: BlockStore, engine: str, message: protocol.Lookup, now: float) -> bytes:
    ask = Ask(message.request, message.prompt_tokens, message.resident_tokens, message.backlog_us / 1e6, message.witness)
    slots = store.lookup(engine, message.lease, message.keys, message.skip, now, ask)
    return b"" if slots is None else found(store, engine, message.lease, slots)


def found(store: BlockStore, engine: str, lease: int, slots: np.ndarray) -> bytes:
    """The frame with a lookup's answer."""
    return protocol.encode_found(lease, store.answered(engine, lease, slots).tobytes())


def _commit(store: BlockStore, engine: str, message: protocol.Commit, now: float) -> None:
    slots = unpack_slots(message.slots)
    if len(message.keys) != len(slots) * KEY_BYTES:
        raise FrameError("Commit has one slot a key")
    if len(message.parents) not in (0, len(message.keys)):
        raise FrameError("Commit has one parent a key, or none at all")
    store.commit(engine, message.keys, slots, message.parents, message.request, now)


def _hints(message: protocol.Begin) -> Hints:
    """Names are shown to people, seconds are added to clocks: a connector has checked them, another client may not have.
    Counts that nobody knows are those of a later connector."""
    for name, text, characters in (("session", message.session, SESSION_MAX), ("tool", message.tool, TOOL_MAX)):
        if text and not is_name(text, characters):
            raise FrameError(f"Begin.{name} is no name of up to {characters} printable characters")
    count = message.counts.get
    return Hints(
        message.session,
        message.tenant,
        message.tool,
        end=bool(count("end")),
        expect_return_s=min(RETURN_S_MAX, count("expect_return_ms", 0) / 1e3),
        ttl_s=min(TTL_S_MAX, count("ttl_ms", 0) / 1e3),
        pin=bool(count("pin")),
        no_disk=bool(count("no_disk")),
        no_remote=bool(count("no_remote")),
        no_store=bool(count("no_store")),
    )
