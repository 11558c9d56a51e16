"""What a client that knows its conversations would have said of each request of a trace: whose it is, and that it is the
last.

Where the trace names its sessions, that is told. Where it doesn't, they are recovered from the chains, with foresight:

    A request continues the session that used its deepest known block last, if that was the session's last request.
    Unless the rest of that one's prompt is read again by somebody later: then the two are different branches that grew
    from one conversation (an edited turn, several answers to one question), and the request begins a session.
    A block that only begins prompts, the first, joins nobody: it is what a service puts before all of them.
    A session ends with the last request that continues it.

So an end is known exactly, though a real client often learns only later that nobody will come back: what is reached with
these hints is an upper bound of what they are worth.
"""

from dataclasses import dataclass

from kvtier.replay.trace import Trace


@dataclass(frozen=True, slots=True)
class Told:
    """Of one request."""

    session: str
    ends: bool


def told(trace: Trace) -> list[Told]:
    """One for each request."""
    named = [request.session for request in trace.requests]
    sessions = named if all(named) else [str(number) for number in _recovered(trace)]
    last = {session: number for number, session in enumerate(sessions)}
    return [Told(session, last[session] == number) for number, session in enumerate(sessions)]


def _recovered(trace: Trace) -> list[int]:
    """By request: the number of its session."""
    paths = [trace.whole(request) for request in trace.requests]
    used_last = {block: number for number, path in enumerate(paths) for block in path}
    user: dict[int, int] = {}  # block -> the last request before this one that used it
    sessions: list[int] = []
    latest: list[int] = []  # by session: its last request so far
    for number, path in enumerate(paths):
        depth = next((i for i, block in enumerate(path) if block not in user), len(path))
        session = len(latest)
        if depth > 1:
            former = user[path[depth - 1]]
            left = paths[former][depth : depth + 1]
            is_branch = any(used_last[block] > number for block in left)
            if not is_branch and latest[sessions[former]] == former:
                session = sessions[former]
        if session == len(latest):
            latest.append(number)
        latest[session] = number
        sessions.append(session)
        user.update(dict.fromkeys(path, number))
    return sessions
