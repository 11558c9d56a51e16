"""The tiers that the contract is tested against. To add one, add a factory to FACTORIES."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from contract.caller import Caller
from contract.factories import EncryptedNvmeFactory, EncryptedRemoteFactory, GpuFactory, NvmeFactory, RemoteFactory
from contract.served import Served, ServedFactory
from contract.served_blocks import ServedBlocks
from fake_cuda import build as fake_cuda
from remote.kinds import KINDS
from remote.servers import Absent
from sim.tier_model_factory import TierModelFactory

from kvtier import _native

FACTORIES = {
    "nvme-io_uring": lambda: NvmeFactory(1, "io_uring"),
    "nvme-threads": lambda: NvmeFactory(1, "threads"),
    "nvme-two-drives": lambda: NvmeFactory(2, "auto"),
    "nvme-encrypted": EncryptedNvmeFactory,
    "nvme-encrypted-threads": lambda: EncryptedNvmeFactory(2, "threads"),
    "gpu": GpuFactory,  # on the fake driver
    "remote": RemoteFactory,  # in memory
    "remote-encrypted": EncryptedRemoteFactory,
    "model": TierModelFactory,  # the simulator's
}
SHORT = ("file", "valkey", "peer")  # how the others differ from these is tested in test_kinds.py
SERVED = [pytest.param(name, marks=[] if name in SHORT else pytest.mark.long, id=f"remote-{name}") for name in KINDS]


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> Iterator[Callable[[str], Served]]:
    """The server of a kind, the same one for all tests."""
    found: dict[str, Served] = {}
    with ExitStack() as undone:

        def served_by(name: str) -> Served:
            if name not in found:
                found[name] = Served(undone.enter_context(KINDS[name](tmp_path_factory.mktemp("r"))))
                undone.callback(found[name].close)
            return found[name]

        yield served_by


@pytest.fixture(params=[*FACTORIES, *SERVED])
def factory(request, served):
    if request.param in KINDS:
        try:
            server = served(request.param)
            made = ServedBlocks(server) if server.kind.values else ServedFactory(server)
        except Absent as reason:
            pytest.skip(str(reason))
        if isinstance(made, ServedBlocks):
            request.addfinalizer(made.tidy)
        return made
    if request.param == "nvme-io_uring" and _native.FileIo(depth=1, threads=1).backend != "io_uring":
        pytest.skip("no io_uring here")
    if request.param == "gpu" and fake_cuda.compiler() is None:
        pytest.skip("no compiler for the fake driver")
    return FACTORIES[request.param]()


@pytest.fixture
def a_tier_that_survives(factory):
    """What is lost with its process has nothing to say of crashes."""
    if not factory.survives:
        pytest.skip("a volatile tier")


@pytest.fixture
def a_tier_that_keeps_frames(factory):
    if not getattr(factory, "keeps_frames", False):
        pytest.skip("a tier where blocks lie as they are")


@pytest.fixture
def a_tier_that_overwrites(factory):
    if not getattr(factory, "overwrites", True):
        pytest.skip("what is there under a key stays")


@pytest.fixture
def a_tier_with_places(factory):
    """What finds blocks by their keys can't be asked for a wrong place; and deletes what is damaged."""
    if factory.finds_by_keys:
        pytest.skip("a tier that finds blocks by their keys")


@pytest.fixture
def a_tier_that_finds_by_keys(factory):
    if not factory.finds_by_keys:
        pytest.skip("a tier that finds blocks by their places")


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    yield tmp_path / "life0"
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def caller(factory, folder) -> Iterator[Caller]:
    caller = Caller(factory, folder)
    caller.remember()
    yield caller
    caller.tier.close()
