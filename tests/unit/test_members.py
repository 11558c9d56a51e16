"""What the processes of one engine say of their copies, taken together."""

import socket

from kvtier import protocol
from kvtier.members import Client, Members

GIB = 1 << 30


def engine(*said: protocol.Mapped | None) -> Members:
    """With a worker for each of these words; None: it has said nothing yet."""
    workers = {Client(socket.socket(), 1, 0, 0.0, protocol.WORKER, "engine", word) for word in said}
    for worker in workers:
        worker.sock.close()
    return Members(7, workers=workers)


def test_an_engine_reads_the_gpu_tier_when_all_its_workers_do():
    reads, does_not = protocol.Mapped(maps_gpu=1), protocol.Mapped()
    assert engine(reads, reads).maps_gpu
    assert not engine(reads, does_not).maps_gpu
    assert not engine(reads, None).maps_gpu
    assert not engine().maps_gpu


def test_the_worker_that_could_register_least_says_what_is_slow():
    copying = engine(protocol.Mapped(4 * GIB, 0, "batch"), protocol.Mapped(3 * GIB, 0, "batch")).copying(4 * GIB)
    assert copying == {
        "copies": ["batch"],
        "maps_gpu": False,
        "pinned_bytes": 3 * GIB,
        "unpinned_bytes": 1 * GIB,
    }


def test_workers_on_the_cpu_need_nothing_registered():
    assert engine(protocol.Mapped(0, 0, "memcpy")).copying(4 * GIB)["unpinned_bytes"] == 0


def test_while_no_worker_can_copy_nothing_is_slow():
    assert engine(None).copying(GIB) == {"copies": [], "maps_gpu": False, "pinned_bytes": 0, "unpinned_bytes": 0}
