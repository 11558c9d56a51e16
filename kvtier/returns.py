"""When idle sessions come back: learnt by category, with priors for what was not seen yet. Pure.

Of each category there is a hazard: the chance to return within the next bin of idle time, for those that did not return
before. It is made of returns seen, of sessions that are still away, and of a prior as heavy as PRIOR_WEIGHT sessions:
the hazard of all categories together, times how much this one differs from it. That hazard begins as that of people who
chat: median gap 123 s, 45 % return (a production trace of 12,031 requests; see docs/decisions.md).

What a block's room is worth is the most returns a second that keeping it can bring: with R(t) the chance to return within
t, and K(t) how long it is kept meanwhile on the mean,

    index(age) = max over t of R(t) / K(t)

the Gittins index of a bandit of which each session is an arm. It looks ahead: nobody returns in the first seconds, and
yet the youngest are worth keeping.
"""

from collections.abc import Hashable
from math import erf, log, sqrt

import numpy as np

CATEGORIES_MAX = 96
OTHERS = 0  # the category of whatever there is no room for
BINS = np.concatenate([[0.0], np.geomspace(0.5, 86_400.0, 59)])  # seconds of idle time: where each bin begins
_WIDTHS = np.diff(BINS, append=BINS[-1] * 2)
_STEP = log(BINS[2] / BINS[1])
PRIOR_WEIGHT = 15.0  # sessions
BASE_WEIGHT = 5.0  # sessions: how heavy the first idea of all is
RATIO_WEIGHT = 10.0  # returns
CHANCE, MEDIAN_S, SPREAD = 0.45, 123.0, 1.05  # of people who chat; the spread is that of the logarithm
HALF_LIFE_S = 86_400.0  # what was seen counts half after a day
HAZARD_MAX = 0.9


def bin_of(age_s: float) -> int:
    return 0 if age_s < BINS[1] else min(len(BINS) - 1, 1 + int(log(age_s / BINS[1]) / _STEP + 1e-9))


def lognormal_hazard(chance: float, median_s: float, spread: float) -> np.ndarray:
    """float64[bins]: of sessions of which so many return, after gaps of that median."""
    edges = np.append(BINS, BINS[-1] + _WIDTHS[-1])
    by = np.array([0.0 if t <= 0 else 0.5 * (1 + erf(log(t / median_s) / (spread * sqrt(2)))) for t in edges]) * chance
    return np.clip(np.diff(by) / np.maximum(1e-9, 1 - by[:-1]), 0.0, HAZARD_MAX)


class Returns:
    def __init__(self, sessions_max: int) -> None:
        """Sessions are numbers below `sessions_max`, each away under at most one category."""
        bins = len(BINS)
        self.names: list[Hashable] = ["others"]
        self._number_of: dict[Hashable, int] = {}
        self._returned = np.zeros((CATEGORIES_MAX, bins))  # seen, by idle time
        self._lost = np.zeros((CATEGORIES_MAX, bins))  # that nobody follows any more: when last seen away
        self._away_in = np.full(sessions_max, -1, dtype=np.int16)
        self._away_since = np.zeros(sessions_max)
        self._own: dict[int, np.ndarray] = {}  # hazards that some categories begin with
        self._base = lognormal_hazard(CHANCE, MEDIAN_S, SPREAD)
        self._learnt_at: float | None = None
        self.hazard = np.tile(self._base, (CATEGORIES_MAX, 1))
        self._index = _gittins(self.hazard)
        self._rows: list[list[float]] = self._index.tolist()  # for single looks: 20 times faster than numpy

    def category(self, name: Hashable, prior: tuple[float, float, float] | None = None) -> int:
        """The number of this category. `prior`: chance, median in seconds and spread that it begins with."""
        number = self._number_of.get(name)
        if number is None:
            if len(self.names) == CATEGORIES_MAX:
                return OTHERS
            number = self._number_of[name] = len(self.names)
            self.names.append(name)
            if prior is not None:
                self._own[number] = self.hazard[number] = lognormal_hazard(*prior)
                self._index[number] = _gittins(self.hazard[number : number + 1])[0]
                self._rows[number] = self._index[number].tolist()
        return number

    # --- what is seen --------------------------------------------------------------------------------------------

    def went(self, session: int, category: int, now: float) -> None:
        """It is idle from now on."""
        self._away_in[session], self._away_since[session] = category, now

    def away(self, session: int) -> tuple[int, float] | None:
        """Under which category it is away, and since when; None: it isn't."""
        category = int(self._away_in[session])
        return None if category < 0 else (category, float(self._away_since[session]))

    def came(self, session: int, now: float) -> None:
        """It is back."""
        category = int(self._away_in[session])
        if category >= 0:
            self._returned[category, bin_of(now - self._away_since[session])] += 1
            self._away_in[session] = -1

    def lost(self, session: int, now: float) -> None:
        """Nobody follows it any more, for no reason that says anything of its return."""
        category = int(self._away_in[session])
        if category >= 0:
            self._lost[category, bin_of(now - self._away_since[session])] += 1
            self._away_in[session] = -1

    def ended(self, session: int) -> None:
        """It said that it won't come back: nothing to learn."""
        self._away_in[session] = -1

    def learn(self, now: float) -> None:
        """Make hazards of what was seen. A few ms, whatever the number of sessions; every now and then."""
        if self._learnt_at is not None:
            fade = 0.5 ** ((now - self._learnt_at) / HALF_LIFE_S)
            self._returned *= fade
            self._lost *= fade
        self._learnt_at = now
        away = np.flatnonzero(self._away_in >= 0)
        gone = self._lost.copy()
        bins = np.searchsorted(BINS, now - self._away_since[away], side="right") - 1
        np.add.at(gone, (self._away_in[away], np.maximum(0, bins)), 1)
        left = self._returned + gone
        present = np.cumsum(left[:, ::-1], axis=1)[:, ::-1] - 0.5 * gone  # at each bin, half of those that it lost
        followed = [n for n in range(len(self.names)) if n not in self._own]
        base = self._returned[followed].sum(0) + BASE_WEIGHT * self._base
        base /= present[followed].sum(0) + BASE_WEIGHT
        ratio = (self._returned.sum(1) + RATIO_WEIGHT) / ((present * base).sum(1) + RATIO_WEIGHT)
        prior = np.minimum(HAZARD_MAX, base[None] * ratio[:, None])
        for number, own in self._own.items():
            prior[number] = own
        hazard = np.minimum(HAZARD_MAX, (self._returned + PRIOR_WEIGHT * prior) / (present + PRIOR_WEIGHT))
        if np.array_equal(hazard, self.hazard):  # nothing was seen: an idle daemon would do little else than what follows
            return
        self.hazard = hazard
        # Those that have no name yet are all alike: one is looked at for all.
        rows = _gittins(self.hazard[: len(self.names) + 1])
        self._index[: len(rows)], self._index[len(rows) :] = rows, rows[-1]
        self._rows = self._index.tolist()

    # --- what follows --------------------------------------------------------------------------------------------

    def index(self, category: int, age_s: float) -> float:
        """Returns a second that room for it brings, at best; between the begins of two bins, in between."""
        row = self._rows[category]
        if age_s < BINS[1]:
            return row[0]
        at = 1 + log(age_s / BINS[1]) / _STEP + 1e-9
        number = int(at)
        return row[-1] if number >= len(row) - 1 else row[number] + (row[number + 1] - row[number]) * (at - number)

    def chance(self, category: int, age_s: float, within_s: float = float("inf")) -> float:
        """That one that has been away for so long comes back, within so many seconds more."""
        first = bin_of(age_s)
        last = len(BINS) if within_s == float("inf") else bin_of(age_s + within_s) + 1
        return 1.0 - float(np.prod(1.0 - self.hazard[category, first:last]))

    def after(self, category: int, age_s: float, share: float = 0.5) -> float | None:
        """In how many seconds so many of those that come back at all will have; None when next to none do."""
        first = bin_of(age_s)
        stay = np.cumprod(1.0 - self.hazard[category, first:])
        come = 1.0 - stay[-1]
        if come < 0.01:
            return None
        at = int(np.argmax(1.0 - stay >= share * come))
        return max(0.0, float(BINS[first + at] + _WIDTHS[first + at] / 2) - age_s)

    def snapshot(self) -> list[dict[str, object]]:
        """As JSON values, one for each category of which something was seen."""
        away = np.bincount(self._away_in[self._away_in >= 0], minlength=CATEGORIES_MAX)
        return [
            {
                "category": str(name),
                "returns": round(float(self._returned[number].sum()), 1),
                "open": int(away[number]),
                "chance": round(self.chance(number, 0.0), 3),
                "median_s": None if (after := self.after(number, 0.0)) is None else round(after, 1),
            }
            for number, name in enumerate(self.names)
            if self._returned[number].any() or away[number]
        ]


def _gittins(hazard: np.ndarray) -> np.ndarray:
    """float64[categories, bins]: from the begin of each bin on, the most returns a second of keeping."""
    categories, bins = hazard.shape
    stay = np.ones((categories, bins))  # by the bin in which the look begins
    came, kept, best = np.zeros_like(stay), np.zeros_like(stay), np.zeros_like(stay)
    for at in range(bins):
        begun = slice(0, at + 1)
        comes = stay[:, begun] * hazard[:, at : at + 1]
        came[:, begun] += comes
        kept[:, begun] += _WIDTHS[at] * (stay[:, begun] - 0.5 * comes)
        stay[:, begun] -= comes
        np.maximum(best[:, begun], came[:, begun] / np.maximum(kept[:, begun], 1e-12), out=best[:, begun])
    return best
