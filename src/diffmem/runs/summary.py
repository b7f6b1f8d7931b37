"""`summary.json`: what an experiment found, in one shape for the terminal, the page, gates and machines."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from diffmem import __version__
from diffmem.errors import DataError, IncompatibleRun
from diffmem.notebook import LONGEST, ShownInNotebooks
from diffmem.runs.sealed import SEAL, read_sealed, write_sealed

FILE = "summary.json"
SUMMARY_VERSION = 1
Row = dict[str, JsonValue]


@dataclass(frozen=True)
class ShownTable:
    """A table of a summary as people read it.

    Attributes:
        title: the line above it.
        rows: the data.
        columns: the fields shown, in order, or field to heading; None: all of the first row.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[str] | Mapping[str, str] | None = None


class ArmPlace(BaseModel):
    """An arm and its run directory, relative to the experiment's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    place: str


class Summary(BaseModel, ShownInNotebooks):
    """Base of all summaries.

    Attributes:
        summary_version: of this shape; a reader refuses newer ones.
        diffmem: the version that wrote it.
        verb: the command that made the run.
        headline: one sentence that says what was found.
        arms: every arm that was made.
        notes: what a reader must know of this run.
        limits: what the numbers cannot show.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    verb: ClassVar[str]

    summary_version: int = SUMMARY_VERSION
    diffmem: str = __version__
    headline: str
    arms: tuple[ArmPlace, ...] = ()
    notes: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.arms)} arms: {self.headline[:LONGEST]})"

    def __str__(self) -> str:
        return repr(self)

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "finding": self.headline,
            "arms": [arm.name for arm in self.arms],
            "notes": self.notes,
            "limits": self.limits,
        }

    def nothing_judged(self) -> str | None:
        """Why there is no value at all to judge by; None where there is one. A run without a value never passes a gate."""
        return None

    def tables(self) -> list[ShownTable]:
        """What `diffmem show` prints below the headline."""
        return []

    def rows_of(self, name: str) -> Sequence[Row] | None:
        """Rows of a table that the summary itself holds, because the run keeps no row files; None where it holds none."""
        return None

    def __call__(self) -> dict[str, Any]:
        """The summary as plain values: deprecated, 0.1.0 called it; use `as_dict()` or the attributes."""
        warnings.warn("run.summary is an object now; use run.summary.as_dict()", DeprecationWarning, stacklevel=2)
        return self.as_dict()

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON schema of `summary.json`."""
        schema = cls.model_json_schema(mode="serialization")
        checksum = {SEAL: {"type": "string", "description": "of all other fields, in a file"}}
        schema["properties"] = {"verb": {"const": cls.verb, "type": "string"}, **schema["properties"], **checksum}
        schema["required"] = ["verb", *schema.get("required", [])]
        title = f"diffmem {cls.verb}: summary.json"
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title}

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, with the verb first: what lies in `summary.json`."""
        return {"verb": self.verb, **self.model_dump(mode="json")}

    def write(self, folder: Path) -> Path:
        """Write `summary.json`, whole or not at all; strict JSON."""
        write_sealed(folder / FILE, self.as_dict())
        return folder / FILE

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: Path) -> Self:
        """The inverse of `as_dict`; DataError naming `source` and the field where it is damaged."""
        try:
            return cls.model_validate({key: value for key, value in values.items() if key != "verb"})
        except ValidationError as problem:
            first = problem.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"'{source}' is damaged: {where}: {first['msg']}. Run the command again, which writes it anew."
            ) from problem


S = TypeVar("S", bound=Summary)


def read_values(folder: Path) -> dict[str, Any] | None:
    """What `summary.json` of a folder holds; None if there is none.

    Raises:
        DataError: it is damaged. IncompatibleRun: a newer diffmem wrote it.
    """
    file = folder / FILE
    try:
        values = read_sealed(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as problem:
        raise DataError(f"'{file}' is damaged ({problem}). Run the command again, which writes it anew.") from problem
    if not isinstance(values.get("verb"), str):
        raise DataError(f"'{file}' is not the summary of a run: it names no verb.")
    version = values.get("summary_version", 0)
    if isinstance(version, int) and version > SUMMARY_VERSION:
        raise IncompatibleRun(
            f"'{file}' was written by diffmem {values.get('diffmem')} (summary version {version}); this "
            f"is diffmem {__version__}, which reads versions up to {SUMMARY_VERSION}."
        )
    return values
