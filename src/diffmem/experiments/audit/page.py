"""The report of a run that was scored, generated, matched or measured."""

from __future__ import annotations

from pathlib import Path

from diffmem.experiments._run import Verb
from diffmem.report.digest import build_digest
from diffmem.report.html import write_report
from diffmem.report.redaction import Redaction
from diffmem.report.shape import Digest
from diffmem.runs.manifest import FILE as MANIFEST


def write(folder: Path, redact: Redaction, hash_prompts: bool, out: Path | None) -> Path:
    """Write `report.html` and `summary.json` from the rows alone."""
    return write_report(folder, redact, hash_prompts, out)


def recognise(folder: Path) -> Digest | None:
    """The digest of any run directory."""
    return build_digest(folder) if (folder / MANIFEST).exists() else None


VERB = Verb("audit", Digest, write, recognise, live=True)
