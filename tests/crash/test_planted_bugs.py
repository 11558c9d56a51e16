"""A daemon with a bug of the worst kind: the oracle must notice, or all that it didn't notice means nothing."""

import sys
from pathlib import Path

import pytest
from series import AFTER_FLUSH, Series, Tally
from victim import Victim

BUGS = {
    "a flush is answered before the commit": """
from kvtier.tiers.commits import Commits
from kvtier.transfer import Finished
turn = Commits.turn
def eager(self):
    told, self._tickets = [Finished(ticket) for ticket in self._tickets], []
    return told + [done for done in turn(self) if done.fault]
Commits.turn = eager
""",
    "a record is forgotten by the commit": """
from kvtier.tiers.commits import Commits
add = Commits.add
def forgetful(self, entry, drive=None):
    if not (isinstance(entry, bytes) and entry[-1] % 4 == 0):
        add(self, entry, drive)
Commits.add = forgetful
""",
    "the bytes of another place are read": """
from dataclasses import replace
from kvtier.tiers.nvme import NvmeTier
read, promoted = NvmeTier._read, NvmeTier._promoted
def astray(self, promote):
    read(self, replace(promote, place=promote.place - promote.place % 64))
def trusting(self, promote, error, checksum, seconds):
    return promoted(self, promote, error, promote.checksum, seconds)
NvmeTier._read, NvmeTier._promoted = astray, trusting
""",
}


class Sick(Victim):
    """Runs a program of its own before it becomes a kvtierd."""

    def __init__(self, folder: Path, settings: dict[str, object], bug: str) -> None:
        super().__init__(folder, settings)
        self._bug = bug

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-P", "-c", f"{self._bug}\nfrom kvtier import daemon\ndaemon.main()", *super().command[1:]]


@pytest.mark.long
@pytest.mark.parametrize("bug", BUGS)
def test_the_oracle_notices(tmp_path, bug):
    tally = Tally()
    series = Series(tmp_path, 0, tally)
    series.victim = Sick(tmp_path, series.settings, BUGS[bug])
    with pytest.raises(AssertionError):
        series.run([AFTER_FLUSH] * 10)
    print(tally)
    assert tally.wrong or tally.lost
