"""The wish to stop (Ctrl-C, SIGTERM), which no library underneath can swallow or turn into an error of an image."""

from __future__ import annotations

_asked = False


def ask_to_stop() -> None:
    """Note the wish; a signal handler calls it before it raises KeyboardInterrupt."""
    global _asked
    _asked = True


def forget() -> None:
    """A new command begins."""
    global _asked
    _asked = False


def asked_to_stop() -> bool:
    """Whether someone has asked this process to stop."""
    return _asked


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt if someone has asked this process to stop, whatever became of the first one."""
    if _asked:
        raise KeyboardInterrupt
