"""One request's way from its arrival to its first token, as the scheduler sees it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.request import Request


class Journey:
    def __init__(self, request: "Request", resident: int, now: float) -> None:
        self.request = request
        self.prompt = request.num_prompt_tokens
        self.position = min(resident, self.prompt)  # so many tokens are, or are sure to be, without computing them anew
        self._resident = self.position  # of these, in the engine's own cache
        self._arrived_at = now
        self._served_at: float | None = None  # its load was ordered, or its computation began
        self._begun_at: float | None = None  # its computation
        self._begun_from = 0  # tokens
        self._load_s = 0.0

    def resident(self, tokens: int) -> None:
        """What the engine's own cache has turns out to be this much."""
        self._resident = self.position = min(tokens, self.prompt)

    def load_ordered(self, tokens: int, now: float) -> None:
        """So many tokens beyond the resident ones."""
        self.position = min(self._resident + tokens, self.prompt)
        if self._served_at is None:
            self._served_at = now

    def loaded(self, seconds: float) -> None:
        self._load_s += seconds

    def computing(self, start: int, end: int, now: float) -> None:
        """A step computes these of its tokens."""
        if self._served_at is None:
            self._served_at = now
        if self._begun_at is None:
            self._begun_at, self._begun_from = now, start
        self.position = min(end, self.prompt)

    def outcome(self, now: float) -> dict[str, int]:
        """Its first token is there."""
        assert self._begun_at is not None and self._served_at is not None
        loaded = max(0, self._begun_from - self._resident)
        return {
            "ttft_us": _microseconds(now - self._arrived_at),
            "wait_us": _microseconds(self._served_at - self._arrived_at),
            "load_us": _microseconds(self._load_s),
            "prefill_us": _microseconds(now - self._begun_at),
            "prompt_tokens": self.prompt,
            "resident_tokens": min(self._resident, self._begun_from),
            "loaded_tokens": loaded,
            "computed_tokens": max(0, self.prompt - self._begun_from),
        }


def _microseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
