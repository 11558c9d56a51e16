"""What is worth a write to a drive. Pure.

A flash drive is worn by writes, and most blocks are never read again (76 % in a chat trace). So there is a budget: a
bucket that fills at the rate of `endurance_dwpd` drive writes per day and holds one day's worth. What goes into it is
the rated size of the drives, not the part that kvtier uses, for it is the drive that wears out.

    bucket more than half full    every block is worth a write: what the drive may take would be lost unused
    less than half                only blocks that were used again
    empty                         none

A remote is not worn, but its network is shared. Its bucket holds a few seconds' worth, and what comes while it is empty
waits. A block that is larger than the bucket goes when that is full.
"""

from dataclasses import dataclass

DAY_S = 86_400.0
RATE_BURST_S = 10.0
RATED_DAYS = 5 * 365  # for which makers rate drive writes a day
FIRST_USE_SHARE = 0.5  # of the bucket: what is kept for blocks that were used again


@dataclass
class Budget:
    """Bytes that may be written. Times are seconds of one monotonic clock."""

    bytes_per_day: float
    begun_at: float  # the bucket is full then
    spent: float = 0.0
    burst_s: float = DAY_S  # it fills in
    waits: bool = False  # what comes while too little is left waits, and is not refused

    def __post_init__(self) -> None:
        self.left = self._brim = self.bytes_per_day * self.burst_s / DAY_S
        self._filled_at = self.begun_at

    @classmethod
    def of_rate(cls, bytes_per_s: float, begun_at: float) -> "Budget":
        """Of a remote."""
        return cls(bytes_per_s * DAY_S, begun_at, burst_s=RATE_BURST_S, waits=True)

    def refusal(self, size: int, used_again: bool, now: float) -> str:
        """Why a block of so many bytes is not written now, as a counter's name; empty when it may be."""
        self._fill(now)
        if self.waits:
            return ""
        if self.left < size:
            return "refused_budget"
        if not used_again and self.left - size < self._brim * FIRST_USE_SHARE:
            return "refused_first_use"
        return ""

    def is_short(self, size: int, now: float) -> bool:
        """Whether a block of so many bytes has to wait."""
        self._fill(now)
        return self.waits and self.left < min(size, self._brim)

    def spend(self, size: int) -> None:
        self.left -= size
        self.spent += size

    def give_back(self, size: int) -> None:
        """So many bytes that were spent were not written."""
        self.left = min(self._brim, self.left + size)
        self.spent -= size

    def snapshot(self, now: float) -> dict[str, object]:
        """As JSON values, for observers. `days_of_life`: how long the drives last if it goes on like this, by the usual
        rating of so many drive writes a day for five years; None while nothing was written, and where nothing wears out."""
        self._fill(now)
        per_day = self.spent / max(1.0, now - self.begun_at) * DAY_S
        return {
            "budget_bytes_per_day": int(self.bytes_per_day),
            "budget_left_bytes": int(self.left),
            "written_bytes_per_day": int(per_day),
            "days_of_life": round(self.bytes_per_day * RATED_DAYS / per_day, 1) if per_day and not self.waits else None,
        }

    def _fill(self, now: float) -> None:
        grown = (now - self._filled_at) * self.bytes_per_day / DAY_S
        self.left = min(self._brim, self.left + max(0.0, grown))
        self._filled_at = now
