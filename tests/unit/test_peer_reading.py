"""What a peer sends that is no message ends its call, and nothing stays of it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kvtier.peer.reading import Reading

STREAMS = 4  # at once, on a connection
NONSENSE = b"\xff\xff"
CHECK, REFLECTION = "/grpc.health.v1.Health/Check", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    """To a server with a method of one request, and one with a stream of them."""
    options = [("grpc.max_concurrent_streams", STREAMS)]
    server = grpc.server(ThreadPoolExecutor(2), interceptors=(Reading(),), options=options)
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    reflection.enable_server_reflection((health.SERVICE_NAME,), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    server.stop(None).wait()


def answer_to(call) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value.code()


def test_it_is_refused_each_time_and_its_connection_goes_on(channel):
    check = channel.unary_unary(CHECK)
    for _ in range(3 * STREAMS):
        assert answer_to(lambda: check(NONSENSE, timeout=30)) == grpc.StatusCode.INVALID_ARGUMENT
    answer = check(health_pb2.HealthCheckRequest().SerializeToString(), timeout=30)
    assert health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING


def test_so_is_one_within_a_stream(channel):
    ask = channel.stream_stream(REFLECTION)
    for _ in range(3 * STREAMS):
        assert answer_to(lambda: next(ask(iter([NONSENSE]), timeout=30))) == grpc.StatusCode.INVALID_ARGUMENT


def test_a_method_that_there_is_not_is_still_unknown(channel):
    assert answer_to(lambda: channel.unary_unary("/no/such")(b"", timeout=30)) == grpc.StatusCode.UNIMPLEMENTED
