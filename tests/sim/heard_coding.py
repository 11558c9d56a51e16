"""A tier's Coding, overheard: it decides as ever, but looks at its choices sooner, for a simulated world has few blocks;
and what it says is held against what it was told."""

from __future__ import annotations

from collections import Counter, deque

from kvtier.block import SLOT_UNIT
from kvtier.codec import RAW, Codec
from kvtier.coding import AUTO, SPEEDS, TRY_EVERY, Coding
from kvtier.transfer import Demote, Finished

from .codecs_model import may_be_written

LOOKED_AT_EVERY = 3  # blocks
TRIED_EVERY = 16  # blocks
FITTED = 4  # frames
SPEEDS_TELLING = 7  # blocks: they outweigh what is believed before
TOLERANCE = 4.0  # of what is said of a speed: the link changes, too


class HeardCoding(Coding):
    def __init__(self, *of: object, **more: object) -> None:
        super().__init__(*of, **more)
        self.cannot = set(self._without)
        self.wishes: dict[int, Codec] = {}
        self.blocks: Counter[str] = Counter()  # that became frames, by codec
        self.bytes: Counter[str] = Counter()
        self.stored: Counter[str] = Counter()
        self.larger: Counter[tuple[int, Codec, int]] = Counter()  # in a row, of a namespace, by codec and place
        self._encodes: dict[str, deque[float]] = {}  # bytes a second of the last blocks

    def wish(self, namespace: int, codec: Codec) -> None:
        self.wishes[namespace] = codec
        super().wish(namespace, codec)

    def choose(self, namespace: int, size: int) -> tuple[Codec, int]:
        before = self._plans.get((namespace, size))
        is_looked_at = before is None or before.left <= 0
        codec, stored = super().choose(namespace, size)
        plan = self._plans[namespace, size]
        self._judge(namespace, size, codec, stored)
        is_trial = plan.codec != codec
        plan.left = min(plan.left, LOOKED_AT_EVERY)
        if is_looked_at and not is_trial and self.wanted == AUTO and codec != RAW and not codec.is_lossy:
            self._judge_speed(codec)
        return codec, stored

    def begun(self, namespace: int, size: int, codec: Codec) -> None:
        super().begun(namespace, size, codec)
        plan = self._plans.get((namespace, size))
        if plan is not None and (plan.chosen + 1) % TRIED_EVERY == 0:
            plan.chosen = plan.chosen // TRY_EVERY * TRY_EVERY + TRY_EVERY - 1

    def _judge(self, namespace: int, size: int, codec: Codec, stored: int) -> None:
        wish = self.wishes.get(namespace, RAW)
        assert may_be_written(codec, wish), f"{codec} for a namespace whose engines wish {wish}"
        if codec == RAW:
            assert stored == size, "a block as it is needs a place of its own size"
            return
        assert wish != RAW or self.wanted in (AUTO, codec.name), f"{codec}, and {self.wanted} is set"
        assert wish != RAW or codec.name not in self.cannot, f"{codec}, which this machine hasn't"
        if self._unit == 1:
            assert stored == size, "it is not known before how large a value becomes"
        else:
            assert SLOT_UNIT <= stored < size and stored % self._unit == 0, (
                f"a place of {stored} bytes for a frame of {size}"
            )

    def _judge_speed(self, codec: Codec) -> None:
        """What was clearly too slow each time is not used any more."""
        speeds = self._encodes.get(codec.name, ())
        if len(speeds) >= SPEEDS_TELLING:
            needed = min(self._link.delivered_per_s, self._write_rate)
            assert max(speeds) * self._threads * TOLERANCE >= needed, (
                f"{codec} encodes {max(speeds):.3g} B/s, and {needed:.3g} come"
            )

    # --- what is learnt ----------------------------------------------------------------------------------------

    def wrote(self, demote: Demote, done: Finished) -> None:
        super().wrote(demote, done)
        if demote.codec == RAW or done.fault not in ("", "larger"):
            return
        speeds = self._encodes.setdefault(demote.codec.name, deque(maxlen=SPEEDS))
        if done.coded_s:
            speeds.append(demote.size / done.coded_s)
        name = demote.namespace, demote.codec, demote.place_bytes
        if done.fault:
            self.larger[name] += 1
            assert self.larger[name] <= FITTED + LOOKED_AT_EVERY, f"{demote}: frames are larger again and again"
        else:
            self.larger[name] = 0
        if not done.fault and 0 < done.stored < demote.size:
            self.blocks[demote.codec.name] += 1
            self.bytes[demote.codec.name] += demote.size
            self.stored[demote.codec.name] += done.stored if self._unit == 1 else demote.place_bytes
        plan = self._plans.get((demote.namespace, demote.size))
        for fit in () if plan is None else plan.fits.values():
            while len(fit.needed) > FITTED:
                fit.needed.popleft()

    def check(self) -> None:
        """What it shows is what happened."""
        shown = self.snapshot()["codecs"]
        for name, n in self.blocks.items():
            row = shown[name]
            counted = row["blocks"], row["bytes"], row["stored_bytes"]
            assert counted == (n, self.bytes[name], self.stored[name]), f"what is shown of {name}"
