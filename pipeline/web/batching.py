"""Dynamic batching with back-pressure: callers ask one by one, the model answers them together.

While a batch is computed, whoever asks waits in a bounded queue; the next batch takes all that waits, up to `size`.
So a lone caller never waits for company, and under load the batches grow by themselves; the usual timer ("wait 10 ms
for more") would cost every lone caller those 10 ms and gain nothing on a busy model. A full queue refuses at once:
a refusal that says when to come again is better than memory that grows and answers that come too late.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Busy(Exception):
    """There is no room for more work now."""


@dataclass
class Waiting(Generic[Item, Answer]):
    """One asked item and where its answer goes; a caller that gives up cancels `answer`."""

    item: Item
    answer: "asyncio.Future[Answer]"


class Batcher(Generic[Item, Answer]):
    """Collects items and answers them by `work`, one batch at a time.

    Args:
        work: the answers to a batch of items, in order; runs in `executor`, never in the event loop.
        executor: batchers that share a model share an executor of one thread.
        size: items of a batch at most.
        room: items that may wait at most.
        seen: called with the size of every batch.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Answer]],
        executor: Executor,
        size: int,
        room: int,
        seen: Callable[[int], object] = lambda size: None,
    ) -> None:
        self.work, self.executor, self.size, self.room, self.seen = work, executor, size, room, seen
        self.waiting: list[Waiting[Item, Answer]] = []
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def ask(self, items: Sequence[Item]) -> list[Answer]:
        """The answers to `items`. Raises Busy where they don't all find room, and whatever `work` raises."""
        if len(self.waiting) + len(items) > self.room:
            raise Busy
        if self.task is None:
            self.task = asyncio.create_task(self._run())
        loop = asyncio.get_running_loop()
        asked = [Waiting(item, loop.create_future()) for item in items]
        self.waiting += asked
        self.wake.set()
        try:
            return [await waiting.answer for waiting in asked]
        finally:
            gave_up = [waiting.answer.cancel() for waiting in asked]  # False of those that are done already
            if any(gave_up):  # their room is for others, and so is the memory of their pictures
                self.waiting = [waiting for waiting in self.waiting if not waiting.answer.done()]
            for waiting in asked:
                if waiting.answer.done() and not waiting.answer.cancelled():
                    waiting.answer.exception()  # looked at, so that asyncio does not report it as lost

    async def close(self) -> None:
        """Stops working; whoever waits gets Busy."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        for waiting in self.waiting:
            if not waiting.answer.done():
                waiting.answer.set_exception(Busy())

    async def _run(self) -> None:
        while True:
            await self.wake.wait()
            batch = [waiting for waiting in self.waiting[: self.size] if not waiting.answer.done()]
            del self.waiting[: self.size]
            if not self.waiting:
                self.wake.clear()
            if batch:
                self.seen(len(batch))
                await self._answer(batch)

    async def _answer(self, batch: list[Waiting[Item, Answer]]) -> None:
        """Answers a batch; where it fails, each item alone, so that one bad item spoils no other's answer."""
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self.executor, self.work, [waiting.item for waiting in batch])
        except Exception as error:
            if len(batch) > 1:
                for waiting in batch:
                    await self._answer([waiting])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)


class Gate:
    """Lets requests in as long as their bodies together stay below `room` bytes."""

    def __init__(self, room: int) -> None:
        self.room, self.inside = room, 0

    @contextmanager
    def entered(self, size: int) -> Iterator[None]:
        """Holds room for `size` bytes. Raises Busy where there is not enough."""
        if self.inside + size > self.room:
            raise Busy
        self.inside += size
        try:
            yield
        finally:
            self.inside -= size
