"""Requests of one engine, a second apart, for tests of sessions; blocks are named by letters as in idle_world.py."""

from idle_world import keys, letters

from kvtier.block import Kind
from kvtier.session import NOTHING, Begun, Hints, Sessions

CHAIN = Kind(65_536, 16, True)
HEAP = Kind(65_536, 16, False)  # blocks of which each stands for itself


class Talk:
    def __init__(self) -> None:
        self.sessions = Sessions()
        self.now = 0.0
        self._numbers = 0

    def begin(self, prompt: str, namespace: int = 1, kind=CHAIN, **hints) -> Begun:
        self.now += 1.0
        self._numbers += 1
        request = ("a", str(self._numbers))
        self.last = request
        return self.sessions.begin(request, keys(prompt), namespace, kind, Hints(**hints) if hints else NOTHING, self.now)

    def over(self, chain: str = "", request: tuple[str, str] | None = None) -> str:
        """Returns what nobody has any more."""
        found = self.sessions.over(request or self.last, keys(chain), self.now)
        assert found is not None
        return letters(found[1])

    def turn(self, prompt: str, answer: str = "", **how) -> Begun:
        begun = self.begin(prompt, **how)
        self.over(prompt + answer)
        return begun

    def chains(self) -> dict[str, str]:
        return {session.shown_name: letters(session.keys) for session in self.sessions}
