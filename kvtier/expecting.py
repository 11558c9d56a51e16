"""Sessions whose return was announced: when it is to be believed, when it is near, when it was wrong. Pure.

A client says "back in 30 s" at the end of a request. Nobody need believe it: for each source of announcements, which is
a tenant and a tool, it is learnt how much later or earlier those come who announced themselves, and that is what is
expected. One that is not back long after that stands again where it would without a word.

    announced ----> expected ----near: fetch what is below----> back
                        '-----overdue: it was wrong---> as if nothing had been said
"""

import heapq
import itertools
from collections.abc import Callable, Hashable, Iterator
from math import exp, log, sqrt

from kvtier.session import Session

SOURCES_MAX = 256  # further ones are believed literally
GAIN_MIN = 0.1  # of one more return on what a source's announcements are worth
RATIO_MAX = 50.0  # later, or earlier, than announced
EARLY_SIGMAS = 1.3  # nine in ten come later than this before their time
OVERDUE_MIN_S, OVERDUE_SHARE = 1.0, 1.0  # beyond what was expected
WAKES_A_SESSION, WAKES_SPARE = 4, 1024
NEAR_AGAIN_MIN_S = 0.05  # between looks whether it is in RAM, while its return comes near


class Expecting:
    def __init__(self) -> None:
        # Source -> returns seen; of log(real / announced) the mean and the variance.
        self._ratios: dict[Hashable, tuple[int, float, float]] = {}
        self._announced: dict[int, tuple[Hashable, float, float]] = {}  # session -> source, seconds, when
        self._wakes: list[tuple[float, int, str, Session, int]] = []  # when, -, what, whose, its turns then
        self._numbers = itertools.count()

    def expect(self, session: Session, now: float, lead_s: float) -> None:
        """It was announced. `lead_s`: so long before its return it is time to fetch it."""
        source: Hashable = (session.tenant, session.hints.tool)
        said_s = session.hints.expect_return_s
        _, ratio, variance = self._ratios.get(source, (0, 0.0, 0.0))
        in_s = said_s * exp(ratio)
        early_s = in_s * exp(-EARLY_SIGMAS * sqrt(variance))
        self._announced[session.serial] = source, said_s, now
        session.expected_at = now + in_s
        self._wake(now + max(0.0, early_s - lead_s), "near", session)
        self._wake(now + in_s + max(OVERDUE_MIN_S, in_s * OVERDUE_SHARE), "overdue", session)

    @property
    def due_at(self) -> float:
        """When something is due at the earliest; infinity: nothing is."""
        return self._wakes[0][0] if self._wakes else float("inf")

    def soon(self, session: Session, now: float, within_s: float) -> None:
        """Somebody else than itself expects it; nothing is learnt from that."""
        session.expected_at = now + within_s
        self._wake(now + within_s, "overdue", session)

    def look_again(self, session: Session, now: float) -> None:
        """Whether it is in RAM still, before it is back."""
        assert session.expected_at is not None
        self._wake(now + max(NEAR_AGAIN_MIN_S, (session.expected_at - now) / 2), "near", session)

    def age(self, session: Session, at: float) -> None:
        """Then its time is up, if it isn't used until then."""
        self._wake(at, "old", session)

    def came(self, session: Session, now: float) -> None:
        """It is back: how good was the announcement?"""
        source, said_s, since = self._announced.pop(session.serial, (None, 0.0, now))
        if source is None or (source not in self._ratios and len(self._ratios) == SOURCES_MAX):
            return
        seen, mean, variance = self._ratios.get(source, (0, 0.0, 0.0))
        real_s = max(now - since, 1e-3)
        new = max(-log(RATIO_MAX), min(log(RATIO_MAX), log(real_s / said_s)))
        gain = max(GAIN_MIN, 1 / (seen + 2))
        self._ratios[source] = seen + 1, mean + (new - mean) * gain, variance + ((new - mean) ** 2 - variance) * gain

    def drop(self, session: Session) -> None:
        """Nobody expects it any more."""
        self._announced.pop(session.serial, None)
        session.expected_at = None

    def due(self, now: float, is_known: Callable[[Session], bool]) -> Iterator[tuple[str, Session]]:
        """What is to be looked at now: "near", "overdue" or "old", and who; one after the other, for what is done about
        one may settle the next."""
        while self._wakes and self._wakes[0][0] <= now:
            _, _, what, session, turns = heapq.heappop(self._wakes)
            is_expected = what == "old" or session.expected_at is not None
            if is_known(session) and session.turns == turns and not session.requests and is_expected:
                yield what, session

    def sweep(self, is_known: Callable[[Session], bool], sessions: int) -> None:
        """Forget what is not meant any more, when there is much of it."""
        if len(self._wakes) > WAKES_A_SESSION * sessions + WAKES_SPARE:
            self._wakes = [one for one in self._wakes if is_known(one[3]) and one[3].turns == one[4]]
            heapq.heapify(self._wakes)

    def _wake(self, when: float, what: str, session: Session) -> None:
        heapq.heappush(self._wakes, (when, next(self._numbers), what, session, session.turns))
