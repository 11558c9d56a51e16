from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Session(_message.Message):
    __slots__ = ("session", "tenant", "model", "state", "idle_s", "turns", "tokens", "bytes", "blocks", "expected_return_s", "return_chance", "pinned", "pin_left_s", "ttl_left_s", "no_disk", "tool", "category")
    class BytesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class BlocksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_RETURN_S_FIELD_NUMBER: _ClassVar[int]
    RETURN_CHANCE_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    PIN_LEFT_S_FIELD_NUMBER: _ClassVar[int]
    TTL_LEFT_S_FIELD_NUMBER: _ClassVar[int]
    NO_DISK_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    session: str
    tenant: str
    model: str
    state: str
    idle_s: float
    turns: int
    tokens: int
    bytes: _containers.ScalarMap[str, int]
    blocks: _containers.ScalarMap[str, int]
    expected_return_s: float
    return_chance: float
    pinned: bool
    pin_left_s: float
    ttl_left_s: float
    no_disk: bool
    tool: str
    category: str
    def __init__(self, session: _Optional[str] = ..., tenant: _Optional[str] = ..., model: _Optional[str] = ..., state: _Optional[str] = ..., idle_s: _Optional[float] = ..., turns: _Optional[int] = ..., tokens: _Optional[int] = ..., bytes: _Optional[_Mapping[str, int]] = ..., blocks: _Optional[_Mapping[str, int]] = ..., expected_return_s: _Optional[float] = ..., return_chance: _Optional[float] = ..., pinned: bool = ..., pin_left_s: _Optional[float] = ..., ttl_left_s: _Optional[float] = ..., no_disk: bool = ..., tool: _Optional[str] = ..., category: _Optional[str] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("sort", "limit", "session", "tenant")
    SORT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    sort: str
    limit: int
    session: str
    tenant: str
    def __init__(self, sort: _Optional[str] = ..., limit: _Optional[int] = ..., session: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions", "known")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    known: int
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ..., known: _Optional[int] = ...) -> None: ...

class WarmRequest(_message.Message):
    __slots__ = ("session", "tenant")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    session: str
    tenant: str
    def __init__(self, session: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class WarmResponse(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    def __init__(self, blocks: _Optional[int] = ...) -> None: ...

class ParkRequest(_message.Message):
    __slots__ = ("session", "tenant")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    session: str
    tenant: str
    def __init__(self, session: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class ParkResponse(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    def __init__(self, blocks: _Optional[int] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("session", "tenant", "seconds")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    session: str
    tenant: str
    seconds: float
    def __init__(self, session: _Optional[str] = ..., tenant: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class PinResponse(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    def __init__(self, blocks: _Optional[int] = ...) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("session", "tenant")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    session: str
    tenant: str
    def __init__(self, session: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class ForgetResponse(_message.Message):
    __slots__ = ("sessions", "blocks", "bytes_zeroed", "shared_blocks_kept", "keys_shredded")
    class BlocksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class BytesZeroedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_ZEROED_FIELD_NUMBER: _ClassVar[int]
    SHARED_BLOCKS_KEPT_FIELD_NUMBER: _ClassVar[int]
    KEYS_SHREDDED_FIELD_NUMBER: _ClassVar[int]
    sessions: int
    blocks: _containers.ScalarMap[str, int]
    bytes_zeroed: _containers.ScalarMap[str, int]
    shared_blocks_kept: int
    keys_shredded: int
    def __init__(self, sessions: _Optional[int] = ..., blocks: _Optional[_Mapping[str, int]] = ..., bytes_zeroed: _Optional[_Mapping[str, int]] = ..., shared_blocks_kept: _Optional[int] = ..., keys_shredded: _Optional[int] = ...) -> None: ...

class EndRequest(_message.Message):
    __slots__ = ("session", "tenant")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    session: str
    tenant: str
    def __init__(self, session: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class EndResponse(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: int
    def __init__(self, sessions: _Optional[int] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("session", "tenant")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    session: str
    tenant: str
    def __init__(self, session: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class ExportResponse(_message.Message):
    __slots__ = ("piece", "parcel")
    PIECE_FIELD_NUMBER: _ClassVar[int]
    PARCEL_FIELD_NUMBER: _ClassVar[int]
    piece: bytes
    parcel: Parcel
    def __init__(self, piece: _Optional[bytes] = ..., parcel: _Optional[_Union[Parcel, _Mapping]] = ...) -> None: ...

class Parcel(_message.Message):
    __slots__ = ("sessions", "blocks", "bytes", "blocks_missing")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_MISSING_FIELD_NUMBER: _ClassVar[int]
    sessions: int
    blocks: int
    bytes: int
    blocks_missing: int
    def __init__(self, sessions: _Optional[int] = ..., blocks: _Optional[int] = ..., bytes: _Optional[int] = ..., blocks_missing: _Optional[int] = ...) -> None: ...

class ImportRequest(_message.Message):
    __slots__ = ("piece",)
    PIECE_FIELD_NUMBER: _ClassVar[int]
    piece: bytes
    def __init__(self, piece: _Optional[bytes] = ...) -> None: ...

class ImportResponse(_message.Message):
    __slots__ = ("sessions", "blocks", "blocks_new", "bytes_new", "blocks_known", "blocks_without_room")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_NEW_FIELD_NUMBER: _ClassVar[int]
    BYTES_NEW_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_KNOWN_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_WITHOUT_ROOM_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedScalarFieldContainer[str]
    blocks: int
    blocks_new: int
    bytes_new: int
    blocks_known: int
    blocks_without_room: int
    def __init__(self, sessions: _Optional[_Iterable[str]] = ..., blocks: _Optional[int] = ..., blocks_new: _Optional[int] = ..., bytes_new: _Optional[int] = ..., blocks_known: _Optional[int] = ..., blocks_without_room: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("blocks_left", "bytes_left", "blocks_written", "bytes_written", "blocks_refused", "over", "safe")
    class BlocksLeftEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class BytesLeftEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class BlocksWrittenEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class BytesWrittenEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class BlocksRefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    BLOCKS_LEFT_FIELD_NUMBER: _ClassVar[int]
    BYTES_LEFT_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    BYTES_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_REFUSED_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    SAFE_FIELD_NUMBER: _ClassVar[int]
    blocks_left: _containers.ScalarMap[str, int]
    bytes_left: _containers.ScalarMap[str, int]
    blocks_written: _containers.ScalarMap[str, int]
    bytes_written: _containers.ScalarMap[str, int]
    blocks_refused: _containers.ScalarMap[str, int]
    over: bool
    safe: bool
    def __init__(self, blocks_left: _Optional[_Mapping[str, int]] = ..., bytes_left: _Optional[_Mapping[str, int]] = ..., blocks_written: _Optional[_Mapping[str, int]] = ..., bytes_written: _Optional[_Mapping[str, int]] = ..., blocks_refused: _Optional[_Mapping[str, int]] = ..., over: bool = ..., safe: bool = ...) -> None: ...
