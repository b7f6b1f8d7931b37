"""Units of work on a Ray cluster: actors that each hold the model, replaced when they are lost or stuck.

Ray's actors and not Ray Data: a unit needs a time limit, a second try of what it has left, and a verdict on the one item
that no worker survives, and rows go to the run store and not through Ray.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from diffmem.errors import DiffmemError, IncompleteRun, UsageError
from diffmem.runs.interruption import stop_if_asked
from diffmem.runs.units import Report, Work

U = TypeVar("U")

UNIT_SECONDS = 1800.0
OBJECT_STORE = 256 << 20
TRIES = 3
"""How often a unit of one item is tried before it becomes an error row."""
_LOOK = 1.0  # seconds between looks at time limits and at the wish to stop


@dataclass
class _Task(Generic[U]):
    unit: U
    tries: int = 0


class _Actor:
    """A worker: opens the work once, then does units."""

    def __init__(self) -> None:
        self._do: Callable[[Any], Report] | None = None

    def open(self, work: Work[Any]) -> None:
        self._do = work.open()

    def do(self, unit: Any) -> Report:
        assert self._do is not None
        return self._do(unit)


class RayRunner:
    """Has units done by actors on a Ray cluster.

    Args:
        address: of a cluster that is there ("auto", "10.0.0.1:6379", "ray://host:10001"); None starts one on this machine,
            without a dashboard, and ends it afterwards.
        workers: actors; by default one per GPU of the cluster, or per core where it has none.
        unit_seconds: after which a unit counts as stuck and its worker is replaced.
        gpus: GPUs per worker; by default 1 where the cluster has any.
        object_store: bytes of shared memory of a cluster of its own; rows do not pass through it, the model may.

    Raises:
        UsageError: Ray is not installed, or the arguments are out of range.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        unit_seconds: float = UNIT_SECONDS,
        gpus: float | None = None,
        object_store: int = OBJECT_STORE,
    ) -> None:
        if find_spec("ray") is None:
            raise UsageError(
                "The runner ray needs Ray, which is not installed: pip install 'diffmem[ray]', or share the work by --shard."
            )
        if (workers is not None and workers < 1) or not unit_seconds > 0:
            raise UsageError(f"{workers} workers, {unit_seconds} seconds per unit; expected at least 1, and above 0.")
        self.address, self.workers, self.unit_seconds = address, workers, unit_seconds
        self.gpus, self.object_store = gpus, object_store

    def run(self, work: Work[U], units: Iterable[U]) -> Iterator[Report]:
        """Have every unit done; a unit whose worker is lost or stuck is tried again, then halved, and at last fails.

        Raises:
            IncompleteRun: workers end one after the other without finishing anything; what is done is kept.
            DiffmemError: what a worker raises that the user must act on.
        """
        import ray

        tasks = deque(_Task(unit) for unit in units)
        if not tasks:
            return
        started = self._connect(ray)
        try:
            yield from _Pool(self, ray, work, tasks).run()
        finally:
            if started:
                ray.shutdown()

    def _connect(self, ray: Any) -> bool:
        """Join the cluster, or start one; whether this call has begun it and is to end it."""
        if ray.is_initialized():
            return False
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is not None:
            try:
                ray.init(address=self.address, **quiet)
            except (ConnectionError, OSError, ValueError, RuntimeError) as problem:
                raise UsageError(
                    f"There is no Ray cluster at '{self.address}' ({str(problem).splitlines()[0]}); start one there, or leave "
                    "the address out (--runner ray)."
                ) from problem
            return True
        ray.init(include_dashboard=False, object_store_memory=self.object_store, **quiet)
        return True


class _Pool(Generic[U]):
    """The workers of one `run`."""

    def __init__(self, runner: RayRunner, ray: Any, work: Work[U], tasks: deque[_Task[U]]) -> None:
        self.ray, self.work, self.tasks, self.limit = ray, work, tasks, runner.unit_seconds
        resources = ray.cluster_resources()
        gpus = resources.get("GPU", 0.0) if runner.gpus is None else runner.gpus
        cores = max(1, int(resources.get("CPU", 1)))
        count = runner.workers or max(1, int(gpus) if gpus >= 1 else cores)
        self.count = min(count, len(tasks))
        # More than one core would leave a worker without a place where no machine of the cluster has as many.
        own = max(1, cores // count) if runner.address is None and len(ray.nodes()) == 1 else 1
        each = {"num_cpus": own, "num_gpus": (min(1.0, gpus) if runner.gpus is None else gpus)}
        self.kind = ray.remote(max_restarts=0, scheduling_strategy="SPREAD", **each)(_Actor)
        self.shared = ray.put(work)
        self.actors: dict[Any, Any] = {}  # reference of what an actor does now -> the actor
        self.at: dict[Any, tuple[_Task[U], float]] = {}  # the same -> its task and when it is late; none while opening
        self.lost = 0  # workers lost since a unit was finished

    def run(self) -> Iterator[Report]:
        """The reports of all tasks."""
        try:
            for _ in range(self.count):
                self._start()
            while self.tasks or self.at:
                stop_if_asked()
                ready, _ = self.ray.wait(list(self.actors), num_returns=1, timeout=_LOOK)
                for reference in ready:
                    yield from self._ended(reference)
                now = time.monotonic()
                for reference in [r for r, (_, late) in self.at.items() if now > late]:
                    actor, (task, _) = self.actors.pop(reference), self.at.pop(reference)
                    self.ray.kill(actor)
                    yield from self._again(task, f"it took more than {self.limit:g} seconds and was stopped")
                    self._start()
        finally:
            for actor in self.actors.values():
                self.ray.kill(actor)

    def _start(self) -> None:
        if len(self.actors) < min(self.count, len(self.tasks) + len(self.at)):
            actor = self.kind.remote()
            self.actors[actor.open.remote(self.shared)] = actor

    def _ended(self, reference: Any) -> Iterator[Report]:
        """What comes of an actor that has opened the work or done a unit, or was lost over it."""
        actor, (task, _) = self.actors.pop(reference), self.at.pop(reference, (None, 0.0))
        try:
            report = self.ray.get(reference)
        except DiffmemError as problem:  # without the traceback of the worker, which Ray writes into the message
            raise getattr(problem, "cause", None) or problem from None
        except (self.ray.exceptions.RayActorError, self.ray.exceptions.RaySystemError) as problem:
            self.lost += 1
            reason = f"its worker ended ({_first_line(problem)})"
            if self.lost > 2 * self.count + 5:
                raise IncompleteRun(
                    f"{self.lost} workers ended one after the other without finishing anything ({reason}). What is done is "
                    "kept; look at the memory of the machines, then run the same command again."
                ) from problem
            if task is not None:
                yield from self._again(task, reason)
            self._start()
            return
        except self.ray.exceptions.RayTaskError as problem:
            if task is None:  # the model does not open: it will not elsewhere
                raise
            yield from self._again(task, _first_line(problem))
        else:
            if report is not None:
                self.lost = 0
                yield report
        self._next(actor)

    def _next(self, actor: Any) -> None:
        if not self.tasks:
            self.ray.kill(actor)
            return
        task = self.tasks.popleft()
        reference = actor.do.remote(task.unit)
        self.actors[reference], self.at[reference] = actor, (task, time.monotonic() + self.limit)

    def _again(self, task: _Task[U], reason: str) -> Iterator[Report]:
        """Put what is left of a task back: whole the first time, then in halves, until one item is known to be at fault."""
        unit = self.work.left(task.unit)
        if unit is None:
            yield Report()
            return
        halves = self.work.halves(unit) if task.tries else ()
        if halves:
            self.tasks.extendleft(_Task(half, task.tries) for half in reversed(halves))
        elif task.tries + 1 < TRIES:
            self.tasks.appendleft(_Task(unit, task.tries + 1))
        else:
            yield self.work.fail(unit, f"given up after {TRIES} tries: {reason}")


def _first_line(problem: BaseException) -> str:
    cause = getattr(problem, "cause", None)
    lines = str(cause if cause is not None else problem).strip().splitlines()
    return (lines[0] if lines else type(problem).__name__)[:300]
