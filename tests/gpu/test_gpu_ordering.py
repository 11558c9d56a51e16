"""Copies keep their place among the engine's kernels: a kernel that only passes time stands before what must come first.

Each order is also tried without `after`. If that went well, the test could not see the mistake that it is for.
"""

import numpy as np
import pytest
from gpu_caches import BLOCKS, KINDS, Cache, finished, pick, stream_of

ITERATIONS = 200
UNORDERED = 20
CYCLES = 3_000_000  # about 2 ms


@pytest.fixture
def cache(torch):
    made = Cache(torch, KINDS[0])
    torch.cuda.synchronize()
    return made


@pytest.fixture
def compute(torch):
    """The engine's stream: not the default one, and not ordered with any other."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        yield stream
    stream.synchronize()


def save_late_pages(torch, cache, copier, arena, iterations: int, *, ordered: bool) -> int:
    """Bytes that differ, summed, when pages are written behind a delay and saved at once."""
    blocks, slots = pick(1, 4)
    pieces = cache.fragments(blocks, slots, arena.address)
    view, differing = arena.view(), 0
    for number in range(iterations):
        value = number % 251 + 1
        torch.cuda._sleep(CYCLES)
        cache.whole.fill_(value)
        after = stream_of(torch) if ordered else None
        finished(copier, copier.submit(pieces.engine, pieces.arena, pieces.size, after=after))
        for slot in slots:
            saved = view[slot * cache.slot_bytes :][: cache.block_bytes]
            differing += int(np.count_nonzero(saved != value))
        torch.cuda.current_stream().synchronize()
    return differing


@pytest.mark.parametrize("path", ["batch", "async", "kernel"])
def test_a_save_reads_what_compute_wrote_late(torch, cache, compute, arena, make_copier, path):
    copier = make_copier(path=path, low_priority=True)
    assert save_late_pages(torch, cache, copier, arena, ITERATIONS, ordered=True) == 0


def test_a_save_that_waits_for_nothing_reads_too_early(torch, cache, compute, arena, make_copier):
    copier = make_copier(low_priority=True)
    assert save_late_pages(torch, cache, copier, arena, UNORDERED, ordered=False) > 0


def test_a_save_waits_for_the_legacy_default_stream(torch, cache, arena, make_copier):
    assert stream_of(torch) == 0
    assert save_late_pages(torch, cache, make_copier(), arena, UNORDERED, ordered=True) == 0


def load_under_a_late_reader(torch, cache, copier, arena, iterations: int, *, ordered: bool) -> int:
    """Iterations in which a kernel, queued before the load, saw bytes of the load."""
    blocks, slots = pick(2, 4)
    pieces = cache.fragments(blocks, slots, arena.address)
    source, disturbed = arena.view()[: BLOCKS * cache.slot_bytes], 0
    for number in range(iterations):
        cache.whole.zero_()
        source[:] = number % 251 + 1
        torch.cuda.current_stream().synchronize()
        torch.cuda._sleep(CYCLES)
        seen = torch.count_nonzero(cache.whole)  # the former owner of the blocks reads them
        after = stream_of(torch) if ordered else None
        finished(copier, copier.submit(pieces.arena, pieces.engine, pieces.size, after=after))
        disturbed += int(seen) > 0
        assert torch.count_nonzero(cache.whole) == 4 * cache.block_bytes
    return disturbed


@pytest.mark.parametrize("path", ["batch", "async", "kernel"])
def test_a_load_writes_after_those_who_read_the_blocks_before(torch, cache, compute, arena, make_copier, path):
    assert load_under_a_late_reader(torch, cache, make_copier(path=path), arena, ITERATIONS // 4, ordered=True) == 0


def test_a_load_that_waits_for_nothing_disturbs_them(torch, cache, compute, arena, make_copier):
    assert load_under_a_late_reader(torch, cache, make_copier(), arena, UNORDERED, ordered=False) > 0


def test_a_loaded_block_survives_the_zeroing_that_was_queued_before(torch, cache, compute, arena, make_copier):
    copier, (blocks, slots) = make_copier(), pick(3, 4)
    pieces = cache.fragments(blocks, slots, arena.address)
    arena.view()[:] = 7
    for _ in range(UNORDERED):
        torch.cuda._sleep(CYCLES)
        cache.whole.zero_()
        finished(copier, copier.submit(pieces.arena, pieces.engine, pieces.size, after=stream_of(torch)))
        assert int(cache.whole.sum(dtype=torch.int64)) == 7 * 4 * cache.block_bytes


def test_submit_does_not_wait_for_the_stream(torch, cache, compute, arena, make_copier):
    copier, (blocks, slots) = make_copier(low_priority=True), pick(4, 1)
    pieces = cache.fragments(blocks, slots, arena.address)
    torch.cuda._sleep(CYCLES * 100)  # 0.1 s and more
    ticket = copier.submit(pieces.engine, pieces.arena, pieces.size, after=stream_of(torch))
    assert not copier.wait(ticket, 0.01)
    assert copier.pending == 1 and copier.poll() == []
    finished(copier, ticket)
    assert copier.pending == 0


def test_closing_finishes_what_was_submitted(torch, cache, compute, arena, make_copier):
    copier, (blocks, slots) = make_copier(), pick(5, 4)
    pieces = cache.fragments(blocks, slots, arena.address)
    arena.view()[:] = 0
    torch.cuda._sleep(CYCLES)
    cache.whole.fill_(9)
    ticket = copier.submit(pieces.engine, pieces.arena, pieces.size, after=stream_of(torch))
    copier.close()
    assert finished(copier, ticket)[0] == 4 * cache.block_bytes
    assert all((arena.view()[slot * cache.slot_bytes :][: cache.block_bytes] == 9).all() for slot in slots)
    with pytest.raises(RuntimeError, match="closed"):
        copier.submit(pieces.engine, pieces.arena, pieces.size)
