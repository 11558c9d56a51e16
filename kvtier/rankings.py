"""The policies by name: how each ranks what lies in RAM. Pure."""

from kvtier.arc import Arc
from kvtier.policy import Ranking
from kvtier.ranking import Lru, Value
from kvtier.returns import Returns
from kvtier.s3fifo import S3Fifo

POLICIES = ("value", "lru", "s3fifo", "arc")


def ranking_of(policy: str, returns: Returns, units: int) -> Ranking:
    """For so many slots of one unit."""
    assert policy in POLICIES, policy
    if policy == "value":
        return Value(returns)
    return Lru() if policy == "lru" else S3Fifo(units) if policy == "s3fifo" else Arc(units)
