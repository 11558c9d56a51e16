"""Stores on other machines, as one tier: remote.py. A kind of store is one file; `open_remote` finds it by the URL.

A kind's module has `connect(url, settings) -> Remote`, which does no I/O. ConfigError when the URL or a setting is wrong.
"""

import importlib
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from kvtier.errors import ConfigError
from kvtier.tiers.remote.base import Remote


class _Kind(NamedTuple):
    module: str  # of this package
    extra: str  # of kvtier, that brings its client; empty: none is needed


KINDS: dict[str, _Kind] = {
    **dict.fromkeys(("s3", "gs", "az", "file", "memory"), _Kind("s3", "s3")),
    **dict.fromkeys(("redis", "rediss"), _Kind("redis", "")),
    "redis+cluster": _Kind("redis_cluster", ""),
}


def open_remote(url: str, settings: Mapping[str, object]) -> Remote:
    """The remote that a URL names; nothing is asked of it yet. ConfigError: no such kind, its package is missing, or it
    can't make sense of the URL or of a setting."""
    scheme = urlsplit(url).scheme
    kind = KINDS.get(scheme)
    if kind is None:
        raise ConfigError(
            f"no kind of remote is {scheme!r}; its URL begins with one of {', '.join(sorted(KINDS))}, and ://"
        )
    try:
        module = importlib.import_module(f"{__name__}.{kind.module}")
    except ModuleNotFoundError as error:
        if not kind.extra:
            raise
        raise ConfigError(f"{scheme}:// needs the package {error.name}: pip install 'kvtier[{kind.extra}]'") from error
    remote: Remote = module.connect(url, settings)
    return remote
