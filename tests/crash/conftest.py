"""The library of faults, compiled once a session."""

import os
import shutil
from pathlib import Path

import faults
import pytest


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no C++ compiler")
    return faults.build(tmp_path_factory.mktemp("faults"))
