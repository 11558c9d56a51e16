"""AdminService: what is said of idle sessions, carried out on the daemon's event loop.

Each call has a turn of the loop of its own, as what engines say has. A fault there is the loop's, and ends the daemon;
gRPC would keep it to itself.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kvtier.admin import CALLS_MAX, MESSAGE_BYTES_MAX, admin_pb2, target_of
from kvtier.admin.admin_pb2_grpc import AdminServicer, add_AdminServicer_to_server
from kvtier.admin.exporting import Exporting
from kvtier.admin.importing import Importing
from kvtier.errors import DaemonError
from kvtier.hints import SESSION_MAX
from kvtier.listener import SOCKET_MODE_OF_A_GROUP, make_way, only_the_owner, open_to
from kvtier.listing import LIMIT_MAX, SORTS
from kvtier.parcel import Damaged, ParcelError
from kvtier.session import TENANT_DIGITS, is_tenant
from kvtier.store import BlockStore
from kvtier.visitor import Visitor

SERVICE = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
SESSIONS_USUAL = 100  # in an answer
PIN_S_MAX = 365 * 86_400.0
MOVES_MAX = 4  # exports and imports at once: each has a block in its hands
DRAIN_LOOK_S = 0.2  # between two answers of a Drain
SPARE_BYTES, FRAMING_BYTES = 1024, 16  # of a full answer, and of each session in it
OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
)
CURE = "`kvtier sessions` lists those that are known"

T = TypeVar("T")


class AdminService(AdminServicer):
    def __init__(self, store: BlockStore, after_event: Callable[[], None], visitor: Visitor, root: bytes) -> None:
        self._store, self._visitor, self._root = store, visitor, root
        self._retention = store.retention
        self._after_event = after_event
        self._under_way: set[_Move] = set()  # exports and imports
        self._drains = 0  # calls
        self._forgetting: dict[int, asyncio.Future[dict[str, object]]] = {}  # ticket -> who waits
        self._server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=CALLS_MAX)
        self._health = health.aio.HealthServicer()

    # --- its life --------------------------------------------------------------------------------------------

    def listen(self, path: Path, gid: int | None = None) -> None:
        """Whoever connects waits; a group may, too, if one is named. DaemonError when the path can't be had or another
        kvtierd has it."""
        add_AdminServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        make_way(path, "admin.socket")
        try:
            with only_the_owner():
                self._server.add_insecure_port(target_of(path))
        except RuntimeError:
            raise DaemonError(f"can't listen on {path}; set admin.socket") from None
        open_to(path, gid, SOCKET_MODE_OF_A_GROUP, "admin.group")

    async def start(self) -> None:
        """Serves those who wait, and all who come, on the running loop."""
        await self._health.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def stop(self, grace_s: float | None) -> None:
        """New calls are refused now; those that run may end within the time. May be called again with less."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    def settle(self) -> None:
        """To be called a few times a second: answers the calls of which all is done."""
        for ticket, proof in self._retention.forgotten():
            waiting = self._forgetting.pop(ticket, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(proof)

    # --- the calls -------------------------------------------------------------------------------------------

    async def ListSessions(
        self, request: admin_pb2.ListSessionsRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ListSessionsResponse:
        """As many of the first as fit a message."""
        sort = request.sort or SORTS[0]
        if sort not in SORTS:
            await _refuse(context, f"sort: {sort[:SESSION_MAX]!r} is none of {', '.join(SORTS)}")
        await _check(request.session, request.tenant, context)
        limit = min(request.limit or SESSIONS_USUAL, LIMIT_MAX)

        def listed(now: float) -> tuple[list[dict], int]:
            states = self._retention.snapshot(now)["sessions"]
            assert isinstance(states, dict)
            return self._retention.sessions(now, sort, limit, request.session, request.tenant), sum(states.values())

        rows, known = await self._in_turn(listed)
        answer = admin_pb2.ListSessionsResponse(known=known)
        left = MESSAGE_BYTES_MAX - SPARE_BYTES
        for row in rows:
            session = admin_pb2.Session(**row)
            left -= session.ByteSize() + FRAMING_BYTES
            if left < 0:
                break
            answer.sessions.append(session)
        return answer

    async def Warm(self, request: admin_pb2.WarmRequest, context: grpc.aio.ServicerContext) -> admin_pb2.WarmResponse:
        await self._known(request.session, request.tenant, context)
        warm = self._retention.warm
        return admin_pb2.WarmResponse(blocks=await self._in_turn(lambda now: warm(request.session, now, request.tenant)))

    async def Park(self, request: admin_pb2.ParkRequest, context: grpc.aio.ServicerContext) -> admin_pb2.ParkResponse:
        await self._known(request.session, request.tenant, context)
        park = self._retention.park
        return admin_pb2.ParkResponse(blocks=await self._in_turn(lambda now: park(request.session, now, request.tenant)))

    async def Pin(self, request: admin_pb2.PinRequest, context: grpc.aio.ServicerContext) -> admin_pb2.PinResponse:
        seconds = request.seconds if request.HasField("seconds") else self._retention.pins.usual_s
        if not math.isfinite(seconds) or not 0 <= seconds <= PIN_S_MAX:
            await _refuse(context, f"seconds: {seconds:g} is not between 0 and {PIN_S_MAX:.0f}")
        await self._known(request.session, request.tenant, context)
        pin = self._retention.pin
        blocks = await self._in_turn(lambda now: pin(request.session, seconds, now, request.tenant))
        return admin_pb2.PinResponse(blocks=blocks)

    async def End(self, request: admin_pb2.EndRequest, context: grpc.aio.ServicerContext) -> admin_pb2.EndResponse:
        await self._known(request.session, request.tenant, context)
        end = self._retention.end
        return admin_pb2.EndResponse(sessions=await self._in_turn(lambda now: end(request.session, now, request.tenant)))

    async def Forget(self, request: admin_pb2.ForgetRequest, context: grpc.aio.ServicerContext) -> admin_pb2.ForgetResponse:
        """Of what drives kept over a restart nobody knows the name, but whose it is: so it is tried for any name, and
        the proof says whether there was something."""
        if not request.session and not request.tenant:
            await _refuse(context, "session, tenant: name one")
        await _check(request.session, request.tenant, context)
        over: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()

        def forget(now: float) -> None:
            self._forgetting[self._retention.forget(request.session, request.tenant, now)] = over

        await self._in_turn(forget)
        proof = await over
        answer = admin_pb2.ForgetResponse(**proof)  # type: ignore[arg-type]
        if not answer.sessions and not any(answer.blocks.values()) and not answer.shared_blocks_kept:
            await _unknown(context, request.session, request.tenant)
        return answer

    async def Export(self, request: admin_pb2.ExportRequest, context: grpc.aio.ServicerContext) -> None:
        await self._known(request.session, request.tenant, context)
        async with _Move(self._under_way, context):
            sessions = self._retention.moving.called(request.session, request.tenant)
            exporting = Exporting(self._store, self._visitor, self._root, sessions, time.monotonic())
            async with aclosing(exporting.answers()) as answers:
                async for answer in answers:
                    await context.write(answer)

    async def Import(
        self, requests: AsyncIterator[admin_pb2.ImportRequest], context: grpc.aio.ServicerContext
    ) -> admin_pb2.ImportResponse:
        async with _Move(self._under_way, context):
            pieces = (request.piece async for request in requests)
            answer = await Importing(self._store, self._visitor, self._root, pieces).run()
            self._after_event()
        return answer

    async def Drain(self, request: admin_pb2.DrainRequest, context: grpc.aio.ServicerContext) -> None:
        """Who goes away meanwhile leaves it to the others, and the last of them ends it."""
        draining = self._retention.draining
        self._drains += 1
        try:
            await self._in_turn(draining.begin)
            while True:
                answer = _drained(await self._in_turn(lambda now: draining.state()))
                await context.write(answer)
                if answer.over:
                    return
                await asyncio.sleep(DRAIN_LOOK_S)
        finally:
            self._drains -= 1
            if not self._drains:
                asyncio.get_running_loop().call_soon(draining.end)

    # --- shared by them --------------------------------------------------------------------------------------

    async def _known(self, session: str, tenant: str, context: grpc.aio.ServicerContext) -> None:
        """Or the call ends here."""
        if not session:
            await _refuse(context, "session: name one")
        await _check(session, tenant, context)
        if not self._retention.knows(session, tenant):
            await _unknown(context, session, tenant)

    async def _in_turn(self, work: Callable[[float], T]) -> T:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def turn() -> None:
            if not answer.done():  # else the caller has gone away
                answer.set_result(work(time.monotonic()))
                self._after_event()

        asyncio.get_running_loop().call_soon(turn)
        return await answer


async def _check(session: str, tenant: str, context: grpc.aio.ServicerContext) -> None:
    if len(session) > SESSION_MAX:
        await _refuse(context, f"session: a name has at most {SESSION_MAX} letters")
    if tenant and not is_tenant(tenant):
        await _refuse(context, f"tenant: {TENANT_DIGITS} hex digits, as `kvtier sessions` lists it")


async def _unknown(context: grpc.aio.ServicerContext, session: str, tenant: str) -> NoReturn:
    what = f"session {session!r}" if session else "session"
    of = f" of tenant {tenant}" if tenant else ""
    await context.abort(grpc.StatusCode.NOT_FOUND, f"no {what}{of} is known; {CURE}")
    raise AssertionError("abort raises")


async def _refuse(context: grpc.aio.ServicerContext, message: str) -> NoReturn:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
    raise AssertionError("abort raises")


def _drained(state: Mapping[str, Any]) -> admin_pb2.DrainResponse:
    return admin_pb2.DrainResponse(
        blocks_left=state["left"],
        bytes_left=state["left_bytes"],
        blocks_written=state["written"],
        bytes_written=state["written_bytes"],
        blocks_refused=state["refused"],
        over=state["is_over"],
        safe=state["is_safe"],
    )


class _Move:
    """An export or an import. What can't be done is told its caller; a fault of ours is the loop's, and ends the daemon."""

    def __init__(self, others: "set[_Move]", context: grpc.aio.ServicerContext) -> None:
        self._others, self._context = others, context

    async def __aenter__(self) -> None:
        if len(self._others) >= MOVES_MAX:
            await self._context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MOVES_MAX} exports and imports")
        self._others.add(self)

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._others.discard(self)
        if isinstance(error, ParcelError):
            is_damaged = isinstance(error, Damaged)
            code = grpc.StatusCode.DATA_LOSS if is_damaged else grpc.StatusCode.FAILED_PRECONDITION
            await self._context.abort(code, str(error))
        elif isinstance(error, DecodeError):  # what came next was no message
            await self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        elif isinstance(error, Exception) and not isinstance(error, grpc.aio.BaseError):  # else its caller has gone
            asyncio.get_running_loop().call_exception_handler({"message": "an export or import", "exception": error})
