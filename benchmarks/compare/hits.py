"""What a hit costs over the engine's own: 128 MiB of KV of one prompt, from RAM and from disk, contenders in turn.

A round of a contender: the prompt is in the engine's own cache; then only in RAM; then only on disk. What is over the
engine's hit is the median of the differences within a round. A first round isn't counted: what a contender did not save
of the cold prompt it saves then. A hit that lacks more than LACKING of the prompt is missed, and counted as that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import Answer
from spreads import spread

from compare.contender import BLOCK_TOKENS, CannotDo, Contender
from compare.starting import FAILURES, reason

BYTES = 128 << 20
LEFT = 6  # tokens, so that little is left to compute
LACKING = 0.05


def hits(contenders: Sequence[Contender], text: Sequence[int], rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """By contender: seconds to the first token, and how many answers were the text of the engine's own hit; or why not. Of
    the text's tokens as many as have BYTES of KV are the prompt."""
    rig = contenders[0].rig
    blocks = -(-BYTES // rig.block_bytes)
    prompt = list(text[: blocks * BLOCK_TOKENS + LEFT])
    assert len(prompt) == blocks * BLOCK_TOKENS + LEFT
    found = {contender.name: _Figures() for contender in contenders}
    for number in range(-1, rounds):
        for i in range(len(contenders)):
            contender = contenders[(i + number) % len(contenders)]
            mine = found[contender.name]
            if mine.failed:
                continue
            say(f"hits: round {number + 1} of {rounds}, {contender.title}")
            try:
                if number < 0:
                    mine.cold = _ask(contender, prompt)
                    _round(contender, prompt, _Figures())
                else:
                    _round(contender, prompt, mine)
            except FAILURES as failure:
                mine.failed = reason(failure)
    return {name: figures.summed_up() | {"bytes": blocks * rig.block_bytes} for name, figures in found.items()}


@dataclass
class _Figures:
    """Of one contender."""

    cold: Answer | None = None
    seconds: dict[str, list[float]] = field(default_factory=dict)  # by key, one a round
    same: list[bool] = field(default_factory=list)  # of each answer from a tier: the text of the engine's own hit
    missed: dict[str, int] = field(default_factory=dict)  # by tier
    cannot: dict[str, str] = field(default_factory=dict)  # why, by tier
    failed: str = ""

    def note(self, key: str, answer: Answer, over: float = 0.0) -> None:
        assert answer.ttft is not None
        self.seconds.setdefault(key, []).append(answer.ttft - over)

    def summed_up(self) -> dict[str, Any]:
        if self.failed or self.cold is None:
            return {"absent": self.failed}
        summed: dict[str, Any] = {key: spread(values) for key, values in self.seconds.items()}
        summed |= {f"missed_{tier}": n for tier, n in self.missed.items()}
        summed |= {f"no_{tier}": why for tier, why in self.cannot.items()}
        return summed | {"cold_s": self.cold.ttft, "same_text": [sum(self.same), len(self.same)]}


def _round(contender: Contender, prompt: list[int], mine: _Figures) -> None:
    assert contender.engine is not None
    hit = _ask(contender, prompt)
    mine.note("engine_hit_s", hit)
    for tier, drop in (("ram", _keep), ("disk", type(contender).drop_ram)):
        try:
            contender.settle()
            drop(contender)
            contender.engine.reset()
            answer = _ask(contender, prompt)
        except CannotDo as why:
            mine.cannot[tier] = str(why)
            continue
        if (answer.external_tokens or 0) < (1 - LACKING) * len(prompt):
            mine.missed[tier] = mine.missed.get(tier, 0) + 1
            continue
        mine.note(f"{tier}_s", answer)
        mine.note(f"{tier}_over_hit_s", answer, hit.ttft or 0.0)
        mine.same.append(answer.tokens == hit.tokens)


def _keep(contender: Contender) -> None:
    """What is in RAM stays there."""


def _ask(contender: Contender, prompt: list[int]) -> Answer:
    assert contender.engine is not None
    return contender.engine.generate([prompt], 4, logprobs=0)[0]
