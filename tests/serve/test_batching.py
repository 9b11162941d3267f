"""Who asks while the model works is answered together; who finds no room is told so at once."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.web.batching import Batcher, Busy, Gate


class Model:
    """Doubles numbers, one batch at a time, and not before it is let."""

    def __init__(self) -> None:
        self.go, self.began, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(list(items))
        self.began.set()
        assert self.go.wait(30)
        if 13 in items:
            raise ValueError("unlucky")
        return [2 * item for item in items]


def run(test, **sizes) -> Model:
    """Runs `test(batcher, model)` on an event loop of its own."""
    model = Model()

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(model, executor, **({"size": 4, "room": 8} | sizes))
            await test(batcher, model)
            model.go.set()
            await batcher.close()

    asyncio.run(main())
    return model


async def first_is_under_way(batcher: Batcher, model: Model) -> asyncio.Task:
    """A first caller whose batch the model holds."""
    first = asyncio.create_task(batcher.ask([0]))
    await asyncio.get_running_loop().run_in_executor(None, model.began.wait, 30)
    return first


def test_a_lone_caller_does_not_wait_for_company():
    async def test(batcher, model):
        model.go.set()
        assert await batcher.ask([7]) == [14]

    assert run(test).batches == [[7]]


def test_callers_that_wait_are_answered_together_each_with_its_own():
    async def test(batcher, model):
        first = await first_is_under_way(batcher, model)
        others = [asyncio.create_task(batcher.ask([number])) for number in range(1, 7)]
        await asyncio.sleep(0)
        model.go.set()
        assert await asyncio.gather(first, *others) == [[2 * number] for number in range(7)]

    assert run(test).batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_a_full_queue_refuses_at_once_and_takes_nothing_of_what_it_refuses():
    async def test(batcher, model):
        first = await first_is_under_way(batcher, model)
        others = asyncio.create_task(batcher.ask([1, 2, 3]))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await batcher.ask([4, 5])
        last = asyncio.create_task(batcher.ask([6]))
        await asyncio.sleep(0)
        model.go.set()
        assert await asyncio.gather(first, others, last) == [[0], [2, 4, 6], [12]]

    assert run(test, room=4).batches == [[0], [1, 2, 3, 6]]


def test_a_caller_that_gives_up_costs_the_model_nothing():
    async def test(batcher, model):
        first = await first_is_under_way(batcher, model)
        second, third = (asyncio.create_task(batcher.ask([number])) for number in (1, 2))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        model.go.set()
        assert await asyncio.gather(first, third) == [[0], [4]]

    assert run(test).batches == [[0], [2]]


def test_whoever_gives_up_leaves_its_room_at_once():
    async def test(batcher, model):
        first = await first_is_under_way(batcher, model)
        second = asyncio.create_task(batcher.ask([1, 2, 3]))
        third = asyncio.create_task(batcher.ask([4]))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert [waiting.item for waiting in batcher.waiting] == [4]
        last = asyncio.create_task(batcher.ask([5, 6, 7]))
        await asyncio.sleep(0)
        model.go.set()
        assert await asyncio.gather(first, third, last) == [[0], [8], [10, 12, 14]]

    assert run(test, room=4).batches == [[0], [4, 5, 6, 7]]


def test_one_bad_item_spoils_no_others_answer():
    async def test(batcher, model):
        first = await first_is_under_way(batcher, model)
        others = [asyncio.create_task(batcher.ask([number])) for number in (12, 13, 14)]
        await asyncio.sleep(0)
        model.go.set()
        answers = await asyncio.gather(first, *others, return_exceptions=True)
        assert answers[:2] + answers[3:] == [[0], [24], [28]]
        assert str(answers[2]) == "unlucky"

    run(test)


def test_whoever_waits_at_the_end_is_reported():
    async def test(batcher, model):
        first = await first_is_under_way(batcher, model)
        second = asyncio.create_task(batcher.ask([1]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        model.go.set()
        await closing
        with pytest.raises(Busy):
            await second
        first.cancel()

    run(test)


def test_the_gate_counts_the_bytes_that_are_inside():
    gate = Gate(10)
    with gate.entered(6):
        with pytest.raises(Busy), gate.entered(5):
            pass
        with gate.entered(4):
            assert gate.inside == 10
    assert gate.inside == 0
