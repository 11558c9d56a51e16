"""Which sessions are learnt together, because they come back alike. Pure.

By the turn; the trunk and the branch of one that parted from another, and what is left of that other; a first prompt that
is very long; one that was away for long; the tool that it waits for. Tenants have categories of their own, up to
TENANTS_MAX of them. Found by measurement on a trace of people who chat (docs/decisions.md).
"""

from kvtier.returns import Returns
from kvtier.session import Session

TENANTS_MAX, TOOLS_MAX = 4, 16  # with categories of their own
LONG_TOKENS, LATE_S = 32_768, 500.0
TOOL_PRIOR = (0.9, 3.0, 1.2)  # chance to return, median seconds, spread of the logarithm
TURNS = ((1, "turn 1"), (2, "turn 2"), (3, "turn 3"), (4, "turn 4"), (7, "turns 5-7"), (11, "turns 8-11"))
TRUNK, LEFT, COMMON = "trunk", "left", "common"
COMMON_PRIOR = (0.99, 10.0, 1.0)  # so many sessions have it that one of them comes soon


class Categories:
    def __init__(self, returns: Returns) -> None:
        self._returns = returns
        self._tenants: set[bytes] = set()
        self._tools: set[str] = set()

    def of(self, session: Session) -> int:
        """Of what it added, and of all of it if it parted from nobody."""
        if session.hints.tool:
            return self._number(self._tool(session.hints.tool), session, TOOL_PRIOR)
        return self._number(self._name(session), session)

    def of_part(self, part: str, session: Session) -> int:
        """Of its trunk; of what another has left of it; or of the common beginning that says nothing of it."""
        return self._number(part, session, COMMON_PRIOR if part == COMMON else None)

    def _name(self, session: Session) -> str:
        if session.gap_s > LATE_S:
            return "late"
        if session.turns == 1 and (session.blocks - session.tail_at) * session.block_tokens >= LONG_TOKENS:
            return "long"
        if session.is_branch:
            return "branch"
        return next((name for last, name in TURNS if session.turns <= last), "turns 12 and more")

    def _tool(self, tool: str) -> str:
        if tool not in self._tools and len(self._tools) == TOOLS_MAX:
            return "other tools"
        self._tools.add(tool)
        return f"tool {tool}"

    def _number(self, name: str, session: Session, prior: tuple[float, float, float] | None = None) -> int:
        tenant = session.tenant
        if tenant and (tenant in self._tenants or len(self._tenants) < TENANTS_MAX):
            self._tenants.add(tenant)
            name = f"{name}, tenant {session.shown_tenant}"
        return self._returns.category(name, prior)
