"""Vaults for tests, and a text that is sealed with what they give."""

import os
from collections import Counter
from pathlib import Path

from kvtier import _native
from kvtier.tiers.master_key import MasterKey
from kvtier.tiers.vault import RECORD_BYTES, Sealing, Vault

STORE, SECRET = b"s" * 16, bytes(range(32))
RED, BLUE, GREEN = (word.ljust(8, b".") for word in (b"red", b"blue", b"green"))
AAD = b"a place, a size"
TEXT = b"what somebody said " * 100


def opened(path: Path, blocks: Counter | None = None, secret: bytes = SECRET, store: bytes = STORE) -> Vault:
    return Vault(path, store, MasterKey(secret), Counter() if blocks is None else blocks)


def written(vault: Vault, tenant: bytes, blocks: Counter | None = None) -> tuple[Sealing, bytes]:
    """What seals the text, and what is on the drive then. It counts as a block if it is to."""
    sealing, target = vault.sealing(tenant, AAD), bytearray(len(TEXT))
    fd = os.memfd_create("text")
    io = _native.FileIo(depth=1, threads=1, backend="threads")
    memory = _native.Arena.create(2 << 20, "kvtier-test", pin=False)
    memory.view()[: len(TEXT)] = list(TEXT)
    io.write(fd, 0, memory.address, len(TEXT), 0, sealing.native)
    io.wait(30)
    assert io.poll()[0][1] == 0
    io.close()
    os.preadv(fd, [target], 0)
    os.close(fd)
    if blocks is not None:
        blocks[sealing.serial] += 1
    vault.over(sealing)
    return sealing, bytes(target)


def is_legible(vault: Vault, sealing: Sealing, hidden: bytes) -> bool:
    """Whether the vault still opens it."""
    native = vault.opening(sealing.serial, sealing.nonce, sealing.native.tag, AAD)
    if native is None:
        return False
    fd = os.memfd_create("text")
    os.write(fd, hidden)
    io = _native.FileIo(depth=1, threads=1, backend="threads")
    memory = _native.Arena.create(2 << 20, "kvtier-test", pin=False)
    io.read(fd, 0, memory.address, len(hidden), 0, native)
    io.wait(30)
    ((_, error, *_),) = io.poll()
    io.close()
    os.close(fd)
    return error == 0 and memory.view()[: len(TEXT)].tobytes() == TEXT


def of_file(path: Path) -> list[bytes]:
    """Its records that are not zeros, in any order."""
    content = path.read_bytes()
    rows = [content[at : at + RECORD_BYTES] for at in range(RECORD_BYTES, len(content), RECORD_BYTES)]
    return sorted(row for row in rows if any(row))
