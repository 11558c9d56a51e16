"""Opens what a kvtierd is made of: the arena, and the tiers, each attached to the store with all that is there.

What can't be had ends the start: DaemonError or ConfigError, naming the setting that cures it. But a remote that isn't
there now is no error: it is found out when it is asked, and used when it comes.
"""

import logging
import math
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

from kvtier import _native, config, topology
from kvtier.admission import Budget
from kvtier.block import PLACE_GRAIN
from kvtier.codec import LOSSLESS, Codec
from kvtier.coding import Coding
from kvtier.config import Config, format_size
from kvtier.errors import ConfigError, DaemonError, MemoryShortError
from kvtier.estimators import Link
from kvtier.extents import Extents
from kvtier.secret_file import read_password, read_root
from kvtier.store import BlockStore
from kvtier.tiers.base import Recovered
from kvtier.tiers.block_io import ENCODERS, IO_THREADS
from kvtier.tiers.encoders import why_not
from kvtier.tiers.gpu import GpuTier, device_named
from kvtier.tiers.master_key import MasterKey
from kvtier.tiers.nvme import NvmeTier
from kvtier.tiers.remote import beside, keeps_values, open_remote, settings_of, shown
from kvtier.tiers.remote.base import Remote
from kvtier.tiers.remote.remote import DEADLINES, Deadlines, RemoteTier
from kvtier.tiers.remote.values import Clear, Sealed

log = logging.getLogger("kvtierd")

BLOCK_BYTES_USUAL = 512 * config.KIB  # for so many blocks the index has room at once; for more it grows by itself
TABLE_KEYS_MAX = 4_000_000
ALIGN = 2 * config.MIB  # of what is taken of memories
REMOTE_SETTINGS = ("remote.username", "remote.endpoint", "remote.region", "remote.ca_file", "remote.cert_file",
                   "remote.key_file")  # fmt: skip
PASSWORD_VARIABLE = "KVTIER_REMOTE_PASSWORD"


def key_table(capacity: int, blocks: int = 0) -> _native.KeyTable:
    """With room for the blocks that usually lie in so many bytes, and for so many at least."""
    return _native.KeyTable(expected=max(blocks, min(capacity // BLOCK_BYTES_USUAL, TABLE_KEYS_MAX)))


def capacity_of(settings: Config) -> int:
    """Bytes of the arena."""
    return settings.count("cpu.capacity") // ALIGN * ALIGN


def arena_of(settings: Config) -> _native.Arena:
    size = capacity_of(settings)
    log.info("taking %s of RAM", format_size(size))
    try:
        node = topology.arena_node(settings.text("cpu.numa"))
        arena = _native.Arena.create(size, "kvtier-arena", pin=bool(settings["cpu.pin"]), numa_node=node)
    except (MemoryError, OSError) as error:
        raise MemoryShortError(f"can't take cpu.capacity = {format_size(size)}: {error}; lower it") from None
    for note in arena.notes:
        log.warning("%s", note)
    return arena


def limit_tenants(settings: Config, store: BlockStore) -> None:
    limits, share = store.ram.tenants.limits, settings.number("tenant.max_share")
    limits.bytes = int(share * store.ram.slots.capacity) if share < 1 else 0
    limits.blocks, limits.loads = settings.count("tenant.max_blocks"), settings.count("tenant.max_loads")
    limits.write_rate = settings.number("tenant.write_rate")


def store_of(settings: Config) -> BlockStore:
    """It knows no tier yet."""
    capacity = capacity_of(settings)
    store = BlockStore(
        capacity,
        lend_share=settings.number("lend.max_share"),
        lease_share=settings.number("lease.max_share"),
        table=key_table(capacity),
        policy=settings.text("policy.name"),
        session_table=key_table(capacity),
    )
    store.retention.pins.share = settings.number("policy.pin_share")
    store.retention.pins.usual_s = settings.number("policy.pin_s")
    return store


def shared_root(settings: Config) -> bytes:
    """The root secret that the settings name; empty where they name none."""
    if named := settings.text("remote.secret_file"):
        return read_root(named, "remote.secret_file")
    if settings.text("remote.url"):
        raise ConfigError(
            "remote.url needs remote.secret_file: nodes find each other's blocks by a secret that they share; "
            "`kvtier secret FILE` makes one"
        )
    return b""


def master_key(settings: Config) -> MasterKey | None:
    """What blocks are encrypted with outside of RAM. None: they are not."""
    named = settings.text("encryption.key_file")
    return MasterKey(read_root(named, "encryption.key_file")) if named else None


def require_codecs(settings: Config) -> None:
    """To be called before anything is taken. DaemonError: a codec is set that this machine lacks; `auto` does without."""
    for name in ("nvme.codec", "remote.codec"):
        wanted = settings.text(name)
        if wanted in LOSSLESS and (reason := why_not(Codec(wanted))):
            raise DaemonError(f"can't have {name} = {wanted}: {reason}; install what it lacks, or set {name} = auto")


def coding_of(
    settings: Config,
    tier: str,
    threads: int,
    unit: int,
    link: Link,
    write_rate: float = math.inf,
    extent_bytes: int = 0,
    encoders: int = 0,
) -> Coding:
    """How the blocks of one tier are made smaller there, as its setting has it, by what this machine has."""
    without = {name: reason for name in LOSSLESS if (reason := why_not(Codec(name)))}
    wanted = settings.text(f"{tier}.codec")
    of_drives = {"extent_bytes": extent_bytes, "encoders": encoders}
    return Coding(wanted, threads, unit, link, write_rate=write_rate, without=without, **of_drives)


def nvme_tier(
    settings: Config, paths: list[Path], store: BlockStore, arena: _native.Arena, root: bytes, link: Link
) -> NvmeTier | None:
    """With all that survived of this root. `link`: what is known of the drives' speed."""
    if not paths:
        return None
    begun = time.monotonic()
    capacity, io = settings.count("nvme.capacity"), settings.text("nvme.io")
    tier = NvmeTier(paths, capacity, arena.address, io=io, root=root, master=master_key(settings))
    for note in tier.notes:
        log.warning("%s", note)
    found, tier.recovered = tier.recovered, Recovered()
    table = key_table(tier.extents * tier.extent_bytes, len(found.places))
    extents = Extents(tier.extents, tier.extent_bytes, tier.drives, table)
    rows = (found.keys, found.places, found.sizes, found.namespaces, found.checksums, found.origins, found.stored)
    odd = extents.recover(*rows)
    budget = Budget(settings.number("nvme.endurance_dwpd") * tier.rated_bytes, time.monotonic())
    stage_s = settings.number("nvme.stage_deadline_ms") / 1e3
    coding = coding_of(settings, "nvme", IO_THREADS, PLACE_GRAIN, link, extent_bytes=tier.extent_bytes, encoders=ENCODERS)
    store.attach(extents, budget, stage_s, found.remembered, link, coding)
    size = format_size(extents.used_bytes)
    log.info("%s blocks (%s) found on %d drives in %.2f s, by %s", f"{len(extents):,}", size, tier.drives,
             time.monotonic() - begun, tier.io_backend)  # fmt: skip
    if odd:
        log.warning("%d blocks on the drives don't fit their extents and are forgotten", odd)
    return tier


def gpu_tier(settings: Config, store: BlockStore, arena: _native.Arena) -> GpuTier | None:
    """The error has the driver's reason."""
    wanted = settings.count("gpu.capacity")
    if not wanted:
        return None
    try:
        driver = _native.CudaDriver.open()
        if driver.reason:
            raise ValueError(driver.reason)
        if wanted < ALIGN:
            raise ValueError(f"at least {format_size(ALIGN)} are of use")
        device = device_named(settings.text("gpu.device"), driver.devices)
        tier = GpuTier(driver, device, wanted // ALIGN * ALIGN, arena.view())
    except (ValueError, MemoryError, RuntimeError, OSError) as error:
        cure = "change gpu.device or gpu.capacity, or set gpu.capacity = 0 to do without the GPU tier"
        raise DaemonError(f"can't have gpu.capacity = {format_size(wanted)}: {error}; {cure}") from None
    store.attach_gpu(tier.capacity)
    log.info("copies of up to %s in memory of %s", format_size(tier.capacity), tier.name)
    return tier


def remote_store(settings: Config) -> Remote | None:
    """Nothing is asked of it yet."""
    url = settings.text("remote.url")
    return open_remote(url, _login(settings, url)) if url else None


def remote_tier(settings: Config, remote: Remote, store: BlockStore, arena: _native.Arena, link: Link) -> RemoteTier:
    """`link`: what is known of its speed."""
    value_s = settings.number("remote.deadline_ms") / 1e3
    deadlines = Deadlines(min(DEADLINES.short_s, value_s / 2), value_s)
    keeps, rate = keeps_values(settings.text("remote.url")), settings.number("remote.write_rate")
    master = master_key(settings) if keeps else None
    values = Clear(codes=keeps) if master is None else Sealed(master)
    tier = RemoteTier(remote, arena.view(), deadlines=deadlines, values=values)
    # A peer takes blocks: it makes them smaller itself, when they leave its RAM.
    coding = coding_of(settings, "remote", beside.THREADS, 1, link, rate) if keeps else None
    budget = Budget.of_rate(rate, time.monotonic())
    store.attach_remote(budget, link, settings.number("remote.stage_deadline_ms") / 1e3, coding)
    log.info("blocks are shared by %s", shown(settings.text("remote.url")))
    return tier


def _login(settings: Config, url: str) -> dict[str, object]:
    """Who we are there, and how we get there."""
    given = {name.removeprefix("remote."): settings.text(name) for name in REMOTE_SETTINGS}
    if file := settings.text("remote.password_file"):
        given["password"] = read_password(file, "remote.password_file")
    found = settings_of(url, given, {"password": os.environ.get(PASSWORD_VARIABLE, "")})
    if urlsplit(url).password:
        raise ConfigError(
            "remote.url has a password in it, which `ps` and logs may show: name a file in remote.password_file"
        )
    return found
