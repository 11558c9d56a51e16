"""How the surroundings of the store behave in a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Habits:
    """Each default is right; the other value is a bug of theirs, planted by a test."""

    leaves_when_copies_are_over: bool = True
    commits_when_all_ranks_are_done: bool = True
    gives_back_when_all_ranks_are_done: bool = True
    releases_when_all_ranks_are_done: bool = True


RIGHT = Habits()
