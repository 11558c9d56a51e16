"""What a simulated engine says for decisions: which request asks, how fast the engine computes, what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvtier.block import block_key
from kvtier.decision import OUTCOME, Ask
from kvtier.estimators import Prefill

if TYPE_CHECKING:
    from .engine_model import EngineModel

WITNESSES = b"what witnesses are made with"
NOT_CALIBRATED = 3  # steps
SECONDS_A_BLOCK = (0.001, 0.03, 0.1, 0.5)  # to compute it; fast: hardly any load is worth it; slow: any is
BACKLOGS = (0.0, 0.0, 0.3, 3.0)  # s


class Asking:
    def __init__(self, engine: EngineModel) -> None:
        self._engine, self._sim = engine, engine.sim
        self._names: list[str] = []  # of the requests of this stay

    def begin_stay(self) -> None:
        self._names = []
        chance = self._sim.random
        self._token_s = chance.choice(SECONDS_A_BLOCK) / self._engine.namespace.block_tokens
        self._steps = chance.choice((NOT_CALIBRATED, 100, 100))
        if self._sim.chance(0.8):
            self.say_pace()

    def say_pace(self) -> None:
        chance = self._sim.random
        counts = Prefill(0.008, self._token_s, self._token_s * 1e-5, 2048, self._steps).to_counts()
        counts |= {"arrivals_mhz": chance.randrange(3000), "busy_permille": chance.randrange(1000), "running": 2}
        self._steps += chance.choice((0, 9))
        self._engine.say("says its pace", lambda: self._sim.pace(self._engine.name, counts))

    def ask(self, keys: int, skip: int, conversation: int) -> Ask:
        """A lookup without a request now and then; now and then a request asks again."""
        chance, tokens = self._sim.random, self._engine.namespace.block_tokens
        if chance.random() < 0.1:
            return Ask()
        if self._names and chance.random() < 0.08:
            name = chance.choice(self._names)
        else:
            name = f"{self._engine.name}'s request {self._engine.stay}.{len(self._names)}"
            self._names.append(name)
        prompt_tokens = keys * tokens + chance.randrange(tokens)
        witness = block_key(WITNESSES, b"%d" % conversation) if chance.random() < 0.7 else b""
        return Ask(name, prompt_tokens, skip * tokens, chance.choice(BACKLOGS), witness)

    def wait(self, lease: int) -> None:
        """The lookup waits; sooner or later its request could run."""
        if self._sim.chance(0.7):
            self.say_due(0.3, lease)

    def say_due(self, seconds: float, lease: int) -> None:
        engine, sim = self._engine, self._sim
        engine.later(seconds, f"could run lease {lease}", lambda: engine.say("is due", lambda: sim.due(engine.name, lease)))

    def load_s(self) -> float:
        """What a load took; 0 where that is not known."""
        return self._sim.random.choice((0.0, self._sim.delay(0.05)))

    def end(self, ask: Ask, loaded_tokens: int) -> None:
        """Its first token is there, mostly; an outcome of a request that never asked is passed over."""
        if self._sim.chance(0.2):
            return
        times: Sequence[int] = [int(self._sim.delay(0.2) * 1e6) for _ in OUTCOME[:4]]
        computed = ask.prompt_tokens - ask.resident_tokens - loaded_tokens
        counts = dict(zip(OUTCOME, [*times, ask.prompt_tokens, ask.resident_tokens, loaded_tokens, max(0, computed)]))
        name = ask.request or "a request that never asked"
        self._engine.say(f"has the first token of {name}", lambda: self._sim.outcome(self._engine.name, name, counts))
