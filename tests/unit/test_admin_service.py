"""The admin API's server, on a loop of its own: what it takes, what it refuses, and how it tells."""

import asyncio
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from retention_fake import FakeRetention, row

from kvtier.admin import CALLS_MAX, MESSAGE_BYTES_MAX, admin_pb2, target_of
from kvtier.admin.admin_pb2_grpc import AdminStub
from kvtier.admin.service import SERVICE, AdminService
from kvtier.errors import DaemonError
from kvtier.listing import SORTS

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0


def service_of(retention: FakeRetention, after_event: Callable[[], None]) -> AdminService:
    """Of a store that has no blocks."""
    return AdminService(SimpleNamespace(retention=retention), after_event, None, bytes(32))  # type: ignore


class Served:
    """A server, and a caller of it."""

    def __init__(self, path: Path, retention: FakeRetention) -> None:
        self.path, self.retention = path, retention
        self.service = service_of(retention, lambda: self.service.settle())
        self.channel = grpc.aio.insecure_channel(target_of(path))
        self.admin = AdminStub(self.channel)


@asynccontextmanager
async def serving(path: Path, *rows: dict) -> AsyncIterator[Served]:
    served = Served(path, FakeRetention(*rows))
    served.service.listen(path)
    await served.service.start()
    try:
        yield served
    finally:
        await served.channel.close()
        await served.service.stop(None)


@pytest.fixture
def with_server(tmp_path):
    """Runs what is to be done with a server that knows these sessions."""

    def run(work: Callable[[Served], Awaitable[None]], *rows: dict, path: Path = tmp_path / "admin.sock") -> None:
        async def both() -> None:
            async with asyncio.timeout(PATIENCE_S), serving(path, *rows) as served:
                await work(served)

        asyncio.run(both())

    return run


async def refused(call: Awaitable) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


# --- what is said --------------------------------------------------------------------------------------------


def test_a_session_is_listed_with_all_that_is_known_of_it(with_server):
    async def work(served: Served) -> None:
        answer = await served.admin.ListSessions(admin_pb2.ListSessionsRequest(sort="bytes", limit=1))
        (session,) = answer.sessions
        assert answer.known == 2
        assert (session.session, session.state, session.turns, session.tokens) == ("chat", "idle", 3, 12_345)
        assert dict(session.bytes) == {"cpu": 3 * 1024**2, "nvme": 1024**2}
        assert session.expected_return_s == 90.0
        assert not session.HasField("ttl_left_s")
        assert served.retention.told == [("sessions", "bytes", 1)]

    with_server(work, row(), row("other"))


def test_a_return_that_nobody_expects_is_absent(with_server):
    async def work(served: Served) -> None:
        (session,) = (await served.admin.ListSessions(admin_pb2.ListSessionsRequest())).sessions
        assert not session.HasField("expected_return_s")
        assert session.ttl_left_s == 5.0

    with_server(work, row(expected_return_s=None, ttl_left_s=5.0))


def test_without_a_limit_a_hundred_are_listed_and_never_more_than_a_thousand(with_server):
    async def work(served: Served) -> None:
        assert len((await served.admin.ListSessions(admin_pb2.ListSessionsRequest())).sessions) == 100
        assert len((await served.admin.ListSessions(admin_pb2.ListSessionsRequest(limit=99_999))).sessions) == 1000

    with_server(work, *(row(f"chat {i}") for i in range(1200)))


def test_a_list_of_the_longest_names_fits_a_message(with_server):
    async def work(served: Served) -> None:
        answer = await served.admin.ListSessions(admin_pb2.ListSessionsRequest(limit=1000))
        assert 500 < len(answer.sessions) < 1000 == answer.known
        assert 0.97 * MESSAGE_BYTES_MAX < answer.ByteSize() < MESSAGE_BYTES_MAX

    with_server(work, *(row("\U0001f600" * 128, tool="\U0001f600" * 128) for _ in range(1000)))


def test_every_verb_reaches_the_session_that_it_names(with_server):
    async def work(served: Served) -> None:
        named = {"session": "chat", "tenant": "00112233aabb"}
        assert (await served.admin.Warm(admin_pb2.WarmRequest(**named))).blocks == 1
        assert (await served.admin.Park(admin_pb2.ParkRequest(**named))).blocks == 3
        assert (await served.admin.End(admin_pb2.EndRequest(**named))).sessions == 1
        assert served.retention.told == [(verb, "chat", "00112233aabb") for verb in ("warm", "park", "end")]

    with_server(work, row(tenant="00112233aabb"))


def test_a_pin_lasts_as_long_as_is_said_or_as_is_usual_and_0_ends_it(with_server):
    async def work(served: Served) -> None:
        for seconds in (90.0, None, 0.0):
            assert (await served.admin.Pin(admin_pb2.PinRequest(session="chat", seconds=seconds))).blocks == 3
        assert served.retention.told == [("pin", "chat", 90.0), ("pin", "chat", 3600.0), ("pin", "chat", 0.0)]

    with_server(work, row())


def test_forgetting_answers_with_the_proof(with_server):
    async def work(served: Served) -> None:
        proof = await served.admin.Forget(admin_pb2.ForgetRequest(session="chat"))
        assert (proof.sessions, proof.shared_blocks_kept) == (1, 0)
        assert dict(proof.blocks) == {"cpu": 3, "nvme": 1}
        assert dict(proof.bytes_zeroed) == {"cpu": 3 * 1024**2, "nvme": 1024**2}
        answer = await served.admin.ListSessions(admin_pb2.ListSessionsRequest())
        assert [session.session for session in answer.sessions] == ["other"]

    with_server(work, row(), row("other"))


def test_a_tenant_is_forgotten_with_all_its_sessions(with_server):
    async def work(served: Served) -> None:
        assert (await served.admin.Forget(admin_pb2.ForgetRequest(tenant="0" * 12))).sessions == 2
        assert [r["session"] for r in served.retention.rows] == ["other's"]

    with_server(work, row(tenant="0" * 12), row("second", tenant="0" * 12), row("other's", tenant="1" * 12))


def test_forgetting_answers_only_when_it_is_through(with_server):
    async def work(served: Served) -> None:
        served.retention.is_slow = True
        call = asyncio.ensure_future(served.admin.Forget(admin_pb2.ForgetRequest(session="chat")))
        done, _ = await asyncio.wait([call], timeout=0.2)
        assert not done
        served.retention.is_slow = False
        served.service.settle()
        assert (await call).sessions == 1

    with_server(work, row())


def test_whoever_waits_no_longer_is_not_answered_and_nobody_minds(with_server):
    async def work(served: Served) -> None:
        served.retention.is_slow = True
        code, _ = await refused(served.admin.Forget(admin_pb2.ForgetRequest(session="chat"), timeout=0.1))
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        served.retention.is_slow = False
        served.service.settle()
        assert (await served.admin.Warm(admin_pb2.WarmRequest(session="other"))).blocks == 1

    with_server(work, row(), row("other"))


# --- what is refused -----------------------------------------------------------------------------------------


def test_a_session_that_nobody_knows_is_not_found_and_the_cure_is_named(with_server):
    async def work(served: Served) -> None:
        requests = (admin_pb2.WarmRequest, admin_pb2.ParkRequest, admin_pb2.PinRequest, admin_pb2.EndRequest,
                    admin_pb2.ForgetRequest)  # fmt: skip
        for request in requests:
            method = getattr(served.admin, request.__name__.removesuffix("Request"))
            code, details = await refused(method(request(session="nobody")))
            assert code == grpc.StatusCode.NOT_FOUND
            assert details == "no session 'nobody' is known; `kvtier sessions` lists those that are known"
        _, details = await refused(served.admin.Warm(admin_pb2.WarmRequest(session="chat", tenant="a" * 12)))
        assert details.startswith("no session 'chat' of tenant aaaaaaaaaaaa is known")

    with_server(work, row())


@pytest.mark.parametrize(
    ("method", "request_", "complaint"),
    [
        ("ListSessions", admin_pb2.ListSessionsRequest(sort="size"), f"sort: 'size' is none of {', '.join(SORTS)}"),
        ("ListSessions", admin_pb2.ListSessionsRequest(tenant="me"), "tenant: 12 hex digits, as"),
        ("Warm", admin_pb2.WarmRequest(), "session: name one"),
        ("Park", admin_pb2.ParkRequest(session="x" * 129), "session: a name has at most 128 letters"),
        ("End", admin_pb2.EndRequest(session="chat", tenant="0011223344FF"), "tenant: 12 hex digits"),
        ("Pin", admin_pb2.PinRequest(session="chat", seconds=-1), "seconds: -1 is not between 0 and 31536000"),
        ("Pin", admin_pb2.PinRequest(session="chat", seconds=float("nan")), "seconds: nan is not between"),
        ("Pin", admin_pb2.PinRequest(session="chat", seconds=float("inf")), "seconds: inf is not between"),
        ("Forget", admin_pb2.ForgetRequest(), "session, tenant: name one"),
    ],
)
def test_a_wrong_field_is_named_and_changes_nothing(with_server, method, request_, complaint):
    async def work(served: Served) -> None:
        code, details = await refused(getattr(served.admin, method)(request_))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith(complaint)
        assert served.retention.told == []
        assert len(served.retention.rows) == 1

    with_server(work, row())


def test_a_message_over_a_mebibyte_is_refused(with_server):
    async def work(served: Served) -> None:
        too_long = admin_pb2.WarmRequest(session="x" * MESSAGE_BYTES_MAX)
        code, _ = await refused(served.admin.Warm(too_long))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await served.admin.Warm(admin_pb2.WarmRequest(session="chat"))).blocks == 1

    with_server(work, row())


def test_one_call_more_than_allowed_is_refused_and_the_others_go_on(with_server):
    async def work(served: Served) -> None:
        served.retention.is_slow = True
        calls = [
            asyncio.ensure_future(served.admin.Forget(admin_pb2.ForgetRequest(session=f"chat {i}")))
            for i in range(CALLS_MAX + 1)
        ]
        (first,), waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert isinstance(first.exception(), grpc.aio.AioRpcError)
        assert first.exception().code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        while len(served.retention.rows) > 1:
            await asyncio.sleep(0.01)
        served.retention.is_slow = False
        served.service.settle()
        assert [answer.sessions for answer in await asyncio.gather(*waiting)] == [1] * CALLS_MAX

    with_server(work, *(row(f"chat {i}") for i in range(CALLS_MAX + 1)))


def test_a_fault_is_the_loops_and_not_an_answer(with_server):
    async def work(served: Served) -> None:
        faults: list[dict] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
        served.retention.warm = None
        call = served.admin.Warm(admin_pb2.WarmRequest(session="chat"), timeout=0.5)
        assert (await refused(call))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
        assert [type(fault["exception"]) for fault in faults] == [TypeError]

    with_server(work, row())


# --- its socket, health and reflection -----------------------------------------------------------------------


def test_the_socket_is_its_owners_alone_and_goes_with_the_server(with_server, tmp_path):
    path = tmp_path / "made" / "a b%41" / "admin.sock"

    async def work(served: Served) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert (await served.admin.Warm(admin_pb2.WarmRequest(session="chat"))).blocks == 1

    with_server(work, row(), path=path)
    assert not path.exists()


def test_a_socket_that_a_dead_daemon_left_is_replaced_and_a_live_one_is_not(tmp_path):
    path = tmp_path / "admin.sock"
    left = f"import socket; socket.socket(socket.AF_UNIX).bind({str(path)!r})"
    subprocess.run([sys.executable, "-c", left], check=True)
    assert path.is_socket()

    async def both() -> None:
        async with serving(path, row()) as first:
            second = service_of(FakeRetention(), lambda: None)
            with pytest.raises(DaemonError, match=r"another kvtierd listens on .*; stop it, or set admin.socket"):
                second.listen(path)
            assert (await first.admin.Warm(admin_pb2.WarmRequest(session="chat"))).blocks == 1

    asyncio.run(both())


@pytest.mark.parametrize("name", ["no/folder", "x" * 200])
def test_where_no_socket_can_be_the_setting_is_named(tmp_path, name):
    (tmp_path / "no").write_text("a file")

    async def start() -> None:
        service = service_of(FakeRetention(), lambda: None)
        with pytest.raises(DaemonError, match=r"set admin\.socket"):
            service.listen(tmp_path / name)

    asyncio.run(start())


def test_it_says_that_it_is_well_and_what_it_offers(with_server):
    async def work(served: Served) -> None:
        health = health_pb2_grpc.HealthStub(served.channel)
        for service in ("", SERVICE):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        stream = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo(iter([asked]))
        async for answer in stream:
            names = {service.name for service in answer.list_services_response.service}
            assert names == {"kvtier.v1.Admin", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
            break

    with_server(work)


async def stopped_within_a_call(served: Served) -> tuple[Awaitable, Awaitable]:
    """The call, which is slow, and the server's end, which waits for it."""
    served.retention.is_slow = True
    call = asyncio.ensure_future(served.admin.Forget(admin_pb2.ForgetRequest(session="chat")))
    while served.retention.rows:
        await asyncio.sleep(0.01)
    return call, asyncio.ensure_future(served.service.stop(PATIENCE_S))


def test_at_its_end_what_runs_may_finish_and_nothing_new_begins(with_server):
    async def work(served: Served) -> None:
        call, stopping = await stopped_within_a_call(served)
        await asyncio.sleep(0.1)
        assert not served.path.exists()
        served.retention.is_slow = False
        served.service.settle()
        assert (await call).sessions == 1
        await stopping

    with_server(work, row())


def test_an_end_that_shall_wait_can_be_cut_short(with_server):
    async def work(served: Served) -> None:
        call, stopping = await stopped_within_a_call(served)
        await asyncio.sleep(0.05)
        await served.service.stop(None)
        await stopping
        assert (await refused(call))[0] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

    with_server(work, row())


# --- the stubs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["admin", "peer"])
def test_the_stubs_that_are_shipped_are_those_of_the_service(tmp_path, name):
    """When not: make stubs. Any compiler makes the same, but for the versions that it names."""
    pytest.importorskip("grpc_tools")
    options = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    compiler = [sys.executable, "-P", "-m", "grpc_tools.protoc", "-I.", *options, f"kvtier/{name}/{name}.proto"]
    subprocess.run(compiler, cwd=ROOT, check=True)
    for ending, begin in (("_pb2.py", "DESCRIPTOR ="), ("_pb2.pyi", "DESCRIPTOR:"), ("_pb2_grpc.py", "class ")):
        made, shipped = (essence(folder / "kvtier" / name / f"{name}{ending}", begin) for folder in (tmp_path, ROOT))
        assert made == shipped, ending


def essence(stub: Path, begin: str) -> list[str]:
    """What follows its imports, as any compiler writes it."""
    text = stub.read_text()
    return text[text.index(f"\n{begin}") :].replace("(object):", ":").replace("_Optional[bool]", "bool").splitlines()


def test_the_stubs_warn_of_nothing_when_they_are_loaded():
    loaded = "import kvtier.admin.admin_pb2_grpc, grpc_health.v1.health, grpc_reflection.v1alpha.reflection"
    ended = subprocess.run([sys.executable, "-W", "error", "-c", loaded], capture_output=True, text=True, cwd=ROOT)
    assert (ended.returncode, ended.stderr) == (0, "")
