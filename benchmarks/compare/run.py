"""One run: who takes part, whose turn it is, and what becomes of who fails."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import truediv
from typing import Any

from spreads import spread

from compare.asking import ask
from compare.clock import Clock
from compare.contender import Contender
from compare.measures import Slice, cell, joined
from compare.report import PLAIN
from compare.starting import FAILURES, in_pairs, reason
from compare.workloads import Request, Workload

ROUNDS_MIN = 2  # more only while there is time

Cell = dict[str, Any]


@dataclass
class Turns:
    """What one contender did in a cell: of each round its slices, and of these the times of requests that return."""

    slices: list[list[Slice]]
    returning: list[list[float]]

    def add(self, done: Slice, requests: Sequence[Request], opens_round: bool) -> None:
        if opens_round:
            self.slices.append([])
            self.returning.append([])
        self.slices[-1].append(done)
        self.returning[-1] += [ttft for ttft, request in zip(done.ttfts, requests) if request.returns]

    def rounds(self) -> list[Slice]:
        return [joined(slices) for slices in self.slices]


def steps_of(workload: Workload) -> list[str]:
    """A round each, as the clock knows them."""
    return [f"{workload.name} {number + 1}" for number in range(workload.rounds)]


class Run:
    """`contenders`: those that run. `absent`: of those that don't, by name, why not."""

    def __init__(self, contenders: Iterable[Contender], clock: Clock) -> None:
        self.contenders = list(contenders)
        self.absent: dict[str, str] = {}
        self.clock = clock

    def start(self) -> None:
        self.clock.begin("start")
        self.clock.say(f"starting {len(self.contenders)} engines, two at a time")
        self._leave_out(in_pairs(self.contenders, lambda one: one.start()))

    def stop(self) -> None:
        """Of the engines nothing is wanted any more, and an orderly end takes them seconds."""
        for contender in self.contenders:
            if contender.engine is not None:
                contender.engine.kill()
        in_pairs(self.contenders, lambda one: one.discard())

    def cells(self, workload: Workload) -> tuple[dict[str, Cell], int]:
        """By contender; of one that fails, the reason. And how many rounds there were."""
        turns = {contender.name: Turns([], []) for contender in self.contenders}
        failed: dict[str, str] = {}
        for number, step in enumerate(steps_of(workload)):
            if number >= ROUNDS_MIN and self.clock.is_late():
                self.clock.skip(steps_of(workload)[number:])
                break
            self.clock.begin(step)
            slices = workload.slices(number)
            for i, requests in enumerate(slices):
                for contender in self._turn(number * len(slices) + i):
                    if contender.name not in failed:
                        self.clock.say(f"{workload.name}, round {number + 1}, part {i + 1}: {contender.name}")
                        try:
                            turns[contender.name].add(ask(contender, requests), requests, opens_round=i == 0)
                        except FAILURES as failure:
                            failed[contender.name] = reason(failure)
                            self.restart(contender, failed[contender.name])
        self.clock.end()
        return self._summed_up(turns, failed), max((len(mine.slices) for mine in turns.values()), default=0)

    def mend(self) -> None:
        """Engines that are dead, after a cell that somebody else ran, are started anew."""
        for contender in list(self.contenders):
            if contender.engine is None or not contender.engine.alive():
                self.restart(contender, "its engine has ended")

    def restart(self, contender: Contender, why: str) -> None:
        """After a failure. Who can't be started again takes no further part."""
        self.clock.say(f"{contender.name} failed and is started anew: {why}")
        self._leave_out(in_pairs([contender], lambda one: one.restart_node()))

    def _turn(self, number: int) -> list[Contender]:
        """Each is first once in as many slices as there are contenders."""
        first = number % len(self.contenders) if self.contenders else 0
        return self.contenders[first:] + self.contenders[:first]

    def _leave_out(self, failed: dict[str, str]) -> None:
        for contender in [c for c in self.contenders if c.name in failed]:
            self.clock.say(f"{contender.name} takes no part any more: {failed[contender.name]}")
            self.contenders.remove(contender)
            in_pairs([contender], lambda one: one.discard())
        self.absent |= failed

    def _summed_up(self, turns: dict[str, Turns], failed: dict[str, str]) -> dict[str, Cell]:
        rounds = {name: mine.rounds() for name, mine in turns.items() if name not in failed}
        first = next(iter(rounds.values()), [])
        reference = [answer for one in first for answer in one.answers]  # of who computes all, where it takes part
        shares = throughput_shares(rounds)
        return {
            name: {"absent": failed[name]}
            if name in failed
            else cell(rounds[name], reference) | shares.get(name, {}) | returning(rounds[name], turns[name].returning)
            for name in turns
        }


def returning(rounds: Sequence[Slice], ttfts: Sequence[list[float]]) -> Cell:
    """The keys of the requests that return, where there are any."""
    if not all(ttfts):
        return {}
    figures = cell([replace(one, ttfts=of_round) for one, of_round in zip(rounds, ttfts)], None)
    return {f"ttft_return_{key}_s": figures[f"ttft_{key}_s"] for key in ("mean", "p50", "p99")}


def throughput_shares(rounds: Mapping[str, Sequence[Slice]]) -> dict[str, Cell]:
    """Of the faster of those that keep nothing, round by round."""
    speeds = {name: [one.requests / one.seconds for one in of_rounds] for name, of_rounds in rounds.items()}
    limit = max((speeds[name] for name in PLAIN if name in speeds), key=statistics.median, default=None)
    if limit is None:
        return {}
    return {name: {"throughput_share": spread(map(truediv, mine, limit))} for name, mine in speeds.items()}
