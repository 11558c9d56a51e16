"""The engine's edge: the one place where an unexpected error of ours ends. vLLM kills an engine whose connector raises."""

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar

log = logging.getLogger("kvtier")

P = ParamSpec("P")
T = TypeVar("T")


class HasFault(Protocol):
    def fault(self) -> None:
        """Give up what is in hand, so that nothing doubtful is offered; start again from nothing."""


def edge(fallback: Callable[[], Any]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A hook that returns `fallback()` instead of raising."""

    def wrap(hook: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(hook)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return hook(*args, **kwargs)
            except Exception:
                log.exception("kvtier has a fault in %s; the engine goes on without it for now", hook.__name__)
                owner: Any = args[0]
                owner.fault()
                return fallback()  # type: ignore[no-any-return]

        return call

    return wrap
