"""What an engine's scheduler says, as calls of the store. The sockets are the server's."""

import logging
from typing import get_args

from kvtier import protocol
from kvtier.block import KEY_BYTES, unpack_slots
from kvtier.decision import Ask
from kvtier.errors import ProtocolError
from kvtier.store import BlockStore

log = logging.getLogger("kvtierd")

FromScheduler = (
    protocol.Lookup | protocol.Release | protocol.Commit | protocol.GiveBack | protocol.Touch | protocol.Want
    | protocol.Reset | protocol.Report | protocol.Due | protocol.Pace | protocol.Outcome
)  # fmt: skip
FROM_SCHEDULERS = get_args(FromScheduler)


def carry_out(store: BlockStore, engine: str, namespace: bytes, message: FromScheduler, now: float) -> bytes:
    """The frame that answers it at once, if any. ProtocolError where the engine may not say this."""
    match message:
        case protocol.Lookup():
            return _lookup(store, engine, message, now)
        case protocol.Release():
            store.release(engine, message.lease, message.loaded, now, message.load_us / 1e6)
        case protocol.Commit():
            slots = unpack_slots(message.slots)
            if len(message.keys) != len(slots) * KEY_BYTES:
                raise ProtocolError("bad_frame", "Commit has one slot a key")
            store.commit(engine, message.keys, slots)
        case protocol.GiveBack():
            store.give_back(engine, unpack_slots(message.slots))
        case protocol.Touch():
            store.touch(message.keys)
        case protocol.Want():
            store.want(engine, message.slots_wanted)
        case protocol.Reset():
            store.reset(engine, namespace)
            log.info("engine %s has reset its cache: nothing older of its namespace is served again", engine)
        case protocol.Report():
            store.report(message.counts)
        case protocol.Due():
            store.due(engine, message.lease, now)
        case protocol.Pace():
            store.pace(engine, message.counts)
        case protocol.Outcome():
            store.outcome(engine, message.request, message.counts, now)
    return b""


def _lookup(store: BlockStore, engine: str, message: protocol.Lookup, now: float) -> bytes:
    ask = Ask(message.request, message.prompt_tokens, message.resident_tokens, message.backlog_us / 1e6, message.witness)
    slots = store.lookup(engine, message.lease, message.keys, message.skip, now, ask)
    return b"" if slots is None else protocol.encode_found(message.lease, slots.tobytes())
