"""Ctrl-C and SIGTERM as a wish that training grants between two steps, where its state is whole."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_WISH = 2.0
"""Seconds within which a further signal is the same wish: a terminal and torchrun both send one to every process."""


class StopWish:
    """A context manager that notes the first signal; a later one raises KeyboardInterrupt, wherever training is.

    An interrupt in the middle of an optimizer step leaves weights of which one half has moved: a checkpoint of them would
    not go on as an uninterrupted run. Outside of the main thread nothing is caught, and signals that the process was
    started to ignore (nohup) stay ignored.

    Attributes:
        asked: whether the run should stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopWish:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked and now - self._since > SAME_WISH:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._since = True, now
