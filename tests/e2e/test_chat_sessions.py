"""Two people chat over the OpenAI API, each idle while the other speaks, beside a RAM tier too small for both.

The oracle is an engine without kvtier that has room for everything: it hears the same token ids in the same order, so what
it computes and what it has from its own cache is what the server computes and loads.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from engine import Engine
from kvtierd import KVTierd, eventually
from serving import Serving

from kvtier import observer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200), pytest.mark.long]

BLOCK = 32  # tokens
ANSWER = 48
RAM = {"float32": "64 MiB", "bfloat16": "32 MiB"}  # 42 blocks of SmolLM2, some of them lent; a chat has 24 and more
GEOMETRY = {"block_size": BLOCK, "max_num_batched_tokens": 64, "max_model_len": 1024}  # few slots are lent
TOPICS = {
    "ada": "At hour {0} the wind came from the {1} and the lamp of the tower burned {2} litres of oil. ",
    "ben": "Crate number {0} went to the {1} quay with {2} bales of wool and a letter. ",
}
QUARTERS = ("north", "east", "south", "west")


@dataclass
class Chat:
    """What one person and the model said, and the token ids of each turn's prompt and answer."""

    name: str
    messages: list[dict[str, str]] = field(default_factory=list)
    turns: list[tuple[list[int], list[int]]] = field(default_factory=list)

    def say(self, serving: Serving, text: str, **hints: Any) -> None:
        self.messages.append({"role": "user", "content": text})
        asked = {"kvtier": {"session": self.name, **hints}}
        said = serving.chat(self.messages, ANSWER, kv_transfer_params=asked)
        (choice,) = said["choices"]
        self.messages.append({"role": "assistant", "content": choice["message"]["content"]})
        self.turns.append((said["prompt_token_ids"], choice["token_ids"]))


def _long_text(topic: str, lines: int) -> str:
    return "".join(topic.format(i, QUARTERS[i * 7 % 4], i * 13 % 50) for i in range(lines))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, real_dtype) -> Iterator[KVTierd]:
    folder = tmp_path_factory.mktemp("chats")
    settings = {"cpu.capacity": RAM[real_dtype], "lease.max_share": 0.9, "nvme.paths": folder / "drive",
                "nvme.capacity": "1 GiB", "nvme.endurance_dwpd": 1000, "nvme.stage_deadline_ms": 10_000,
                "cost.mode": "always"}  # fmt: skip
    with KVTierd(folder, settings) as running:
        yield running


@pytest.fixture(scope="module")
def connector(daemon, connector_for) -> dict[str, Any]:
    asked = connector_for(daemon, lookup_deadline_ms=10_000)
    asked["kv_connector_extra_config"]["blocks_per_chunk"] = 1
    return asked


@pytest.fixture(scope="module")
def serving(daemon, connector, smollm2_path, real_dtype, engine_log_dir) -> Iterator[Serving]:
    """Its own cache has not enough room for both chats either."""
    options = {"dtype": real_dtype, "num_gpu_blocks_override": 34, **GEOMETRY}
    server = Serving(smollm2_path, connector, engine_log_dir / "chats-serving.log", options)
    yield server
    server.stop()


def _engine(start_engine, model: Path, dtype: str, **options: Any) -> Engine:
    geometry = {name: GEOMETRY[name] for name in ("block_size", "max_num_batched_tokens")}
    return start_engine(model, dtype=dtype, extra={"max_model_len": GEOMETRY["max_model_len"]}, **geometry, **options)


@dataclass
class Story:
    chats: list[Chat]
    loaded_blocks: list[int]  # for the second turn of each
    promoted_blocks: int


@pytest.fixture(scope="module")
def story(daemon, serving) -> Story:
    """Both speak, both come back."""
    chats = [Chat(name) for name in TOPICS]
    for chat in chats:
        chat.say(serving, _long_text(TOPICS[chat.name], 30) + "What does this text tell us?")
        assert observer.flush(daemon.socket, 30)
    loaded, promoted = [], daemon.counter("promoted_blocks")
    for chat in chats:
        before = daemon.counter("loaded_blocks")
        chat.say(serving, "And what happened then?")
        eventually(lambda: not any(engine["leases"] for engine in daemon.snapshot()["engines"]))
        loaded.append(daemon.counter("loaded_blocks") - before)
    return Story(chats, loaded, daemon.counter("promoted_blocks") - promoted)


def _sessions(daemon: KVTierd) -> dict[str, dict[str, Any]]:
    """By name, as `kvtier sessions --json` shows them."""
    command = [str(Path(sys.executable).with_name("kvtier")), "sessions", "--json", "--socket", str(daemon.socket)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {session["session"]: session for session in json.loads(shown)["sessions"]}


def test_both_come_back_to_blocks_that_others_had_pushed_out(story, daemon):
    for chat, loaded in zip(story.chats, story.loaded_blocks):
        (prompt, answer), (turn, _) = chat.turns
        assert turn[: len(prompt)] == prompt
        assert 12 <= loaded <= (len(prompt) + len(answer)) // BLOCK
    assert story.promoted_blocks > 0
    assert [daemon.counter(name) for name in ("corrupt_blocks", "protocol_errors", "connector_faults")] == [0, 0, 0]


def test_the_text_is_that_of_an_engine_that_has_forgotten_nothing(story, start_engine, smollm2_path, real_dtype):
    plain = _engine(start_engine, smollm2_path, real_dtype)
    for number in range(2):
        for chat in story.chats:
            prompt, answer = chat.turns[number]
            own = plain.generate([prompt], ANSWER)[0]
            assert own.tokens == answer
            assert own.cached_tokens >= (0 if number == 0 else len(chat.turns[0][0]) // BLOCK * BLOCK)
    plain.stop()


def test_kvtier_sessions_tells_the_story(story, daemon, serving):
    sessions = _sessions(daemon)
    for chat in story.chats:
        told = sessions[chat.name]
        prompt, answer = chat.turns[-1]
        whole = (len(prompt) + len(answer) - 1) // BLOCK
        assert told["turns"] == 2 and told["state"] == "idle" and not told["pinned"]
        assert told["tokens"] in (whole * BLOCK, (whole + 1) * BLOCK)
        assert told["blocks"]["cpu"] + told["blocks"]["nvme"] >= whole - 1
    ada = story.chats[0]
    ada.say(serving, "Thank you, that is all.", end=True)
    eventually(lambda: _sessions(daemon)["ada"]["state"] == "ended")
    assert _sessions(daemon)["ada"]["turns"] == 3 and _sessions(daemon)["ben"]["state"] == "idle"


def test_vllm_s_own_metrics_have_kvtier_s_part(story, serving):
    seen = serving.metrics()
    assert seen["vllm:kvtier_connected"] == 1
    assert seen["vllm:kvtier_loaded_tokens_total"] > 0 < seen["vllm:kvtier_saved_tokens_total"]
    assert seen["vllm:kvtier_load_seconds_count"] > 0
    assert seen["vllm:kvtier_faults_total"] == 0
    assert "vllm:kvtier_blocks_not_saved_total" in seen


def test_blocks_are_of_use_while_the_request_that_makes_them_is_generating(
    serving, connector, start_engine, smollm2_path, real_dtype
):
    other = _engine(start_engine, smollm2_path, real_dtype, connector=connector)
    messages = [{"role": "user", "content": _long_text("Ship {0} left the {1} harbour with {2} sailors. ", 24)}]
    prompt = serving.tokens(messages)
    whole = len(prompt) // BLOCK * BLOCK
    assert _found_anew(other, prompt) == 0
    with serving.streamed(messages, 400) as pieces:
        next(pieces)
        eventually(lambda: _found_anew(other, prompt) == whole)
        rest = sum(1 for _ in pieces)
    assert rest > 100, "the first request was over too soon to tell"
    other.stop()


def _found_anew(engine: Engine, prompt: list[int]) -> int:
    """Tokens that come from kvtier, nothing from the engine's own cache."""
    assert engine.reset()
    return engine.generate([prompt], 1, kv_transfer_params={"kvtier": {"no_store": True}})[0].external_tokens or 0
