"""The tiers that the contract is tested against. To add one, add a factory to FACTORIES."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.caller import Caller
from contract.factories import NvmeFactory
from sim.tier_model_factory import TierModelFactory

from kvtier import _native

FACTORIES = {
    "nvme-io_uring": lambda: NvmeFactory(1, "io_uring"),
    "nvme-threads": lambda: NvmeFactory(1, "threads"),
    "nvme-two-drives": lambda: NvmeFactory(2, "auto"),
    "model": TierModelFactory,  # the simulator's
}


@pytest.fixture(params=FACTORIES)
def factory(request):
    if request.param == "nvme-io_uring" and _native.FileIo(depth=1, threads=1).backend != "io_uring":
        pytest.skip("no io_uring here")
    return FACTORIES[request.param]()


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
