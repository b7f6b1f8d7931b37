"""Units of work: a stage cuts what is not done into units, and a runner has them done, here or on other machines.

The run store is the truth, whoever works: each unit writes rows as parts of its own, and a row that is there is done. So
a runner may lose a worker, or itself, at any moment: the same command cuts what is left into units again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from diffmem.models.meter import Nfe

U = TypeVar("U")


@dataclass(frozen=True)
class Report:
    """What became of a unit.

    Attributes:
        done: rows that it brought to an end, error rows among them.
        failed: error rows.
        nfe: network evaluations spent.
        notes: what the user must know.
    """

    done: int = 0
    failed: int = 0
    nfe: Nfe = field(default_factory=Nfe)
    notes: tuple[str, ...] = ()


class Work(ABC, Generic[U]):
    """What a stage hands to a runner; it goes to the workers by pickle."""

    @abstractmethod
    def open(self) -> Callable[[U], Report]:
        """Called once in each worker, which keeps what it opens (the model): the function that does a unit and keeps its rows."""

    @abstractmethod
    def left(self, unit: U) -> U | None:
        """What the store does not have of a unit whose worker was lost; None if it has all."""

    @abstractmethod
    def halves(self, unit: U) -> Sequence[U]:
        """A unit in two, to find the item that workers get stuck on; nothing for a unit of one item."""

    @abstractmethod
    def fail(self, unit: U, reason: str) -> Report:
        """Keep error rows for a unit of one item that cannot be done."""


class Runner(Protocol):
    """Has units done."""

    def run(self, work: Work[U], units: Iterable[U]) -> Iterator[Report]:
        """Have every unit done; reports come as units end, in any order."""
