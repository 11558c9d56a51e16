"""The process around one vLLM engine: takes commands as JSON lines on stdin and answers on stdout; see engine.py."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import queue
import sys
import threading
import time
import traceback
from typing import Any

# arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA): Linux gives a process AMX tiles when it asks. Of what vLLM uses only
# oneDNN asks, at its first large product: with a tiny model in bf16 vLLM's own attention comes before that, and dies.
ARCH_PRCTL, REQUEST, TILES = 158, 0x1023, 18
IDLE_LIMIT = 60.0  # seconds that an engine without requests may take to finish its connector's saves
END_LIMIT = 20.0  # seconds that a command may still run when there will be no more of them


class Driver:
    """The reply to a command is what the method of its name returns."""

    def start(self, **arguments: Any) -> None:
        ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST, TILES)  # elsewhere it is refused, and not needed
        gc.disable()  # takes a quarter off the import
        from vllm import LLM

        gc.enable()
        self.engine: Any = LLM(**arguments).llm_engine
        self.internal: dict[str, str] = {}  # request id -> the engine's own id of it
        self.outputs: dict[str, Any] = {}  # request id -> its latest RequestOutput
        self.external: dict[str, int] = {}  # the engine's id -> tokens from the connector
        self.serial = 0

        client: Any = self.engine.engine_core
        get_output = client.get_output

        def get_output_noting_external_tokens() -> Any:
            outputs = get_output()
            for output in outputs.outputs:
                if output.prefill_stats is not None:
                    self.external.setdefault(output.request_id, output.prefill_stats.num_external_cached_tokens)
            return outputs

        client.get_output = get_output_noting_external_tokens
        # Where the engine core runs in this process, nobody else makes its steps.
        self.core = getattr(client, "engine_core", None)
        if self.core is None:
            threading.Thread(target=self._watch, daemon=True).start()

    def generate(self, requests: list[list[Any]], drain: bool) -> list[dict[str, Any]]:
        ids = []
        for request in requests:
            self.serial += 1
            ids.append(f"generate-{self.serial}")
            self.add(ids[-1], request)
        while not all(self._finished(request_id) for request_id in ids):
            self._step()
        if drain and not self.engine.has_unfinished_requests():
            self._drain()
        return [self._collect(request_id) for request_id in ids]

    def add(self, request_id: str, request: list[Any]) -> None:
        from vllm import SamplingParams

        prompt, salt, max_tokens, logprobs, ignore_eos, kv_transfer_params = request
        if request_id in self.internal:
            raise ValueError(f"request {request_id} exists")
        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            logprobs=logprobs,
            ignore_eos=ignore_eos,
            detokenize=False,
            extra_args={"kv_transfer_params": kv_transfer_params} if kv_transfer_params else None,
        )
        inputs = {"prompt_token_ids": prompt} | ({"cache_salt": salt} if salt is not None else {})
        self.internal[request_id] = self.engine.add_request(request_id, inputs, params)

    def step(self, n: int) -> dict[str, Any]:
        for _ in range(n):
            if not self._busy():
                break
            self._step()
        tokens = {i: list(self.outputs[i].outputs[0].token_ids) if i in self.outputs else [] for i in self.internal}
        return {"tokens": tokens, "finished": [i for i in self.internal if self._finished(i)]}

    def abort(self, request_id: str) -> None:
        internal = self.internal.pop(request_id)
        self.outputs.pop(request_id, None)
        self.external.pop(internal, None)
        self.engine.abort_request([internal], internal=True)

    def finish(self) -> dict[str, Any]:
        while self.engine.has_unfinished_requests():
            self._step()
        self._drain()
        return {request_id: self._collect(request_id) for request_id in list(self.internal)}

    def reset(self, connector: bool) -> bool:
        return bool(self.engine.reset_prefix_cache(reset_connector=connector))

    def metrics(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for metric in self.engine.get_metrics():
            if hasattr(metric, "value"):
                labels = [f"{k}={v}" for k, v in sorted(metric.labels.items()) if k not in ("engine", "model_name")]
                values[metric.name + ("{" + ",".join(labels) + "}" if labels else "")] = metric.value
        return values

    def _watch(self) -> None:
        """Ends this process with the engine's: vLLM's synchronous client would wait for its output for ever."""
        resources = self.engine.engine_core.resources
        while not resources.engine_dead:
            time.sleep(0.1)
        print("driver: the engine process is gone", flush=True)
        os._exit(70)

    def _busy(self) -> bool:
        if self.core is not None:
            return bool(self.core.scheduler.has_requests() or self.core.batch_queue)
        return bool(self.engine.has_unfinished_requests())

    def _step(self) -> None:
        outputs = self.engine.step()
        for output in outputs:
            self.outputs[output.request_id] = output
        if not outputs and self.core is not None:
            time.sleep(0.001)  # as the engine's own loop does: leaves the connector's threads some time

    def _drain(self) -> None:
        """Keeps the engine going until its connector has nothing left to push either, which LLM.generate does not."""
        if self.core is None:
            # The engine process steps by itself; this pause takes effect once it has run out of work.
            self.engine.engine_core.call_utility("pause_scheduler", "wait", False)
            self.engine.engine_core.call_utility("resume_scheduler")
            return
        limit = time.monotonic() + IDLE_LIMIT
        while self._busy():
            if time.monotonic() > limit:
                raise TimeoutError(f"without requests, the engine was not idle after {IDLE_LIMIT:.0f} s")
            self._step()

    def _finished(self, request_id: str) -> bool:
        return request_id in self.outputs and bool(self.outputs[request_id].finished)

    def _collect(self, request_id: str) -> dict[str, Any]:
        output = self.outputs.pop(request_id)
        completion = output.outputs[0]
        return {
            "tokens": list(completion.token_ids),
            "logprobs": [
                {token: float(entry.logprob).hex() for token, entry in top.items()} for top in completion.logprobs or []
            ],
            "cached_tokens": output.num_cached_tokens or 0,
            "external_tokens": self.external.pop(self.internal.pop(request_id), None),
            "ttft": output.metrics.first_token_latency if output.metrics and completion.token_ids else None,
            "finish_reason": completion.finish_reason,
            "kv_transfer_params": output.kv_transfer_params,
        }


def drive() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # from here on, what anyone prints goes to the log
    commands: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read_commands, args=(commands,), daemon=True).start()
    driver = Driver()
    while line := commands.get():
        command, arguments = json.loads(line)
        try:
            reply = {"value": getattr(driver, command)(**arguments)}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    if hasattr(driver, "engine"):
        driver.engine.engine_core.shutdown()
    os._exit(0)  # nothing is left to do, and Python's own end takes 5 s with vLLM loaded


def _read_commands(commands: queue.Queue[str]) -> None:
    for line in sys.stdin:
        commands.put(line)
    commands.put("")
    time.sleep(END_LIMIT)  # the tests have gone: nobody waits for a command that still runs
    os._exit(70)


if __name__ == "__main__":
    drive()
