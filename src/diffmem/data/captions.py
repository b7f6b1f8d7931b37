"""What the pictures of a folder or archive are called: metadata, files beside them, folders; never guessed where two differ.

Kinds of captions: "metadata" (metadata.csv, .jsonl or .parquet of a Hugging Face imagefolder; sd-scripts' fine-tuning
metadata), "caption" and "txt" (files of the same name beside the picture: .caption is sd-scripts' default, .txt the usual
one), "json" (img2dataset's record beside the picture), "folder" (the words of sd-scripts' folders, `10_sks dog`).
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from diffmem.data.metadata import (
    CAPTION_COLUMNS,
    SEVERAL,
    Metadata,
    Words,
    caption_columns,
    is_trained,
    label_of,
    read_metadata,
    texts_of,
)
from diffmem.data.notes import count, named, printable
from diffmem.data.text import decode_text, split_lines
from diffmem.data.trees import Tree
from diffmem.errors import DataError, UsageError

Captions = Literal["metadata", "caption", "txt", "json", "folder"]
KINDS: tuple[Captions, ...] = get_args(Captions)
BESIDE: dict[str, Captions] = {".caption": "caption", ".txt": "txt", ".json": "json"}
_REPEATS = re.compile(r"([1-9]\d*)_(.+)")
_MOST_REPEATS = 999
"""sd-scripts takes any number before a folder's name for repeats; from 1,000 on it is a year, a date or an id to most people."""
_SHARD = re.compile(r"\d{5,}|.+\.(tar|zip)", re.IGNORECASE)
_MOST_BYTES = 1 << 20
_KEPT = 200_000
"""Pictures up to which what was read from their caption files is kept, so that each is read once."""


@dataclass(frozen=True)
class Reading:
    """How captions are to be read.

    Attributes:
        kind: of captions; None: whatever there is, as long as no two kinds differ about a picture.
        file_column: of the file names in metadata that has several.
        caption_column: of the captions in metadata and tables; None: by its name.
        encoding: of text files; None: the byte-order mark decides, then UTF-8.
    """

    kind: Captions | None = None
    file_column: str | None = None
    caption_column: str | None = None
    encoding: str | None = None


@dataclass
class Files:
    """The files of a tree by what they are for.

    Attributes:
        pictures: names, sorted.
        metadata: metadata.csv, .jsonl, .parquet.
        trained: sd-scripts' fine-tuning metadata.
        beside: by picture, its caption files by kind.
        classes: by picture, the .cls file of a WebDataset.
    """

    pictures: list[str]
    metadata: list[str] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    beside: dict[str, dict[Captions, str]] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)


class CaptionReader:
    """The captions, class and repeats of each picture of a tree.

    Args:
        tree: the files.
        files: by what they are for.
        reading: which captions, and how.

    Attributes:
        notes: sentences about what was found, and what has no counterpart.
        problem: why captions cannot be read as they are, if they cannot; pictures can all the same.

    Raises:
        UsageError: no such kind.
    """

    def __init__(self, tree: Tree, files: Files, reading: Reading) -> None:
        kind = reading.kind
        if kind is not None and kind not in KINDS:
            raise UsageError(f"There are no captions of the kind '{kind}'; expected one of {', '.join(KINDS)}.")
        self.tree, self.files, self.kind, self.encoding = tree, files, kind, reading.encoding
        self.notes: list[str] = []
        self._kept: dict[str, tuple[dict[Captions, list[str]], list[str]]] = {}
        self.problem: str | None = None
        self.repeats = _repeats(files.pictures)
        self._metadata = Metadata()
        if (files.metadata or files.trained) and kind in (None, "metadata"):
            try:
                self._metadata = read_metadata(
                    tree, files.pictures, files.metadata, files.trained, reading.file_column, reading.caption_column,
                    reading.encoding,
                )  # fmt: skip
            except DataError as error:
                self.problem = str(error)
        self._folder_labels = _labels(files.pictures) if not files.metadata and not self.repeats else {}
        self._several_lines: list[str] = []
        self._empty: list[str] = []
        self._notes()

    def words(self, picture: str) -> tuple[Words, str | None]:
        """What a picture is called, and a note where a caption file of it cannot be read."""
        found, notes = self._by_kind(picture)
        label = self._metadata.words.get(picture, Words()).label or self._label_beside(picture)
        if label is None:
            label = self._class_words(picture) or self._folder_labels.get(posixpath.dirname(picture))
        captions = next(iter(found.values()), [])
        if self.kind is None and _contradict(found):
            captions = []  # `problem` says that a choice has to be made
        return Words(captions, label), "; ".join(notes) or None

    def repeats_of(self, picture: str) -> int:
        """How often sd-scripts shows the picture per epoch: the number before its folder's name, 1 without one."""
        return self.repeats.get(posixpath.dirname(picture), (1, ""))[0]

    def require(self) -> None:
        """Raise DataError where captions are ambiguous or their table cannot be read."""
        if self.problem is not None:
            raise DataError(self.problem)

    def _by_kind(self, picture: str) -> tuple[dict[Captions, list[str]], list[str]]:
        """The captions that each kind gives; empty ones do not count."""
        if picture not in self._kept:
            found = self._read_kinds(picture)
            if len(self.files.pictures) > _KEPT:
                return found
            self._kept[picture] = found
        return self._kept[picture]

    def _read_kinds(self, picture: str) -> tuple[dict[Captions, list[str]], list[str]]:
        found: dict[Captions, list[str]] = {}
        notes = []
        if picture in self._metadata.words:
            found["metadata"] = self._metadata.words[picture].captions
        beside = self.files.beside.get(picture, {})
        for kind, name in beside.items():
            if self.kind in (None, kind):
                try:
                    found[kind] = self._read(kind, name, beside)
                except DataError as error:
                    notes.append(f"no caption: {error}")
        if self.kind in (None, "folder") and not any(found.values()) and (words := self._class_words(picture)):
            found["folder"] = [words]
        return {kind: found[kind] for kind in KINDS if found.get(kind)}, notes

    def _read(self, kind: Captions, name: str, beside: Mapping[Captions, str]) -> list[str]:
        text = self._text(name)
        if kind == "json":
            row = _record(text, name)
            return texts_of(row, caption_columns(list(row)))
        # A record of img2dataset beside it holds the same caption whole: then line breaks are part of it.
        if "json" in beside and kind == "txt":
            row = _record(self._text(beside["json"]), beside["json"])
            if text.strip() in [one.strip() for one in texts_of(row, caption_columns(list(row)))]:
                return [text.strip()] if text.strip() else []
        return list(dict.fromkeys(line.strip() for line in split_lines(text) if line.strip()))

    def _text(self, name: str) -> str:
        try:
            if (size := self.tree.size(name)) > _MOST_BYTES:
                raise DataError(f"'{name}' has {size:,} bytes, more than a caption's {_MOST_BYTES:,}.")
            return decode_text(self.tree.read(name), f"'{name}'", self.encoding)
        except OSError as error:
            raise DataError(f"'{name}' cannot be read ({error.strerror or error}).") from error

    def _label_beside(self, picture: str) -> str | None:
        try:
            if picture in self.files.classes:
                return self._text(self.files.classes[picture]).strip() or None
            name = self.files.beside.get(picture, {}).get("json")
            if name is None:
                return None
            return label_of(_record(self._text(name), name))
        except DataError:
            return None  # said where its caption is read

    def _class_words(self, picture: str) -> str | None:
        return self.repeats.get(posixpath.dirname(picture), (1, ""))[1] or None

    def _notes(self) -> None:
        """Look at what there is: kinds that differ, numbers of captions by kind, repeats, several lines, empty files."""
        self.notes += self._metadata.notes
        if self.problem is not None:
            self.notes.append(self.problem)
        if self.repeats:
            read = [
                f"'{posixpath.basename(folder)}' ({count(times, 'repeat')}, '{words}')"
                for folder, (times, words) in self.repeats.items()
            ]
            self.notes.append(
                f"{count(len(read), 'folder')} of {self.tree.name} read as sd-scripts does (repeats per epoch, and the words for "
                f"pictures without a caption): {named(read)}"
            )
        if beyond := _beyond(self.files.pictures):
            self.notes.append(
                f"{count(len(beyond), 'folder')} of {self.tree.name} begin with a number that sd-scripts would take for repeats "
                f"per epoch; above {_MOST_REPEATS:,} it is read as a part of the name, and pictures count once: {named(beyond)}"
            )
        differing: list[str] = []
        kinds: Counter[str] = Counter()
        several: list[str] = []
        pairs: set[str] = set()
        broken: list[str] = []
        wordless: list[str] = []
        looked = self.files.pictures if self._worth_looking() else []
        for picture in looked:
            found, unread = self._by_kind(picture)
            broken += [text.removeprefix("no caption: ").rstrip(".") for text in unread]
            kinds.update([kind for kind in KINDS if kind in found][:1])
            if not found and not unread and self.files.beside.get(picture, {}).keys() - {"json"}:
                self._empty.append(picture)
            if not found and not unread and self.kind in (None, "json"):
                wordless += [name for kind, name in self.files.beside.get(picture, {}).items() if kind == "json"]
            if any(len(texts) > 1 for kind, texts in found.items() if kind in ("caption", "txt")):
                several.append(picture)
            if self.kind is None and (pair := _contradict(found)):
                differing.append(picture)
                pairs.add(" and ".join(pair))
        if differing:
            options = "|".join(dict.fromkeys(kind for pair in sorted(pairs) for kind in pair.split(" and ")))
            text = (
                f"{count(len(differing), 'picture')} of {self.tree.name} have captions of two kinds that differ "
                f"({'; '.join(sorted(pairs))}): {named(differing)}. Say which the model was trained on: --captions {options}."
            )
            self.problem = self.problem or text
            self.notes.append(text)
        if len(kinds) > 1 and not differing:
            parts = ", ".join(f"{number:,} from {_called(kind)}" for kind, number in kinds.items())
            self.notes.append(f"captions of {self.tree.name} come from several places: {parts}")
        if broken:
            self.notes.append(
                f"{count(len(broken), 'caption file')} of {self.tree.name} cannot be read: {named(broken, 3)}"
            )
        if wordless:
            keys = ", ".join(list(_record(self._text(wordless[0]), wordless[0]))[:8])
            self.notes.append(
                f"{count(len(wordless), 'record')} beside pictures of {self.tree.name} hold no caption under a name that is "
                f"read ({', '.join((*SEVERAL, *CAPTION_COLUMNS))}): {named(wordless)}; the first holds "
                f"{printable(keys) or 'nothing'}"
            )
        if self._empty:
            self.notes.append(
                f"{count(len(self._empty), 'caption file')} of {self.tree.name} are empty: {named(self._empty)}"
            )
        if several:
            self.notes.append(
                f"{count(len(several), 'caption file')} of {self.tree.name} hold several lines, taken as one caption each "
                f"(sd-scripts takes the first line, or any with enable_wildcard): {named(several)}"
            )

    def _worth_looking(self) -> bool:
        """Whether there are captions in files, which have to be read to see whether they differ."""
        return bool(self.files.beside) and self.kind != "metadata"


def _contradict(found: Mapping[Captions, Sequence[str]]) -> tuple[str, str] | None:
    """Two kinds whose captions of one picture differ, named; None where the first of one is among those of the other."""
    kinds = [kind for kind in found if kind != "folder"]
    for i, one in enumerate(kinds):
        for two in kinds[i + 1 :]:
            a, b = ([" ".join(text.split()) for text in found[kind]] for kind in (one, two))
            if not (set(a) <= set(b) or set(b) <= set(a)):
                return one, two
    return None


def _called(kind: str) -> str:
    return {"metadata": "metadata", "folder": "folder names"}.get(kind, f".{kind} files")


def _record(text: str, name: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{name}' is no JSON ({error}).") from error
    return value if isinstance(value, dict) else {}


def is_trained_file(tree: Tree, name: str) -> bool:
    """Whether a .json file is sd-scripts' fine-tuning metadata."""
    try:
        if tree.read(name, 64).lstrip()[:1] != b"{":
            return False
        return is_trained(json.loads(decode_text(tree.read(name), name)))
    except (OSError, ValueError, RecursionError, DataError):
        return False


def _repeats(pictures: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Folders named as sd-scripts wants them, `10_sks dog`: repeats and class words; none where they look like numbers.

    Numbers that count up from 0 or are padded with zeros number classes (`0_cat`, `001_apple`), so no folder is read so;
    nor is one with a number of four digits or more (`2023_holiday`).
    """
    folders = dict.fromkeys(posixpath.dirname(name) for name in pictures)
    names = {folder: posixpath.basename(folder) for folder in folders}
    numbered = {folder: match for folder, name in names.items() if (match := _REPEATS.fullmatch(name))}
    if any(re.match(r"0\d*_", name) for name in names.values()):
        return {}
    counts = sorted(int(match[1]) for match in numbered.values())
    if len(counts) > 2 and counts == list(range(1, len(counts) + 1)):
        return {}
    return {
        folder: (int(match[1]), match[2].strip())
        for folder, match in numbered.items()
        if int(match[1]) <= _MOST_REPEATS
    }


def _beyond(pictures: Sequence[str]) -> list[str]:
    """Names of folders that begin with more repeats than anybody asks for."""
    names = dict.fromkeys(posixpath.basename(posixpath.dirname(name)) for name in pictures)
    return [name for name in names if (match := _REPEATS.fullmatch(name)) and int(match[1]) > _MOST_REPEATS]


def _labels(pictures: Sequence[str]) -> dict[str, str]:
    """The class by folder, as a Hugging Face imagefolder: all pictures equally deep, and in more than one folder."""
    folders = dict.fromkeys(posixpath.dirname(name) for name in pictures)
    names = {folder: posixpath.basename(folder) for folder in folders}
    if len({folder.count("/") for folder in folders}) != 1 or len(set(names.values())) < 2 or "" in names.values():
        return {}
    if all(_SHARD.fullmatch(name) for name in names.values()):
        return {}  # the shards of img2dataset or a WebDataset are no classes
    return names
