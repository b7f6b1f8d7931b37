"""Which picture of a folder or archive a written name means."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Sequence

from diffmem.data.notes import printable

_ABSOLUTE = re.compile(r"/|[A-Za-z]:/")


class PictureNames:
    """Pictures by name, found also where the name is written otherwise (Unicode form, slashes, ./)."""

    def __init__(self, pictures: Sequence[str]) -> None:
        self.exact = set(pictures)
        self.composed = {unicodedata.normalize("NFC", name): name for name in pictures}
        self.stems: dict[str, list[str]] = {}
        for name in pictures:
            self.stems.setdefault(posixpath.splitext(name)[0].lower(), []).append(name)

    def find(self, folder: str, written: str) -> str | None:
        """The picture that a row of a table in this folder names; None where it is not there."""
        written = printable(written).strip().replace("\\", "/")
        name = posixpath.normpath(posixpath.join(folder, written))
        if name in self.exact:
            return name
        found = self.composed.get(unicodedata.normalize("NFC", name))
        return self._by_end(written) if found is None and _ABSOLUTE.match(written) else found

    def _by_end(self, written: str) -> str | None:
        """The picture that the longest end of an absolute path names: where the tree lay when the table was made is not known."""
        parts = written.split("/")[1:]
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((end for end in ends if end in self.exact), None)

    def like(self, folder: str, written: str) -> str | None:
        """A picture whose name differs in case or suffix only."""
        name = posixpath.normpath(posixpath.join(folder, printable(written).strip().replace("\\", "/")))
        alike = self.stems.get(posixpath.splitext(name)[0].lower(), [])
        return alike[0] if alike else None

    def by_stem(self, key: str) -> str | None:
        """The picture of sd-scripts' key: its path, absolute or relative, with or without its suffix."""
        key = printable(key).replace("\\", "/")
        parts = key.split("/")
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if name in self.exact:
                return name
            alike = self.stems.get(name.lower(), [])
            if len(alike) == 1:
                return alike[0]
        return None
