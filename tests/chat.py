"""An engine for tests whose blocks are of real bytes: what it loads must be what it saved."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from arena_bytes import ArenaBytes, content_of
from kvtierd import Engine, KVTierd

from kvtier import protocol
from kvtier.block import BELOW, KEY_BYTES, unpack_keys, unpack_slots

BLOCK = 1024**2
NAMES, REQUESTS = itertools.count(), itertools.count()


def nvme_settings(folder: Path, **more: object) -> dict[str, object]:
    named = {name.replace("_", ".", 1): value for name, value in more.items()}
    return {"cpu.capacity": "32 MiB", "nvme.paths": folder / "nvme", "nvme.capacity": "128 MiB",
            "nvme.endurance_dwpd": 1000, **named}  # fmt: skip


class Chat:
    """An engine with one worker, whose blocks are of real bytes: what `content` makes of a key."""

    def __init__(
        self,
        daemon: KVTierd,
        model: str = "model",
        lend: int = 8,
        *,
        content: Callable[[bytes, int], bytes] = content_of,
        codec: str = "",
    ) -> None:
        name = f"engine {next(NAMES)}"
        self.daemon, self.content = daemon, content
        self.engine = Engine(daemon.socket, name, block_bytes=BLOCK, lend=lend, model=model, codec=codec)
        self.arena = ArenaBytes(daemon, name)

    def __enter__(self) -> "Chat":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        self.arena.close()

    def save(self, packed: bytes) -> None:
        """As many at a time as slots are lent."""
        for key in unpack_keys(packed):
            while not self.engine.lent:
                self.engine.lent += unpack_slots(self.engine.hear(protocol.Lend).slots).tolist()
            self.arena.write(self.engine.lent[0], self.content(key, BLOCK))
            self.engine.save(key)

    def load(self, packed: bytes) -> int:
        """How many were found, from the first on; what was found must be right."""
        found = self.read(packed)
        for key, block in zip(unpack_keys(packed), found):
            assert block in (None, self.content(key, BLOCK)), "wrong bytes were served"
        return next((i for i, block in enumerate(found) if block is None), len(found))

    def read(self, packed: bytes) -> list[bytes | None]:
        """What is served of each block; None where it isn't found."""
        slots = self.engine.lookup(packed)
        found = [self.arena.read(slot, BLOCK) if slot < BELOW else None for slot in slots]
        self.engine.release(len(slots))
        return found


def turn(chat: Chat, session: str, keys: bytes, tenant: bytes = b"", **counts: int) -> None:
    """One request of a session, from its begin to its end; it saves what isn't here yet."""
    request = f"request {next(REQUESTS)}"
    chat.engine.say(protocol.Begin(request, session, tenant, "", counts))
    save(chat, request, keys)
    chat.engine.say(protocol.Touch(keys, request))


def save(chat: Chat, request: str, keys: bytes) -> list[int]:
    """What the request computes; the slots that it filled."""
    found = chat.engine.ask(protocol.Lookup(7, keys, request=request), answer=protocol.Found)
    here = unpack_slots(found.slots) < BELOW
    chat.engine.say(protocol.Release(7, int(here.sum())))
    before, filled = bytes(KEY_BYTES), []
    for key, is_here in zip(unpack_keys(keys), here.tolist(), strict=True):
        if not is_here:
            while not chat.engine.lent:
                chat.engine.lent += unpack_slots(chat.engine.hear(protocol.Lend).slots).tolist()
            slot = chat.engine.lent.pop(0)
            chat.arena.write(slot, chat.content(key, BLOCK))
            chat.engine.say(protocol.Commit(key, np.array([slot], "<u4").tobytes(), before, request))
            filled.append(slot)
        before = key
    return filled
