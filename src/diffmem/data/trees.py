"""Files by relative name, wherever they lie: in a folder, in a zip or tar archive, or in several archives."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from diffmem.data.notes import printable
from diffmem.errors import DataError

JUNK = frozenset(
    {"thumbs.db", "desktop.ini", "ehthumbs.db", "__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found"}
)
"""What macOS, Windows, Linux and Synology leave in folders, in lower case."""
HIDDEN = "hidden"


class Tree(ABC):
    """Files with unique relative names (forward slashes) in a fixed order.

    Attributes:
        name: what messages call it.
        files: relative names, sorted.
        left_out: (name, reason) of what is there and is no file of the tree.
    """

    name: str
    files: list[str]
    left_out: list[tuple[str, str]]

    @abstractmethod
    def read(self, name: str, most: int | None = None) -> bytes:
        """The content of a file, or its first bytes. Raises OSError."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file. Raises OSError."""

    def local(self, name: str) -> Path | None:
        """Where the file lies on disk; None inside of an archive."""
        return None


class FolderTree(Tree):
    """The files of a folder and its subfolders.

    Hidden files and folders are left out; links to folders are followed, each real folder once. Bytes of a name that are
    no UTF-8 are written as escapes.
    """

    def __init__(self, folder: Path, only: list[Path] | None = None) -> None:
        self.name = printable(str(folder))
        self.left_out = []
        self._paths: dict[str, Path] = {}
        for path in self._walk(folder) if only is None else only:
            self._paths[printable(path.relative_to(folder).as_posix())] = path
        self.files = sorted(self._paths)

    def read(self, name: str, most: int | None = None) -> bytes:
        """The content of a file, or its first bytes."""
        with self._paths[name].open("rb") as file:
            return file.read() if most is None else file.read(most)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self._paths[name].stat().st_size

    def local(self, name: str) -> Path | None:
        """Where the file lies."""
        return self._paths[name]

    def _walk(self, folder: Path) -> Iterator[Path]:
        visited: set[str] = set()

        def leave(path: Path, reason: str) -> None:
            self.left_out.append((printable(path.relative_to(folder).as_posix()), reason))

        def unreadable(error: OSError) -> None:
            leave(Path(error.filename), f"a folder that cannot be opened ({error.strerror})")

        for root, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
            real = os.path.realpath(root)
            if real in visited:
                folders.clear()
                leave(Path(root), "leads to a folder that is read already")
                continue
            visited.add(real)
            for name in [name for name in folders if is_hidden(name)]:
                leave(Path(root, name), f"{HIDDEN} folder")
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            for name in files:
                path = Path(root, name)
                if is_hidden(name):
                    leave(path, f"{HIDDEN} file")
                elif path.is_file():
                    yield path
                else:
                    leave(path, "a link to nothing" if path.is_symlink() else "no regular file")


class JoinedTree(Tree):
    """Several trees as one: names get the name of their tree in front."""

    def __init__(self, name: str, trees: dict[str, Tree]) -> None:
        self.name, self._trees = name, trees
        self._home = {f"{first}/{file}": (first, file) for first, tree in trees.items() for file in tree.files}
        self.files = list(self._home)
        self.left_out = [(f"{first}/{file}", why) for first, tree in trees.items() for file, why in tree.left_out]

    def read(self, name: str, most: int | None = None) -> bytes:
        """The content of a file, or its first bytes."""
        first, file = self._home[name]
        return self._trees[first].read(file, most)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        first, file = self._home[name]
        return self._trees[first].size(file)


def is_hidden(name: str) -> bool:
    """Whether a file's or folder's name says that it is not meant to be seen: dot files, and what systems leave behind."""
    return name.startswith(".") or name.lower() in JUNK


def safe_member(name: str) -> str | None:
    """A member's name in an archive with forward slashes; None for one that leads out of it, or a hidden one."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or ".." in parts or name.startswith("/"):
        return None
    return printable("/".join(parts))


def require_files(tree: Tree, what: str) -> None:
    """Raise DataError where a tree holds no file at all."""
    if not tree.files:
        raise DataError(f"{tree.name} holds no {what}.")
