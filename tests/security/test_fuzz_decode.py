"""The protocol's reader under a fuzzer that sees which lines its input reaches; it begins with a message of each kind."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from security.hostile import words

from kvtier import protocol

SEED = 8
PROGRAM = Path(__file__).with_name("fuzz_decode.py")


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="no atheris (pip install atheris)")
@pytest.mark.parametrize("runs", [20_000, pytest.param(2_000_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_whatever_bytes_come_are_messages_or_a_protocol_error(tmp_path, runs):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, message in enumerate(words()[:300]):
        (corpus / f"{number}").write_bytes(protocol.encode(message))
    command = [
        sys.executable,
        PROGRAM,
        f"-seed={SEED}",
        f"-runs={runs}",
        "-max_len=4096",
        f"-artifact_prefix={tmp_path}/",
        corpus,
    ]
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert int(re.findall(r"Done (\d+) runs", ended.stderr)[0]) >= runs
