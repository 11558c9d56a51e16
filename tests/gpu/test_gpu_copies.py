"""Every byte of an engine's blocks comes back from the arena as it was, and no other byte changes."""

import numpy as np
import pytest
from gpu_caches import BLOCKS, KINDS, Cache, finished, pick, stream_of

MIB = 1 << 20
PATHS = ("auto", "batch", "async", "kernel")


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def cache(request, torch):
    made = Cache(torch, request.param)
    torch.cuda.synchronize()
    return made


def save(copier, cache: Cache, blocks: list[int], slots: list[int], memory: int, after: int | None) -> int:
    pieces = cache.fragments(blocks, slots, memory)
    return copier.submit(pieces.engine, pieces.arena, pieces.size, after=after)


def load(copier, cache: Cache, blocks: list[int], slots: list[int], memory: int, after: int | None) -> int:
    pieces = cache.fragments(blocks, slots, memory)
    return copier.submit(pieces.arena, pieces.engine, pieces.size, after=after)


def assert_round_trip(torch, cache: Cache, saver, loader, memory: int) -> None:
    blocks, slots = pick(1, 11)
    before = cache.whole.clone()
    size, seconds = finished(saver, save(saver, cache, blocks, slots, memory, stream_of(torch)))
    assert size == len(blocks) * cache.block_bytes and seconds > 0
    for page in cache.pages:
        page[blocks] = 0
    assert not torch.equal(cache.whole, before)
    finished(loader, load(loader, cache, blocks, slots, memory, stream_of(torch)))
    assert torch.equal(cache.whole, before)


@pytest.mark.parametrize("path", PATHS)
def test_blocks_come_back_bit_for_bit(torch, cache, arena, make_copier, path):
    page = int(cache.pages[0].shape[1])
    saver, loader = (make_copier(path=path, page_bytes=page, low_priority=low) for low in (True, False))
    assert_round_trip(torch, cache, saver, loader, arena.address)


@pytest.mark.parametrize("path", PATHS)
def test_a_load_into_other_blocks_touches_no_neighbour(torch, cache, arena, make_copier, path):
    copier = make_copier(path=path)
    blocks, slots = pick(2, 7)
    others = [block for block in range(BLOCKS) if block not in blocks][:7]
    finished(copier, save(copier, cache, blocks, slots, arena.address, stream_of(torch)))
    expected = cache.whole.clone()
    for page in cache.pages_of(expected):
        page[others] = page[blocks]
    finished(copier, load(copier, cache, others, slots, arena.address, stream_of(torch)))
    assert torch.equal(cache.whole, expected)


@pytest.mark.parametrize("path", PATHS)
def test_the_arena_gets_the_pages_layer_by_layer_and_nothing_else(torch, arena, make_copier, path):
    cache, copier = Cache(torch, KINDS[0]), make_copier(path=path)
    torch.cuda.synchronize()
    view = arena.view()
    view[:] = 0xA5
    blocks, slots = pick(3, 5)
    finished(copier, save(copier, cache, blocks, slots, arena.address, stream_of(torch)))
    expected = np.full_like(view, 0xA5)
    for block, slot in zip(blocks, slots):
        content = np.concatenate([page[block].cpu().numpy() for page in cache.pages])
        expected[slot * cache.slot_bytes :][: cache.block_bytes] = content
    assert np.array_equal(view, expected)


def test_blocks_in_a_row_come_back_when_their_fragments_merge(torch, arena, make_copier):
    cache, copier = Cache(torch, next(kind for kind in KINDS if kind.packed)), make_copier()
    row = list(range(BLOCKS))
    before = cache.whole.clone()
    finished(copier, save(copier, cache, row, row, arena.address, stream_of(torch)))
    cache.whole.zero_()
    finished(copier, load(copier, cache, row, row, arena.address, stream_of(torch)))
    assert torch.equal(cache.whole, before)


@pytest.mark.parametrize("path", PATHS)
def test_many_jobs_at_once_end_each_with_its_own_bytes(torch, arena, make_copier, path):
    cache, copier = Cache(torch, KINDS[1]), make_copier(path=path, page_bytes=8192)
    before = cache.whole.clone()
    blocks, slots = pick(4, BLOCKS)
    saved = [save(copier, cache, [b], [s], arena.address, stream_of(torch)) for b, s in zip(blocks, slots)]
    assert all(copier.wait(ticket, 30.0) for ticket in saved)
    cache.whole.zero_()
    loaded = [load(copier, cache, [b], [s], arena.address, stream_of(torch)) for b, s in zip(blocks, slots)]
    assert all(copier.wait(ticket, 30.0) for ticket in loaded)
    assert torch.equal(cache.whole, before)
    reports = copier.poll()
    assert sorted(ticket for ticket, *_ in reports) == saved + loaded
    assert {(size, error) for _, size, _, error in reports} == {(cache.block_bytes, "")}


def test_a_pace_is_kept_and_lifted_without_a_byte_lost(torch, arena, make_copier):
    cache, copier = Cache(torch, KINDS[0]), make_copier()
    blocks, slots = pick(5, BLOCKS)
    before = cache.whole.clone()
    finished(copier, save(copier, cache, blocks, slots, arena.address, stream_of(torch)))
    copier.pace(200_000_000)
    cache.whole.zero_()
    size, paced = finished(copier, load(copier, cache, blocks, slots, arena.address, stream_of(torch)))
    assert size == 48 * MIB
    assert 0.12 < paced < 1.0  # 0.25 s at that pace, less what the bucket holds at first
    assert torch.equal(cache.whole, before)
    copier.pace(0)
    assert finished(copier, load(copier, cache, blocks, slots, arena.address, stream_of(torch)))[1] < 0.1


def test_the_copier_says_which_way_it_copies(make_copier):
    copier = make_copier(page_bytes=8192)
    assert copier.path in PATHS[1:]
    assert all(isinstance(note, str) and note for note in copier.notes)
    assert make_copier(path="async").path == "async"
