"""Progress of long work on stderr: how far, how fast, how long still, and what was found so far."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_WINDOW = 60.0  # seconds over which the rate is taken: the work changes its speed when micro-batches do


class Progress:
    """A bar on a terminal, a plain line every `interval` seconds elsewhere, nothing when silent; a context manager.

    Args:
        total: units of work, those done before included; None if unknown.
        label: what is going on, for example "scoring".
        unit: what is counted, in the plural.
        done: units that an earlier command did; they count for the total, not for the rate.
        silent: print nothing.
        stream: where to; stderr by default.
        interval: seconds between two plain lines.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        total: int | None,
        label: str,
        *,
        unit: str = "prompts",
        done: int = 0,
        silent: bool = False,
        stream: TextIO | None = None,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.label, self.unit, self.done = total, label, unit, done
        self.findings = ""
        self._stream = stream if stream is not None else sys.stderr
        self._silent, self._interval, self._clock = silent, interval, clock
        self._start = self._last_line = clock()
        self._marks: deque[tuple[float, int]] = deque([(self._start, done)])
        self._bar: RichProgress | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the work began."""
        return self._clock() - self._start

    def advance(self, n: int = 1) -> None:
        """Count `n` more units as done."""
        self.done += n
        now = self._clock()
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and now - self._marks[1][0] >= _WINDOW:
            self._marks.popleft()
        self._show(now)

    def note(self, findings: str) -> None:
        """Replace the text that says what was found so far; it appears with the next line."""
        self.findings = findings
        if self._bar is not None:
            self._show(self._clock())

    @property
    def rate(self) -> float | None:
        """Units per second over the last minute or so; None before the first unit."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / (end - start) if after > before and end > start else None

    @property
    def remaining(self) -> float | None:
        """Seconds still to go at the present rate; None if unknown."""
        if self.total is None:
            return None
        if self.done >= self.total:
            return 0.0
        return (self.total - self.done) / self.rate if self.rate else None

    def line(self) -> str:
        """The state in words: `scoring 120/500 prompts, 4.2/s, 1 min 30 s left; 3 copies so far`."""
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        pieces = [f"{self.label} {count} {self.unit}"]
        if self.rate is not None:
            pieces.append(_per_time(self.rate))
        if self.remaining:
            pieces.append(f"{duration(self.remaining)} left")
        return ", ".join(pieces) + (f"; {self.findings}" if self.findings else "")

    def __enter__(self) -> Progress:
        self._start = self._last_line = self._clock()
        self._marks = deque([(self._start, self.done)])
        if not self._silent and self._stream.isatty():
            self._bar = _bar(self._stream)
            self._bar.start()
            self._bar.add_task("", total=self.total, completed=self.done, state=self.line())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if not self._silent:
            ending = "after" if error is None else "stopped after"
            self._print(f"{self.line()} ({ending} {duration(self.seconds)})")

    def _show(self, now: float) -> None:
        if self._silent:
            return
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, state=self.line())
        elif now - self._last_line >= self._interval:
            self._last_line = now
            self._print(self.line())

    def _print(self, text: str) -> None:
        print(f"diffmem: {text}", file=self._stream, flush=True)


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: 12 s, 3 min 05 s, 2 h 04 min, 3 d 02 h; absence as a dash."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def _bar(stream: TextIO) -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        SpinnerColumn(),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[state]}", markup=False),
        console=Console(file=stream),
        transient=True,
    )


def _per_time(rate: float) -> str:
    """A rate in the unit of time that gives a readable number."""
    if rate >= 1.0:
        return f"{rate:.3g}/s"
    return f"{rate * 60:.3g}/min" if rate * 60 >= 1.0 else f"{rate * 3600:.3g}/h"
