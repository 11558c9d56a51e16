"""ObjectRemote: s3://, gs://, az://, file:// and memory://, by obstore.

    s3://bucket[/prefix]      gs://bucket[/prefix]      az://container[/prefix]      file:///folder      memory://

A value is one object, <prefix>/<name>. Settings are obstore's own, by its names: for S3 `endpoint`, `region`,
`access_key_id`, `secret_access_key`, `session_token`; what isn't given is taken from the environment, as its programs
do, or from the instance's role. There is no question for many objects at once: `lengths` asks for HEADs_AT_ONCE.
"""

import asyncio
import re
from collections.abc import Awaitable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import obstore
from obstore import exceptions, store

from kvtier.errors import ConfigError
from kvtier.tiers.remote.base import Corrupt, Full, Refused, RemoteError, Unreachable

HEADS_AT_ONCE = 128  # so that a long prompt is answered within a deadline, far away too
CONNECT_S, REQUEST_S = 2, 60  # a call's own deadline comes first; then nothing of it goes on for ever
SPARES, SPARE_BYTES = 4, 8 * 1024**2  # copies that are kept for the next, and none that is larger
STEP_BYTES = 256 * 1024  # their memory is of so many bytes, or a multiple
NO_ROOM = re.compile(
    r"\b507\b|QuotaExceeded|StorageFull|EntityTooLarge|InsufficientStorage|No space left|os error 28", re.I
)
NOT_ALLOWED = re.compile(r"NoSuchBucket|InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|os error (13|30)\b", re.I)

T = TypeVar("T")


class ObjectRemote:
    def __init__(self, objects: Any) -> None:
        self._objects = objects
        self._spare: list[np.ndarray] = []  # copies that nobody reads any more
        self._heads: asyncio.Queue[None] = asyncio.Queue()
        for _ in range(HEADS_AT_ONCE):
            self._heads.put_nowait(None)

    async def lengths(self, names: Sequence[str]) -> list[int | None]:
        return await together([self._length(name) for name in names])

    async def _length(self, name: str) -> int | None:
        await self._heads.get()
        try:
            found = await said(obstore.head_async(self._objects, name))
        finally:
            self._heads.put_nowait(None)
        return None if found is None else int(found["size"])

    async def get(self, name: str, header: memoryview, body: memoryview) -> bool:
        """The client gives pieces of memory of its own: each is copied to its place when it comes."""
        found = await said(obstore.get_async(self._objects, name))
        if found is None:
            return False
        size = header.nbytes + body.nbytes
        if found.meta["size"] != size:
            raise Corrupt(f"{found.meta['size']} bytes instead of {size}")
        value = await said(found.bytes_async())
        if value is None or len(value) != size:
            raise Corrupt(f"not the {size} bytes that were announced")
        whole = memoryview(value)
        header[:] = whole[: header.nbytes]
        np.copyto(np.frombuffer(body, np.uint8), np.frombuffer(whole[header.nbytes :], np.uint8))  # without the GIL
        return True

    async def put(self, name: str, header: bytes, body: memoryview) -> None:
        """From a copy: whoever is cancelled can't be sure that the client's threads read no more. What was taken whole is
        read no more: its memory is used again, for new pages cost more than the copy."""
        size = len(header) + body.nbytes
        memory = self._memory(size)
        copy = memory[:size]
        copy[: len(header)] = np.frombuffer(header, np.uint8)
        np.copyto(copy[len(header) :], np.frombuffer(body, np.uint8))
        await said(obstore.put_async(self._objects, name, copy.data, use_multipart=False))
        if len(memory) <= SPARE_BYTES:
            self._spare = [*self._spare[1 - SPARES :], memory]

    def _memory(self, size: int) -> np.ndarray:
        """So many bytes, or a few more: no two frames are of one length."""
        for n, memory in enumerate(self._spare):
            if size <= len(memory):
                return self._spare.pop(n)
        return np.empty(-(-size // STEP_BYTES) * STEP_BYTES, np.uint8)

    async def delete(self, names: Sequence[str]) -> None:
        """One request for many would need a right that some don't have, and answers for some kinds as one."""
        await together([said(obstore.delete_async(self._objects, name)) for name in names])

    async def close(self) -> None:
        """Its connections belong to obstore, and go when they are idle."""


async def said(asked: Awaitable[T]) -> T | None:
    """None: there is no such object."""
    try:
        return await asked
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        if NOT_ALLOWED.search(str(error)):
            raise Refused(reason_of(error)) from error
        return None
    except (exceptions.BaseError, OSError) as error:
        raise meaning_of(error) from error


def meaning_of(error: Exception) -> RemoteError:
    """obstore has one error for most of what a server can say."""
    text = str(error)
    if NO_ROOM.search(text):
        return Full(reason_of(error))
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or NOT_ALLOWED.search(text):
        return Refused(reason_of(error))
    return Unreachable(reason_of(error))


def reason_of(error: Exception) -> str:
    """Its first words: the rest is the whole request once more."""
    return " ".join(str(error).split())[:200]


async def together(asked: Sequence[Awaitable[T]]) -> list[T]:
    """All of them; when one fails the others have ended too."""
    found = await asyncio.gather(*asked, return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException):
            raise each
    return [each for each in found if not isinstance(each, BaseException)]


def _folder(path: Path) -> Path:
    """Made for its owner alone: whoever may read it reads prompts."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"file://{path}: {error.strerror}") from None
    return path


def connect(url: str, settings: Mapping[str, object]) -> ObjectRemote:
    parts = urlsplit(url)
    given: dict[str, Any] = dict(settings)
    if parts.scheme == "memory":
        return ObjectRemote(store.MemoryStore())
    if parts.scheme == "file":
        if parts.netloc or len(parts.path) < 2 or given:
            raise ConfigError("file:// needs a whole path, as file:///folder, and has no settings")
        return ObjectRemote(store.LocalStore(_folder(Path(parts.path))))
    if not parts.netloc:
        raise ConfigError(f"{parts.scheme}:// needs a bucket")
    plain = str(given.get("endpoint", given.get("aws_endpoint", ""))).startswith("http://")
    client: Any = {"connect_timeout": f"{CONNECT_S}s", "timeout": f"{REQUEST_S}s", "allow_http": plain}
    retries: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=REQUEST_S)}  # who asks again is for others to say
    from_url: Any = store.from_url  # its types know one kind at a time
    try:
        return ObjectRemote(from_url(url, client_options=client, retry_config=retries, **given))
    except (exceptions.BaseError, TypeError, ValueError) as error:
        raise ConfigError(f"{parts.scheme}://{parts.netloc}: {reason_of(error)}") from error
