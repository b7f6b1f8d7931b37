"""Files that exist whole or not at all, whatever kills the writer; plain words when the disk is full or a file is none."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from diffmem.errors import DataError, IncompleteRun

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that its name appears only when its content is on the disk.

    A temporary name in the same folder is written, synced, renamed; then the folder is synced. The writer holds a lock
    on the temporary file, which the kernel drops however the writer ends: `sweep` tells living writers by it.

    Raises:
        DataError: there is something else than a file of this name (a device, a pipe), which is never replaced.
        IncompleteRun: the disk is full or a quota is used up; the temporary file is gone.
    """
    with _renamed(path) as descriptor:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]


@contextmanager
def atomic_stream(path: Path) -> Iterator[IO[bytes]]:
    """A new file to write and read, whose name appears when the block ends without an error; errors as of `write_atomic`."""
    with _renamed(path) as descriptor, os.fdopen(os.dup(descriptor), "w+b") as stream:
        yield stream


@contextmanager
def _renamed(path: Path) -> Iterator[int]:
    """The descriptor of a file that takes the place of `path` at the end."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device, pipe or socket"
        raise DataError(f"'{path}' is {kind}; give the name of a file.")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _create_locked(temporary)
        try:
            yield descriptor
            os.fsync(descriptor)
            os.replace(temporary, path)  # noqa: PTH105 - beside os.write and os.fsync
        except BaseException:
            with suppress(FileNotFoundError):
                temporary.unlink()
            raise
        finally:
            os.close(descriptor)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise IncompleteRun(
            f"The disk of {path.parent} is full or its quota is used up: {path.name} was not written. Everything written "
            "before is kept; free some space and run the same command again."
        ) from error


def read_plain(path: Path, most: int = 1 << 28) -> bytes:
    """The content of a plain file; a device or pipe is never read, nor is a file of more than `most` bytes.

    Raises:
        ValueError: it is something else, or larger.
        OSError: of the file system.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is a device, pipe or socket, not a plain file")
    if status.st_size > most:
        raise ValueError(
            f"it has {status.st_size / 2**20:,.0f} MiB; a file of its kind has at most {most / 2**20:,.0f}"
        )
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """The JSON value in a plain file.

    Raises:
        ValueError: no JSON, or not a plain file.
        OSError: of the file system.
    """
    try:
        return json.loads(read_plain(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def sweep(folder: Path) -> int:
    """Delete the temporary files of dead writers in a folder and return how many; living writers' are left alone."""
    removed = 0
    for temporary in folder.glob(".*.tmp"):
        try:
            descriptor = os.open(temporary, os.O_RDWR)
        except (FileNotFoundError, PermissionError):  # its writer has just finished, or is another user
            continue
        try:
            if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                temporary.unlink()
                removed += 1
        except (BlockingIOError, FileNotFoundError):  # its writer is at work, or has just finished
            continue
        finally:
            os.close(descriptor)
    return removed


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file that is created for it; other processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create_locked(path: Path) -> int:
    """Create a file and lock it; again if a sweep took it for abandoned between the two."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        _lock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool:
    """Lock an open file; False on a file system without locks, where one process at a time must do."""
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return False
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_path(text: str | Path) -> Path:
    """A path as a user writes it: `~` is the home folder, and stays as it is where no such user is known."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - that of pathlib raises for unknown users
