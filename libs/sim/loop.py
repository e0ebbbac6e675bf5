"""An asyncio loop whose clock moves instead of waiting, and processes that can be stopped and killed in it.

No sockets, no threads, no real time: when nothing is runnable the clock jumps to the next timer. Every handle
runs in the context of the process that armed it, so that a stopped process (SIGSTOP) stands still as a whole
while messages and timers pile up for it, and a killed one never does anything again.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

WALL_ZERO = datetime(2026, 1, 1, tzinfo=UTC)
SPINS_MOST = 100_000
SOCKET_READ_S = 0.004
PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class DeadlockError(RuntimeError):
    """Nothing is runnable and no timer is armed: time could never move again."""


class _Handle(asyncio.TimerHandle):
    """A callback that is due at a time. Leaner than asyncio's own, which is made for debugging, too."""

    __slots__ = ()

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: SimLoop,
        context: contextvars.Context,
    ) -> None:
        self._when = when
        self._callback, self._args = callback, args
        self._cancelled = False
        self._loop = loop
        self._context = context
        self._source_traceback = None

    def cancel(self) -> None:
        self._cancelled = True
        self._callback, self._args = _nothing, ()

    def __repr__(self) -> str:
        return f"<_Handle at {self._when:.3f} of {self._callback!r}>"


class Nap:
    """What a task awaits when nothing but time is to pass: `await loop.nap(0.01)`.

    A future to the task, and its own timer to the loop, so that time wakes the task at once. asyncio.sleep is a
    coroutine, a future, a timer that sets it, and one turn more; and half of all that happens here is a nap."""

    __slots__ = ("_args", "_asyncio_future_blocking", "_callback", "_cancelled", "_context", "_loop", "_when")

    def __init__(self, loop: SimLoop, when: float) -> None:
        self._loop, self._when = loop, when
        self._cancelled = self._asyncio_future_blocking = False

    def __await__(self) -> Generator[Nap, None, None]:
        self._asyncio_future_blocking = True  # asyncio's word for: this is a future, and it is awaited
        yield self

    # -- what a task asks of a future

    def add_done_callback(self, wake: Callable[..., object], *, context: contextvars.Context) -> None:
        self._callback, self._args, self._context = wake, (self,), context
        self._loop.arm(self)

    def cancel(self, msg: object = None) -> bool:
        if self._cancelled:
            return False
        self._cancelled = True
        self._loop.call_soon(self._callback, self, context=self._context)
        return True

    def result(self) -> None:
        if self._cancelled:
            raise asyncio.CancelledError


_Due = tuple[contextvars.Context, Callable[..., object], tuple[Any, ...]]


class _Unseen(asyncio.Handle):
    """What call_soon returns to asyncio's tasks and futures, which never look at it."""

    def __init__(self) -> None:
        """Of nothing."""

    def cancel(self) -> None:
        raise NotImplementedError("a callback that was armed with a context of its own cannot be recalled")

    def __repr__(self) -> str:
        return "<_Unseen>"


_UNSEEN = _Unseen()


def _nothing() -> None:
    """What a cancelled handle would do."""


class SimLoop(asyncio.BaseEventLoop):
    """Virtual time. `asyncio.Runner(loop_factory=SimLoop)` or `run_until_complete`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._stopping = False  # asyncio's own, which its stubs do not know
        self._due: deque[_Due | _Handle | Nap] = deque()
        self._timers: list[tuple[float, int, _Handle | Nap]] = []
        self._count = self._spins = 0
        self._world = contextvars.Context()
        self.failures: list[tuple[Process | None, BaseException]] = []
        """Errors that no task caught: a programmer's error of whoever armed the callback."""

    def time(self) -> float:
        return self.now

    def nap(self, delay: float) -> Nap:
        """Something to await for so long: asyncio.sleep for what is made for this loop only."""
        return Nap(self, self.now + delay)

    def arm(self, nap: Nap) -> None:
        self._count += 1
        heapq.heappush(self._timers, (nap._when, self._count, nap))

    # asyncio's stubs type `args` by a variable tuple, which an override cannot repeat without its internals
    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if context is not None:
            self._due.append((context, callback, args))
            return _UNSEEN
        handle = _Handle(self.now, callback, args, self, contextvars.copy_context())
        self._due.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        if context is None:
            context = contextvars.copy_context()
        handle = _Handle(when, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def world_at(self, when: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        """As call_at, for what the world does by itself: it belongs to no process."""
        return self.call_at(when, callback, *args, context=self._world)

    def world_later(self, delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=self._world)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None, **more: Any) -> Any:
        """A task that shares the fate of the process it is started by."""
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context, **more)
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is not None:
            process.adopt(task)
        return task

    def _run_once(self) -> None:
        """Turn after turn until the loop is stopped; called by asyncio's run_forever, which would ask after each."""
        due, failures = self._due, self.failures
        args: Sequence[Any]
        while not self._stopping:
            if not due:
                self._advance()
            self._spins += 1
            if self._spins > SPINS_MOST:
                self._spins = 0
                raise DeadlockError(
                    f"at {self.now:.3f} s time stands still: something is done again and again"
                )
            for _ in range(len(due)):
                one = due.popleft()
                if isinstance(one, tuple):
                    context, callback, args = one
                elif one._cancelled:
                    continue
                else:
                    context, callback, args = one._context, one._callback, one._args
                process = context.get(PROCESS)
                if process is not None and process.stopped:
                    process.held.append(one)
                    continue
                try:
                    context.run(callback, *args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001  kept, and judged by whoever runs the world
                    failures.append((process, error))

    def _advance(self) -> None:
        timers, due = self._timers, self._due
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not timers:
            raise DeadlockError(f"at {self.now:.3f} s nothing is runnable and no timer is armed")
        now = timers[0][0]
        if now > self.now:
            self.now, self._spins = now, 0
        else:
            now = self.now
        while timers and timers[0][0] <= now:
            handle = heapq.heappop(timers)[2]
            if not handle._cancelled:
                due.append(handle)

    def requeue(self, handles: Iterable[_Due | _Handle | Nap]) -> None:
        """What piled up for a process that goes on."""
        self._due.extend(handles)


class Process:
    """One operating-system process: all that runs in its context shares its fate.

    `strike` kills it at its n-th call to the world from now on, routine ones apart: at that very await."""

    def __init__(self, loop: SimLoop, name: str, node: str) -> None:
        self.loop, self.name, self.node = loop, name, node
        self.alive, self.stopped = True, False
        self.held: deque[_Due | _Handle | Nap] = deque()
        self.unread: list[Callable[..., object]] = []
        """Callbacks that take what came over the network."""
        self.strike: int | None = None
        self.struck: Callable[[Process], None] = _forget
        self._tasks: dict[int, asyncio.Task[Any]] = {}
        self._numbers = 0
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str | None = None) -> asyncio.Task[Any]:
        """Run something as this process."""
        task: asyncio.Task[Any] = self.loop.create_task(work, name=name, context=self.context)
        return task

    def adopt(self, task: asyncio.Task[Any]) -> None:
        self._numbers += 1
        self._tasks[self._numbers] = task
        if len(self._tasks) > 256:
            self._tasks = {number: one for number, one in self._tasks.items() if not one.done()}

    def stop(self) -> None:
        """As SIGSTOP."""
        self.stopped = True

    def resume(self) -> None:
        """As SIGCONT: timers that are overdue fire now, and what lies unread in the socket is read a little
        later, in its order: whoever trusts his timers first takes everybody for silent."""
        self.stopped = False
        held, self.held = self.held, deque()
        unread = [one for one in held if isinstance(one, _Handle) and one._callback in self.unread]
        self.loop.requeue(one for one in held if one not in unread)
        for handle in unread:
            self.loop.call_later(SOCKET_READ_S, handle._callback, *handle._args, context=self.context)

    def kill(self) -> None:
        """As SIGKILL: memory is lost, and no last word reaches the world, since every port checks `alive`.

        The tasks are unwound so that Python's own `finally` blocks run now and not at some collection."""
        if not self.alive:
            return
        self.alive = False
        self.resume()
        for task in self._tasks.values():
            task.cancel()

    def enter(self, *, routine: bool = False) -> None:
        """Called by every port at every call: here a process can die. Raises CancelledError where it has.

        `routine` is what a process does all the time whether anything happens or not."""
        if self.strike is not None and not routine:
            self.strike -= 1
            if self.strike <= 0:
                self.strike = None
                self.struck(self)
        if not self.alive:
            raise asyncio.CancelledError(f"{self.name} was killed")


def _forget(process: Process) -> None:
    """Where nobody watches over a process, a strike just kills it."""
    process.kill()


class SimClock:
    """A process's clocks. Monotonic clocks of two machines share no zero, and run apart by `rate`; wall clocks may be
    stepped."""

    def __init__(
        self,
        loop: SimLoop,
        zero_s: float = 0.0,
        wall_steps: Callable[[], float] | None = None,
        rate: float = 1.0,
    ) -> None:
        self._loop, self._zero_s, self._rate = loop, zero_s, rate
        self._wall_steps = wall_steps

    def monotonic(self) -> float:
        return self._loop.now * self._rate + self._zero_s

    def wall(self) -> datetime:
        step_s = 0.0 if self._wall_steps is None else self._wall_steps()
        return wall_at(self._loop.time() + step_s)


def wall_at(now: float) -> datetime:
    """The true wall time at a moment of the loop."""
    return WALL_ZERO + timedelta(seconds=round(now, 6))
