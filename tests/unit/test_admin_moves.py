"""Export, Import and Drain of the admin API, on a store of its own: limits, callers that go away, faults of ours."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from arena_bytes import content_of
from idle_world import keys, letters

from kvtier.admin import PIECE_BYTES, admin_pb2, target_of
from kvtier.admin.admin_pb2_grpc import AdminStub
from kvtier.admin.service import MOVES_MAX, AdminService
from kvtier.block import KEY_BYTES, SLOT_UNIT, unpack_keys
from kvtier.session import Hints
from kvtier.store import BlockStore
from kvtier.visitor import Visitor

MIB = 1024**2
PATIENCE_S = 20.0
RED, BLUE = b"red".ljust(32), b"blue".ljust(32)
ROOT = bytes(32)
CHAT = keys("abcd")
STATE = {"is_over": False, "is_safe": False, "left": {"nvme": 3}, "left_bytes": {"nvme": 3 * MIB}, "written": {"nvme": 0},
         "written_bytes": {"nvme": 0}, "refused": {"ended": 1}}  # fmt: skip


class Node:
    """A store whose arena is an array, with a session `chat` of four blocks of 1 MiB, and its admin API."""

    def __init__(self, path: Path, prompt: bytes = CHAT) -> None:
        self.store = BlockStore(32 * MIB, lend_share=0.5, lease_share=0.5)
        self.arena = np.zeros(32 * MIB, np.uint8)
        self.faults: list[dict] = []  # of the loop, if this is the last that was made
        visitor = Visitor(self.store, self.arena, lambda: None, "admin")
        self.service = AdminService(self.store, lambda: None, visitor, ROOT)
        self.channel = grpc.aio.insecure_channel(target_of(path))
        self.admin = AdminStub(self.channel)
        if prompt:
            self.converse(prompt)

    def converse(self, prompt: bytes, engine: str = "a", namespace: bytes = RED) -> None:
        """One turn of the session, at an engine that joins for it."""
        self.store.join(engine, namespace, MIB, 16, 8, 0.0)
        slots = dict(self.store.lends())[engine][: len(prompt) // KEY_BYTES]
        for key, slot in zip(unpack_keys(prompt), slots, strict=True):
            self.arena[slot * SLOT_UNIT : slot * SLOT_UNIT + MIB] = np.frombuffer(content_of(key, MIB), np.uint8)
        self.store.begin(engine, "1", Hints("chat"))
        parents = bytes(KEY_BYTES) + prompt[:-KEY_BYTES]
        self.store.commit(engine, prompt, np.array(slots, np.uint32), parents, "1", 0.0)
        self.store.touch(engine, prompt, "1", 0.0)

    @property
    def pinned(self) -> int:
        """Blocks that somebody holds."""
        slots = self.store.ram.index.find(CHAT)
        return sum(self.store.ram.index.is_pinned(int(slot)) for slot in slots)

    async def export(self, session: str = "chat") -> tuple[list[bytes], list[admin_pb2.Parcel]]:
        answers = [answer async for answer in self.admin.Export(admin_pb2.ExportRequest(session=session))]
        parcels = [answer.parcel for answer in answers if answer.HasField("parcel")]
        return [answer.piece for answer in answers if answer.piece], parcels

    async def import_(self, pieces: AsyncIterator[bytes]) -> admin_pb2.ImportResponse:
        return await self.admin.Import(admin_pb2.ImportRequest(piece=piece) async for piece in pieces)


@asynccontextmanager
async def serving(path: Path, prompt: bytes = CHAT) -> AsyncIterator[Node]:
    node = Node(path, prompt)
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: node.faults.append(context))
    node.service.listen(path)
    await node.service.start()
    try:
        yield node
    finally:
        await node.channel.close()
        await node.service.stop(None)


@pytest.fixture
def with_nodes(tmp_path):
    """Runs what is to be done with a node that has the session, and one that knows nothing."""

    def run(work: Callable[[Node, Node], Awaitable[None]]) -> None:
        async def both() -> None:
            one, other = tmp_path / "one.sock", tmp_path / "other.sock"
            async with asyncio.timeout(PATIENCE_S), serving(one) as home, serving(other, b"") as away:
                await work(home, away)

        asyncio.run(both())

    return run


async def each(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def until(look: Callable[[], bool]) -> None:
    while not look():
        await asyncio.sleep(0.005)


async def refused(call: Awaitable) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


# --- what goes and comes -------------------------------------------------------------------------------------


def test_a_session_goes_in_pieces_and_comes_as_it_was(with_nodes):
    async def work(home: Node, away: Node) -> None:
        pieces, (first, last) = await home.export()
        assert first == last == admin_pb2.Parcel(sessions=1, blocks=4, bytes=4 * MIB)
        assert max(map(len, pieces)) == PIECE_BYTES
        answer = await away.import_(each(pieces))
        assert (list(answer.sessions), answer.blocks_new, answer.bytes_new) == (["chat"], 4, 4 * MIB)
        (session,) = away.store.retention._sessions
        assert (letters(session.keys), session.turns, str(session.state)) == ("abcd", 1, "idle")
        for key in unpack_keys(CHAT):
            slot = int(away.store.ram.index.find(key)[0])
            assert away.arena[slot * SLOT_UNIT : slot * SLOT_UNIT + MIB].tobytes() == content_of(key, MIB)
        assert home.faults == away.faults == [] and home.pinned == 0

    with_nodes(work)


@pytest.mark.parametrize("length", [1, 97, 70_001])
def test_it_makes_no_difference_where_the_pieces_end(with_nodes, length):
    async def work(home: Node, away: Node) -> None:
        file = b"".join((await home.export())[0])
        begin, rest = file[: 5000 * length], file[5000 * length :]
        pieces = [begin[at : at + length] for at in range(0, len(begin), length)] + [b""]
        pieces += [rest[at : at + PIECE_BYTES] for at in range(0, len(rest), PIECE_BYTES)]
        assert (await away.import_(each(pieces))).blocks_new == 4

    with_nodes(work)


def test_a_session_that_two_models_have_under_one_name_goes_as_two(with_nodes):
    async def work(home: Node, away: Node) -> None:
        home.converse(keys("xyz"), "b", BLUE)
        pieces, (_, last) = await home.export()
        assert (last.sessions, last.blocks) == (2, 7)
        answer = await away.import_(each(pieces))
        assert (list(answer.sessions), answer.blocks_new) == (["chat", "chat"], 7)
        digests = {known.number: digest for digest, known in away.store.namespaces.items()}
        found = {digests[session.namespace]: letters(session.keys) for session in away.store.retention._sessions}
        assert found == {RED: "abcd", BLUE: "xyz"}

    with_nodes(work)


def test_what_has_gone_ends_the_chain_and_is_missing(with_nodes):
    async def work(home: Node, away: Node) -> None:
        home.store.ram.drop([int(home.store.ram.index.find(CHAT[2 * KEY_BYTES : 3 * KEY_BYTES])[0])])
        pieces, (_, last) = await home.export()
        assert (last.blocks, last.blocks_missing) == (2, 2)
        answer = await away.import_(each(pieces))
        assert (answer.blocks, answer.blocks_new, answer.blocks_without_room) == (2, 2, 0)
        assert letters(next(iter(away.store.retention._sessions)).keys) == "abcd"

    with_nodes(work)


def test_nothing_left_is_nothing_to_export(with_nodes):
    async def work(home: Node, away: Node) -> None:
        home.store.ram.drop(home.store.ram.index.find(CHAT).tolist())
        code, said = await refused(home.export())
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert said == "nothing of it is in RAM or on a drive any more; its next request computes it anew"

    with_nodes(work)


# --- limits, and who goes away -------------------------------------------------------------------------------


def test_so_many_at_once_and_no_more(with_nodes):
    async def work(home: Node, away: Node) -> None:
        pieces, _ = await home.export()
        go_on = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield pieces[0]
            await go_on.wait()
            for piece in pieces[1:]:
                yield piece

        calls = [asyncio.ensure_future(away.import_(slowly())) for _ in range(MOVES_MAX)]
        await until(lambda: len(away.service._under_way) == MOVES_MAX)
        code, said = await refused(away.import_(each([])))
        assert (code, said) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "4 exports and imports")
        go_on.set()
        answers = await asyncio.gather(*calls)
        assert sum(answer.blocks_new for answer in answers) >= 4
        assert len(away.store.retention._sessions) == 1
        assert (await away.import_(each(pieces))).blocks_known == 4

    with_nodes(work)


def test_an_import_whose_caller_goes_away_gives_its_slot_back(with_nodes):
    async def work(home: Node, away: Node) -> None:
        pieces, _ = await home.export()

        async def half() -> AsyncIterator[bytes]:
            for piece in pieces[:7]:
                yield piece
            await asyncio.sleep(PATIENCE_S)

        call = asyncio.ensure_future(away.import_(half()))
        await until(lambda: away.store.ram.slots.taken_bytes == 2 * MIB)
        call.cancel()
        await until(lambda: away.store.ram.slots.taken_bytes == MIB and not away.service._under_way)
        assert (len(away.store.retention._sessions), away.faults) == (0, [])

    with_nodes(work)


def test_an_export_whose_caller_goes_away_lets_go_of_its_block(with_nodes):
    async def work(home: Node, away: Node) -> None:
        call = home.admin.Export(admin_pb2.ExportRequest(session="chat"))
        await call.read()
        await until(lambda: home.pinned > 0)
        call.cancel()
        await until(lambda: home.pinned == 0 and not home.service._under_way)
        assert home.faults == []

    with_nodes(work)


@pytest.mark.parametrize("broken", ["sizes", "read"])
def test_a_fault_of_ours_is_the_loops(with_nodes, broken):
    async def work(home: Node, away: Node) -> None:
        setattr(home.service._visitor, broken, None)
        await refused(home.export())
        assert [type(fault["exception"]) for fault in away.faults] == [TypeError]  # of the one loop

    with_nodes(work)


# --- draining ------------------------------------------------------------------------------------------------


class FakeDraining:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.over = False

    def begin(self, now: float) -> None:
        self.told.append("begin")

    def state(self) -> dict:
        return STATE | {"is_over": self.over, "is_safe": self.over}

    def end(self) -> None:
        self.told.append("end")


def test_a_drain_tells_how_far_it_is_until_it_is_over(with_nodes):
    async def work(home: Node, away: Node) -> None:
        draining = home.service._retention.draining = FakeDraining()
        call = home.admin.Drain(admin_pb2.DrainRequest())
        answer = await call.read()
        assert (dict(answer.blocks_left), dict(answer.blocks_refused)) == ({"nvme": 3}, {"ended": 1})
        assert not answer.over
        draining.over = True
        while not (answer := await call.read()).over:
            pass
        assert answer.safe
        await until(lambda: draining.told == ["begin", "end"])

    with_nodes(work)


def test_the_last_who_waits_for_a_drain_ends_it(with_nodes):
    async def work(home: Node, away: Node) -> None:
        draining = home.service._retention.draining = FakeDraining()
        calls = [home.admin.Drain(admin_pb2.DrainRequest()) for _ in range(2)]
        for call in calls:
            await call.read()
        calls[0].cancel()
        await until(lambda: home.service._drains == 1)
        assert draining.told == ["begin", "begin"]
        calls[1].cancel()
        await until(lambda: draining.told[-1] == "end")
        assert home.faults == []

    with_nodes(work)


def test_without_anything_below_a_drain_is_over_and_nothing_is_safe(with_nodes):
    async def work(home: Node, away: Node) -> None:
        (answer,) = [answer async for answer in home.admin.Drain(admin_pb2.DrainRequest())]
        assert (answer.over, answer.safe, dict(answer.blocks_left)) == (True, False, {})

    with_nodes(work)


def test_what_is_no_message_ends_the_import_and_nothing_else(with_nodes):
    async def work(home: Node, away: Node) -> None:
        async def nonsense() -> AsyncIterator[bytes]:
            yield b"\xff\xff"

        code, said = await refused(home.channel.stream_unary("/kvtier.v1.Admin/Import")(nonsense()))
        assert code == grpc.StatusCode.INVALID_ARGUMENT and "Error parsing message" in said
        assert home.faults == []
        assert (await home.admin.ListSessions(admin_pb2.ListSessionsRequest())).known == 1

    with_nodes(work)
