"""From one kvtierd to the next: the arena and the Handover, kept by the service manager while none runs.

    SIGTERM --the arena is kept?--no--> as ever: what is worth it is written below, and RAM is lost
                   '--yes--> written below while engines are still served --> workers hang up --> the Handover is kept

    start --both are there, and it is a Handover of this arena--> goes on with it
       '----else-----------------------------------------------> begins with an empty arena, and says why

Nothing is kept while a kvtierd serves, so that one that crashes leaves nothing; and a Handover is emptied by who goes on
with it: nobody can do so a second time, nor with an old one.
"""

import contextlib
import hmac
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from kvtier import _native, adopting, ending, opening, service_manager
from kvtier.adopting import Adopted
from kvtier.config import Config, format_size
from kvtier.errors import HandoverError
from kvtier.handing_over import handover_of, shape_of
from kvtier.handover import BYTES_MAX, Handover, pack, required, unpack
from kvtier.server import Server
from kvtier.store import BlockStore

log = logging.getLogger("kvtierd")

ARENA, HANDOVER = "arena", "handover"  # as they are kept
HANG_UP_S = 1.0  # so long workers may take to finish their copies; the next kvtierd takes care of those who need longer


@dataclass
class Inheritance:
    """What the former kvtierd left."""

    handover: Handover
    arena_fd: int
    handover_fd: int

    @property
    def root(self) -> bytes:
        return bytes.fromhex(self.handover.facts["root"])

    @property
    def generation(self) -> int:
        """The next one; nobody ever had it."""
        return int(self.handover.facts["generation"]) + 1

    def spend(self) -> None:
        """From here on nobody can go on with it but who has read it."""
        os.ftruncate(self.handover_fd, 0)
        _let_go([self.arena_fd, self.handover_fd])


def begin(
    passed: dict[str, list[int]], settings: Config, new_store: Callable[[], BlockStore]
) -> tuple[_native.Arena, BlockStore, Inheritance | None]:
    """The arena and a store for it, and what the service manager passed of the kvtierd before; None: nothing of use, and
    where there was something the log says why. Until it is gone on with nothing is changed: should this start fail, for a
    setting is wrong, the next may go on."""
    inherited = _found(passed, opening.capacity_of(settings))
    if inherited is not None:
        try:
            store = new_store()
            adopting.check(store, inherited.handover)
            arena = _native.Arena.adopt(inherited.arena_fd, store.ram.slots.capacity, pin=bool(settings["cpu.pin"]))
        except (HandoverError, ValueError, MemoryError, OSError) as error:
            _say_cold(error)
            inherited.spend()
        else:
            for note in arena.notes:
                log.warning("%s", note)
            return arena, store, inherited
    arena = opening.arena_of(settings)  # first: what does not fit is no size for a store
    return arena, new_store(), None


def _found(passed: dict[str, list[int]], capacity: int) -> Inheritance | None:
    arenas, handovers = passed.pop(ARENA, []), passed.pop(HANDOVER, [])
    if not arenas and not handovers:
        return None
    try:
        if len(arenas) != 1 or len(handovers) != 1:
            raise HandoverError("the last kvtierd did not come to its end")
        inherited = Inheritance(unpack(_read(handovers[0])), arenas[0], handovers[0])
        required(inherited.handover.facts, shape_of(capacity))
    except HandoverError as error:
        _say_cold(error)
        for fd in handovers:  # nor does a later start go on with it, should it stay kept
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
        _let_go([*arenas, *handovers])
        return None
    return inherited


def _let_go(fds: list[int]) -> None:
    """Nobody keeps them any more: the memory is free when nobody has mapped it."""
    for fd in fds:
        os.close(fd)
    service_manager.drop(HANDOVER)
    service_manager.drop(ARENA)
    service_manager.is_through()


def go_on(store: BlockStore, inherited: Inheritance, root: bytes) -> Adopted:
    """The store has its tiers, and goes on with what is in the arena, if keys are still made with the same root."""
    begun = time.monotonic()
    inherited.spend()
    is_same = hmac.compare_digest(root, inherited.root)
    adopted = adopting.adopt(store, inherited.handover, begun, is_same)
    if not is_same:
        _say_cold(HandoverError("its keys are made with another root secret"))
        return adopted
    log.info("goes on with %s blocks (%s) and %s sessions of the kvtierd before, %d blocks were of no use, in %.2f s",
             f"{adopted.blocks:,}", format_size(store.ram.slots.taken_bytes), f"{adopted.sessions:,}", adopted.dropped,
             time.monotonic() - begun)  # fmt: skip
    return adopted


def hand_over(server: Server, root: bytes) -> bool:
    """The arena is kept already. Its store and its server are of no more use. Whether the next kvtierd can go on."""
    begun = time.monotonic()
    found = handover_of(server.store, ending.lingering(server), root, server.last_generation, begun)
    ending.abandon(server)
    fd = os.memfd_create("kvtier-handover", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.writelines(pack(found))
        is_kept = service_manager.keep(HANDOVER, fd)
    finally:
        os.close(fd)
    if is_kept:
        log.info("hands over %s blocks, in %.2f s", f"{len(found.columns['keys']):,}", time.monotonic() - begun)
    else:
        service_manager.drop(ARENA)
        log.warning("the service manager does not keep what is to be handed over; the next kvtierd begins with nothing")
    return is_kept


def _read(fd: int) -> bytes:
    try:
        size = os.fstat(fd).st_size
        if size > BYTES_MAX:
            raise HandoverError("it is too large")
        with open(fd, "rb", closefd=False) as file:
            file.seek(0)
            return file.read(size)
    except OSError as error:
        raise HandoverError(f"it can't be read: {error}") from None


def _say_cold(error: Exception) -> None:
    log.warning("the RAM tier begins empty: what the last kvtierd left is of no use: %s", error)
