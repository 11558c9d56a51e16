"""One real vLLM engine in a process of its own, commanded over pipes.

The process runs driver.py, which takes JSON lines on stdin and answers on stdout; whatever vLLM prints goes to a log
file. A process of its own lets a test kill an engine, run several, and choose vLLM's process layout by environment
variables.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

STOP_LIMIT = 30.0  # seconds for an orderly end


class EngineError(RuntimeError):
    """A command failed, or the engine died or did not answer; the message ends with the tail of its log."""


@dataclass(frozen=True)
class Answer:
    tokens: list[int]
    logprobs: list[dict[int, float]]  # per token of the answer, bit for bit as the engine computed them
    cached_tokens: int  # of the prompt, from the engine's own prefix cache and from the connector
    external_tokens: int | None  # of the prompt, promised by the connector when the request was first scheduled
    ttft: float | None  # seconds, by the engine's clock
    finish_reason: str | None
    kv_transfer_params: dict[str, Any] | None


@dataclass(frozen=True)
class Progress:
    tokens: dict[str, list[int]]  # so far, of each request that was added and neither aborted nor collected
    finished: list[str]


class Engine:
    """A running engine. Every method waits for the driver's reply, at most `timeout` seconds."""

    def __init__(
        self,
        model: Path | str,
        *,
        connector: dict[str, Any] | None = None,
        log: Path,
        multiprocess: bool = False,
        tensor_parallel: int = 1,
        block_size: int | None = None,
        kv_cache_dtype: str = "auto",
        max_num_batched_tokens: int = 4608,
        num_gpu_blocks: int | None = None,
        dtype: str = "auto",
        seed: int = 0,
        extra: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
        python: Path | str = sys.executable,
        timeout: float = 300.0,
    ) -> None:
        """connector is vLLM's kv_transfer_config; extra are further arguments of vllm.LLM, env of the process; python is
        that of the environment with vLLM."""
        self.log = log
        self.timeout = timeout
        arguments: dict[str, Any] = {
            "model": str(model),
            "skip_tokenizer_init": True,
            "enforce_eager": True,
            "enable_prefix_caching": True,
            "disable_log_stats": False,
            "tensor_parallel_size": tensor_parallel,
            "block_size": block_size,
            "kv_cache_dtype": kv_cache_dtype,
            "max_num_batched_tokens": max_num_batched_tokens,
            "num_gpu_blocks_override": num_gpu_blocks,
            "kv_transfer_config": connector,
            "dtype": dtype,
            "seed": seed,
        }
        arguments |= extra or {}
        environment = _environment(tensor_parallel, multiprocess or tensor_parallel > 1) | (env or {})
        started = time.monotonic()
        self._process = _driver(python, log, environment)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin: IO[str] = self._process.stdin
        self._replies: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read_replies, args=(self._process.stdout,), daemon=True).start()
        try:
            self._call("start", **arguments)
        except BaseException:
            self.kill()
            raise
        self.start_seconds = time.monotonic() - started

    # requests

    def generate(
        self,
        prompts: list[list[int]],
        max_tokens: int = 16,
        salt: str | list[str | None] | None = None,
        logprobs: int = 5,
        ignore_eos: bool = True,
        kv_transfer_params: dict[str, Any] | None = None,
        drain: bool = True,
    ) -> list[Answer]:
        """Submits all prompts at once and waits for their answers, and for the connector's last saves with drain."""
        salts = salt if isinstance(salt, list) else [salt] * len(prompts)
        assert len(salts) == len(prompts)
        options = [max_tokens, logprobs, ignore_eos, kv_transfer_params]
        requests = [[prompt, s, *options] for prompt, s in zip(prompts, salts)]
        return [_answer(reply) for reply in self._call("generate", requests=requests, drain=drain)]

    def add(
        self,
        request_id: str,
        prompt: list[int],
        max_tokens: int = 16,
        salt: str | None = None,
        logprobs: int = 5,
        ignore_eos: bool = True,
        kv_transfer_params: dict[str, Any] | None = None,
    ) -> None:
        """Queues a request; step() and finish() run it. (An engine with multiprocess=True starts on it at once.)"""
        self._call(
            "add", request_id=request_id, request=[prompt, salt, max_tokens, logprobs, ignore_eos, kv_transfer_params]
        )

    def step(self, n: int = 1) -> Progress:
        """Runs n steps, or fewer if the engine becomes idle. With multiprocess=True a step takes the next output of
        the engine process, waiting for it, however many steps that process has made."""
        return Progress(**self._call("step", n=n))

    def abort(self, request_id: str) -> None:
        self._call("abort", request_id=request_id)

    def finish(self) -> dict[str, Answer]:
        """Runs until the engine is idle, its connector included, and collects what was added and not aborted."""
        return {request_id: _answer(reply) for request_id, reply in self._call("finish").items()}

    # the engine itself

    def reset(self, connector: bool = False) -> bool:
        """Empties the prefix cache, and what the connector keeps if it is to; False where vLLM refused."""
        return bool(self._call("reset", connector=connector))

    def metrics(self) -> dict[str, float]:
        """vLLM's counters and gauges since the start, by name with the labels that tell series apart."""
        return dict(self._call("metrics"))

    def preemptions(self) -> int:
        return int(self.metrics()["vllm:num_preemptions"])

    def pids(self) -> dict[str, list[int]]:
        """Process ids under driver, engine_core, workers and other; what runs inside the driver has no entry."""
        pids: dict[str, list[int]] = {"driver": [self._process.pid], "engine_core": [], "workers": [], "other": []}
        for child in _children(self._process.pid):
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{child}/cmdline").read_text()
                role = "engine_core" if "EngineCore" in title else "workers" if "Worker" in title else "other"
                pids[role].append(child)
        return pids

    def memory(self) -> int:
        """Resident bytes of all processes, pages that several share counted once for each."""
        total = 0
        for pid in [pid for pids in self.pids().values() for pid in pids]:
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return total

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL to the driver and all that it started."""
        family = [self._process.pid, *_children(self._process.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(OSError):
            self._stdin.close()

    def stop(self) -> None:
        """Ends the engine in order; kills it if that takes too long."""
        if self.alive():
            with contextlib.suppress(OSError):
                self._stdin.close()  # the driver shuts the engine down when its commands end
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_LIMIT)
        if self.alive():
            self.kill()

    def _call(self, command: str, **arguments: Any) -> Any:
        try:
            self._stdin.write(json.dumps([command, arguments]) + "\n")
            self._stdin.flush()
        except (OSError, ValueError):
            raise self._error(f"{command}: the engine is gone") from None
        try:
            line = self._replies.get(timeout=self.timeout)
        except queue.Empty:
            # Its reply would be taken for the next command's
            error = self._error(f"{command}: no reply in {self.timeout:.0f} s; killed")
            self.kill()
            raise error from None
        if not line:
            raise self._error(f"{command}: the engine died (exit status {self._process.wait()})")
        reply = json.loads(line)
        if "error" in reply:
            raise self._error(f"{command}: {reply['error']}")
        return reply["value"]

    def _error(self, message: str) -> EngineError:
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 6000))
            tail = file.read().decode(errors="replace").splitlines()[-40:]
        return EngineError("\n".join([message, f"--- the end of {self.log}:", *tail]))

    def _read_replies(self, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                self._replies.put(line)
        self._replies.put("")  # the driver has gone


def _driver(python: Path | str, log: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as log_file:
        return subprocess.Popen(
            [str(python), "-P", str(Path(__file__).with_name("driver.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            env=environment,
            text=True,
            start_new_session=True,
        )


def _environment(ranks: int, multiprocess: bool) -> dict[str, str]:
    # One core per rank: with more threads the arithmetic depends on how requests happen to be batched, and by
    # default vLLM takes one thread more when there is a connector.
    cores = sorted(os.sched_getaffinity(0))
    first = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))  # engines side by side don't share one
    return os.environ | {
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(str(cores[(first + i) % len(cores)]) for i in range(ranks)),
        "OMP_NUM_THREADS": "1",  # the binding alone leaves bf16 its two threads where the engine runs in the driver
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if multiprocess else "0",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_COMPILE_DISABLE": "1",  # spares a first request the half minute in which inductor calls a compiler
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _answer(reply: dict[str, Any]) -> Answer:
    logprobs = [{int(token): float.fromhex(value) for token, value in top.items()} for top in reply.pop("logprobs")]
    return Answer(logprobs=logprobs, **reply)


def _children(pid: int) -> list[int]:
    """All descendants of a process, from /proc."""
    found: list[int] = []
    for path in Path("/proc").glob(f"{pid}/task/*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *_children(child)]
    return found
