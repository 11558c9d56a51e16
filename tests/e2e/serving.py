"""A real server of OpenAI's API, as `vllm serve` starts it, spoken to over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START_LIMIT_S = 300.0

Messages = list[dict[str, str]]


class Serving:
    """It serves when this is made, and ends with `stop`."""

    def __init__(self, model: Path, connector: dict[str, Any], log: Path, arguments: dict[str, Any]) -> None:
        self.log = log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        core = max(os.sched_getaffinity(0))
        environment = os.environ | {
            "VLLM_CPU_OMP_THREADS_BIND": str(core),
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "TORCH_COMPILE_DISABLE": "1",
            "HF_HUB_OFFLINE": "1",
        }
        # Not the command itself: that of the CPU build doesn't start, because it looks for the package `vllm`.
        command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", f"--model={model}", "--enforce-eager",
                   "--host=127.0.0.1", f"--port={self._port}", f"--kv-transfer-config={json.dumps(connector)}",
                   *(f"--{name.replace('_', '-')}={value}" for name, value in arguments.items())]  # fmt: skip
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    def chat(self, messages: Messages, max_tokens: int, **more: Any) -> dict[str, Any]:
        """One turn, greedy; token ids are in the answer. `more`: as `extra_body` of OpenAI's client."""
        with self._asked("/v1/chat/completions", _turn(messages, max_tokens, more)) as answer:
            return json.load(answer)

    def tokens(self, messages: Messages) -> list[int]:
        """Of the prompt that a turn would be; the engine doesn't see it."""
        with self._asked("/tokenize", {"messages": messages}) as answer:
            return json.load(answer)["tokens"]

    @contextlib.contextmanager
    def streamed(self, messages: Messages, max_tokens: int, **more: Any) -> Iterator[Iterator[bytes]]:
        """The pieces of an answer, as they are generated."""
        with self._asked("/v1/chat/completions", _turn(messages, max_tokens, more | {"stream": True})) as answer:
            yield (line for line in answer if line.startswith(b"data: {"))

    def metrics(self) -> dict[str, float]:
        """What /metrics has of this engine, by name; samples that differ by labels summed up."""
        with self._connected() as connection:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        found: dict[str, float] = {}
        for line in lines:
            if not line.startswith("#"):
                name, value = line.split("{")[0].split(" ")[0], float(line.rsplit(" ", 1)[1])
                found[name] = found.get(name, 0.0) + value
        return found

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the engine's process too, if it is still there
        self._process.wait()

    @contextlib.contextmanager
    def _asked(self, path: str, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
        with self._connected() as connection:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, (answer.read().decode(), self._end_of_log())
            yield answer

    @contextlib.contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)) as connection:
            yield connection

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while not self._is_ready():
            assert self._process.poll() is None, self._end_of_log()
            assert time.monotonic() < deadline, self._end_of_log()
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError), self._connected() as connection:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def _end_of_log(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]


def _turn(messages: Messages, max_tokens: int, more: dict[str, Any]) -> dict[str, Any]:
    greedy = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return greedy | {"return_token_ids": True} | more
