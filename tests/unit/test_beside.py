"""Work on whole blocks beside the loop: little of it on the loop itself, and memory that is used again."""

import asyncio
import re
import threading
import weakref
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from kvtier.tiers.remote.beside import ON_LOOP_BYTES, SPARE_MAX, THREADS, Beside

LARGE = 4 * 1024 * 1024


@pytest.fixture
def beside():
    made = Beside("test")
    yield made
    made.close()


@pytest.mark.parametrize(("size", "on_loop"), [(ON_LOOP_BYTES, True), (ON_LOOP_BYTES + 1, False)], ids=["little", "much"])
def test_little_is_done_on_the_loop_and_much_on_a_thread(beside, size, on_loop):
    async def where() -> bool:
        return await beside.do(size, lambda: threading.current_thread() is threading.main_thread())

    assert asyncio.run(where()) is on_loop


def test_so_many_at_once_and_the_loop_goes_on(beside):
    """Each waits for the others: one after the other they would never end."""
    together = threading.Barrier(THREADS + 1)

    async def all_at_once() -> None:
        works = [asyncio.create_task(beside.do(ON_LOOP_BYTES + 1, lambda: together.wait(30))) for _ in range(THREADS)]
        await asyncio.sleep(0.01)
        await asyncio.to_thread(together.wait, 30)
        await asyncio.gather(*works)

    asyncio.run(all_at_once())


@pytest.mark.parametrize("size", [1, ON_LOOP_BYTES + 1])
def test_what_the_work_raises_is_raised(beside, size):
    def work() -> None:
        raise KeyError("a reason")

    with pytest.raises(KeyError, match="a reason"):
        asyncio.run(beside.do(size, work))


def test_memory_is_used_again_while_others_have_some_and_little_is_kept(beside):
    with beside.memory(1000) as first:
        assert first.shape == (1000,) and first.dtype == np.uint8
        with beside.memory(1000) as second:
            assert not np.shares_memory(first, second)
        with beside.memory(900) as third:
            assert len(third) == 900 and np.shares_memory(third, second)
        taken = [beside.memory(1000 + n) for n in range(3 * SPARE_MAX)]
        for one in taken:
            one.__enter__()
        for one in taken:
            one.__exit__(None, None, None)
        assert len(beside._spare) == SPARE_MAX


def test_what_is_too_small_makes_way_for_the_size_that_is_in_demand(beside):
    with beside.memory(1):
        with beside.memory(1000):
            pass
        with beside.memory(2000):
            pass
        assert [len(one) for one in beside._spare] == [2000]


def test_where_nothing_is_under_way_no_memory_is_kept_and_nothing_of_a_block(beside):
    def resident() -> int:
        return 1024 * int(re.search(r"Rss: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text())[1])

    def use(stack: ExitStack) -> None:
        for _ in range(16):
            stack.enter_context(beside.memory(LARGE))[:] = 0xA5

    before = resident()
    for _ in range(3):
        with ExitStack() as stack:
            use(stack)
            assert resident() - before > 12 * LARGE
        assert beside._spare == [] and resident() - before < 4 * LARGE


def test_what_fails_gives_its_memory_back_too(beside):
    with pytest.raises(KeyError), beside.memory(1000) as memory:
        gone = weakref.ref(memory.base)
        del memory
        raise KeyError
    assert gone() is None and beside._spare == []


def test_who_is_cancelled_hears_of_it_when_the_memory_is_touched_no_more(beside):
    over = threading.Event()
    touched: list[bool] = []

    def work() -> None:
        over.wait(30)
        touched.append(True)

    async def cancel_it() -> None:
        task = asyncio.create_task(beside.do(ON_LOOP_BYTES + 1, work))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done() and not touched
        over.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert touched

    asyncio.run(cancel_it())
