"""Waiting for checkpoints that a training is still to write."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from diffmem.errors import UsageError
from diffmem.experiments.monitor.checkpoints import Checkpoint, Found, is_complete


@dataclass(frozen=True)
class Watching:
    """How new checkpoints are waited for.

    Attributes:
        idle: stop after so many seconds without a new one; None: until interrupted.
        settled: seconds that a checkpoint's files must have been left alone.
        pause: seconds between two looks at the folder.
    """

    idle: float | None = None
    settled: float = 5.0
    pause: float = 2.0

    def first(self, look: Callable[[], Found], silent: bool) -> Found:
        """What is there once anything is."""
        return self._wait_for(look, silent, time.monotonic()) or look()

    def _wait_for(self, look: Callable[[], Found], silent: bool, since: float) -> Found | None:
        said = silent
        while True:
            try:
                return look()
            except UsageError as problem:
                if self.idle is not None and time.monotonic() - since >= self.idle:
                    return None
                if not said:
                    print(f"diffmem: waiting for the first checkpoint ({problem})", file=sys.stderr, flush=True)
                    said = True
                time.sleep(self.pause)

    def over(self, look: Callable[[], Found], silent: bool) -> Iterator[Checkpoint]:
        """Checkpoints in the order in which they are whole; ends after `idle` seconds without one, or on Ctrl-C.

        A folder in which something cannot be understood now (two files of one step) is looked at again.
        """
        seen: set[tuple[str, str]] = set()
        since, told = time.monotonic(), False
        while True:
            try:
                there = look().checkpoints
            except UsageError as problem:
                there = ()
                if not told and not silent:
                    print(f"diffmem: {problem}", file=sys.stderr, flush=True)
                told = True
            fresh = [one for one in there if (one.source, one.stamp) not in seen]
            ready = [one for one in fresh if is_complete(one, self.settled)]
            for one in ready:
                seen.add((one.source, one.stamp))
                yield one
                since, told = time.monotonic(), False
            if ready:
                continue
            if not fresh and self.idle is not None and time.monotonic() - since >= self.idle:
                return
            if fresh and self.idle is not None and time.monotonic() - since >= self.idle + 60 * self.settled:
                names = ", ".join(one.name for one in fresh)
                print(f"diffmem: not measured, for its files stay incomplete: {names}", file=sys.stderr, flush=True)
                return
            try:
                time.sleep(self.pause)
            except KeyboardInterrupt:
                from diffmem.runs.interruption import forget

                forget()  # what was measured is whole; the summary is still to be written
                return
