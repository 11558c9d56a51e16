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
    extra: str = ""  # of kvtier, that brings its client; empty: none is needed
    takes: Mapping[str, str] = {}  # of kvtierd's settings below "remote.", and the password: the kind's word for each
    keeps_values: bool = True  # as they come: it knows nothing of blocks


LOGIN = {"username": "username", "password": "password"}
TLS = {name: name for name in ("ca_file", "cert_file", "key_file")}
S3 = {"username": "access_key_id", "password": "secret_access_key", "endpoint": "endpoint", "region": "region"}
AZURE = {"username": "account_name", "password": "account_key", "endpoint": "endpoint"}

KINDS: dict[str, _Kind] = {
    "s3": _Kind("s3", "s3", S3),
    "az": _Kind("s3", "s3", AZURE),
    **dict.fromkeys(("gs", "file", "memory"), _Kind("s3", "s3")),
    "redis": _Kind("redis", "", LOGIN),
    "rediss": _Kind("redis", "", LOGIN | TLS),
    "redis+cluster": _Kind("redis_cluster", "", LOGIN),
    "mooncake": _Kind("mooncake", "mooncake"),
    "grpc": _Kind("peer", keeps_values=False),
    "grpcs": _Kind("peer", "", TLS, keeps_values=False),
}


def open_remote(url: str, settings: Mapping[str, object]) -> Remote:
    """The remote that a URL names; nothing is asked of it yet. ConfigError: no such kind, its package is missing, or it
    can't make sense of the URL or of a setting."""
    scheme, kind = _kind_of(url)
    try:
        module = importlib.import_module(f"{__name__}.{kind.module}")
    except ModuleNotFoundError as error:
        if not kind.extra:
            raise
        raise ConfigError(f"{scheme}:// needs the package {error.name}: pip install 'kvtier[{kind.extra}]'") from error
    remote: Remote = module.connect(url, settings)
    return remote


def keeps_values(url: str) -> bool:
    """Whether a value lies there as it came, and so may be encrypted, or be a frame. Another kvtierd keeps blocks: it
    encrypts them, with its own key, and makes them smaller, when they leave its RAM; on the way there they are as they are,
    inside of TLS."""
    return _kind_of(url)[1].keeps_values


def settings_of(url: str, given: Mapping[str, str], otherwise: Mapping[str, str]) -> dict[str, object]:
    """What kvtierd was told, in the words of the kind that the URL names; where it was told nothing, what such a kind takes
    of `otherwise`. ConfigError: it was told what such a kind has no use for."""
    scheme, kind = _kind_of(url)
    told = {name: value for name, value in otherwise.items() if value and name in kind.takes}
    told |= {name: value for name, value in given.items() if value}
    if unknown := sorted(told.keys() - kind.takes.keys()):
        taken = ", ".join(f"remote.{_setting(name)}" for name in kind.takes) or "none of them"
        raise ConfigError(f"remote.{_setting(unknown[0])}: a remote by {scheme}:// takes {taken}")
    return {kind.takes[name]: value for name, value in told.items()}


def shown(url: str) -> str:
    """For logs and observers: who logs in, and whatever else might be a secret, is not in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _kind_of(url: str) -> tuple[str, _Kind]:
    try:
        scheme = urlsplit(url).scheme
    except ValueError:  # what is wrong may be half a password: it isn't shown
        raise ConfigError("remote.url is no URL") from None
    if scheme not in KINDS:
        raise ConfigError(
            f"no kind of remote is {scheme!r}; its URL begins with one of {', '.join(sorted(KINDS))}, and ://"
        )
    return scheme, KINDS[scheme]


def _setting(name: str) -> str:
    return "password_file" if name == "password" else name
