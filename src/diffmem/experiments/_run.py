"""A finished run of any verb: what it found, its rows, its images, its page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from diffmem.errors import DataError
from diffmem.notebook import ShownInNotebooks
from diffmem.registry import Registry
from diffmem.report.prose import shorten
from diffmem.runs.manifest import FILE as MANIFEST
from diffmem.runs.manifest import read_manifest
from diffmem.runs.store import RunStore
from diffmem.runs.summary import Summary, read_values

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

    from diffmem.experiments._experiment import ArmResult
    from diffmem.report.redaction import Redaction


S = TypeVar("S", bound=Summary)


@dataclass(frozen=True)
class Verb:
    """How the runs of a verb are read.

    Attributes:
        name: of the command.
        summary: the class of its `summary.json`.
        write_page: writes the page of a run: (folder, redact, hash_prompts, file or None for the usual place) -> the page.
        recognise: the summary of a run of 0.1.0 in this folder, which has no `summary.json`; None if it is none of this verb;
            by default there was no such verb in 0.1.0.
        live: whether the summary is made anew from the rows whenever the run is opened, because stages may be added.
    """

    name: str
    summary: type[Summary]
    write_page: Callable[[Path, Redaction, bool, Path | None], Path]
    recognise: Callable[[Path], Summary | None] = lambda _: None
    live: bool = False


VERBS: Registry[Verb] = Registry(
    "runs",
    {
        "mitigate": "diffmem.experiments.mitigate.page:VERB",
        "robustness": "diffmem.experiments.robustness.page:VERB",
        "remove": "diffmem.experiments.remove.page:VERB",
        "against": "diffmem.experiments.against.page:VERB",
        "extract": "diffmem.experiments.extract.page:VERB",
        "lab": "diffmem.experiments.lab.page:VERB",
        "canaries": "diffmem.experiments.canaries.page:VERB",
        "match": "diffmem.experiments.match.page:VERB",
        "claim": "diffmem.experiments.claim.page:VERB",
        "monitor": "diffmem.experiments.monitor.page:VERB",
        "audit": "diffmem.experiments.audit.page:VERB",
    },
)
"""Every verb that leaves a run; in this order runs of 0.1.0 are recognised."""


LONGEST = 120
"""Characters of a headline in the `repr` of a run."""


class Run(ShownInNotebooks):
    """A run directory of any verb.

    Attributes:
        path: its folder.
        verb: the command that made it; "audit" for a stage alone (score, generate, measure), which is summarized as one.
        results: of the arms, by name, in the process that made the run; empty for a run that was opened.

    Examples:
        >>> import diffmem as dm
        >>> network = dm.Target.from_callable(lambda x, t, cond: x * 0, (1, 8, 8), steps=2, device="cpu")
        >>> run = dm.audit(network, samples=2, out="runs/images")
        >>> [(row["draw"], image.size) for row, image in run.images()]
        [(0, (8, 8)), (0, (8, 8))]
    """

    def __init__(
        self,
        path: Path,
        verb: str,
        summary: Summary,
        results: Mapping[str, ArmResult] | None = None,
        keep: object = None,
    ) -> None:
        self.path, self.verb, self._summary, self.results = path, verb, summary, dict(results or {})
        self._keep = keep  # a temporary directory goes when nothing holds it

    @property
    def summary(self) -> Summary:
        """What was found: what lies in `summary.json`."""
        return self._summary

    @property
    def arms(self) -> dict[str, Path]:
        """The run directory of each arm; the run's own folder where it has no arms."""
        places = {arm.name: self.path / arm.place for arm in self._summary.arms}
        return places or {self.verb: self.path}

    def table(self, name: str) -> pa.Table:
        """All rows of one kind ("prompts", "scores", "images", "matches", "targets", "measures", "labels", ...), with their arm.

        Returns:
            An arrow table in the order of arms; the column "arm" comes first. `.to_pandas()` makes a data frame.
        """
        import pyarrow as pa

        tables = [
            (arm, RunStore(folder).read(name)) for arm, folder in self.arms.items() if (folder / MANIFEST).exists()
        ]
        held = self._summary.rows_of(name)
        if not tables and held is not None:
            return pa.Table.from_pylist([{"arm": self.verb, **row} for row in held])
        if not tables:
            raise DataError(f"'{self.path}' keeps no rows of {name}: this run has a summary only.")
        return pa.concat_tables(
            [table.add_column(0, "arm", pa.array([arm] * table.num_rows, pa.string())) for arm, table in tables]
        )

    @property
    def labels(self) -> pa.Table:
        """What reviewers say of pairs, the last of each reviewer and pair: the rows of `table("labels")` that count."""
        import pyarrow as pa
        import pyarrow.compute as pc

        from diffmem.report.review.labels import read_labels

        keys = [label.as_row()["key"] for folder in self.arms.values() for label in read_labels(folder).current]
        table = self.table("labels")
        return table.filter(pc.is_in(table["key"], value_set=pa.array(keys, table.schema.field("key").type)))

    def images(self) -> Iterator[tuple[dict[str, Any], Image.Image]]:
        """Every generated image with its row (arm, prompt_id, draw, seed, ...), a part of the run at a time."""
        from diffmem.data.png import decode_png

        for arm, folder in self.arms.items():
            if not (folder / MANIFEST).exists():
                continue
            for part in RunStore(folder).stream("images"):
                for row in part.to_pylist():
                    if row["png"] is not None:
                        yield {"arm": arm, **{k: v for k, v in row.items() if k != "png"}}, decode_png(row["png"])

    def report(
        self, redact: Redaction | None = None, *, hash_prompts: bool = False, out: str | Path | None = None
    ) -> Path:
        """Write the page of the run: one HTML file that needs no network.

        Args:
            redact: "none", "blur" or "hash"; by default "none" inside the run's folder and "blur" elsewhere, because a page
                with copies republishes training images.
            hash_prompts: show hashes instead of prompts, where the verb's page can.
            out: the file; by default the verb's own name in the run's folder.
        """
        file = None if out is None else Path(out)
        if file is not None and file.is_dir():
            raise DataError(f"'{file}' is a folder; give the name of a file.")
        return VERBS.get(self.verb).write_page(self.path, self.redaction(redact, file), hash_prompts, file)

    def redaction(self, redact: Redaction | None, out: Path | None) -> Redaction:
        """What becomes of pictures on a page: as asked, else blurred where the page leaves the run's folder."""
        inside = out is None or out.resolve().is_relative_to(self.path.resolve())
        return redact or ("none" if inside else "blur")

    def __repr__(self) -> str:
        return f"Run({self._made_by()}, {str(self.path)!r}: {shorten(self._summary.headline, LONGEST)})"

    def _made_by(self) -> str:
        """The command; stages alone leave runs that are summarized as those of an audit."""
        if self.verb in VERBS and VERBS.get(self.verb).live and (self.path / MANIFEST).exists():
            sections = list(read_manifest(self.path).plan)
            return sections[0] if len(sections) == 1 else self.verb
        return self.verb

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "made by": f"diffmem {self._made_by()}", "finding": self._summary.headline, "folder": str(self.path),
            "arms": list(self.arms) if len(self.arms) > 1 else None, "notes": self._summary.notes, "limits": self._summary.limits,
        }  # fmt: skip


def open_run(path: str | Path) -> Run:
    """Open the run directory of any verb, also one that diffmem 0.1.0 wrote.

    Raises:
        DataError: there is no run, or a file of it is damaged.
        IncompatibleRun: a newer diffmem wrote it.

    Examples:
        >>> import diffmem as dm
        >>> network = dm.Target.from_callable(lambda x, t, cond: x * 0, (1, 8, 8), steps=2, device="cpu")
        >>> made = dm.audit(network, samples=4, out="runs/mine")
        >>> run = dm.open_run("runs/mine")
        >>> run.verb, run.table("images").num_rows, run.report().name
        ('audit', 4, 'report.html')
    """
    run = _opened(Path(path))
    if VERBS.get(run.verb).live:  # made anew from the rows, so it knows
        return run
    damage = [text for folder in dict.fromkeys(run.arms.values()) for text in RunStore(folder).damage()]
    if damage:
        summary = run.summary.model_copy(update={"limits": (*damage, *run.summary.limits)})
        return Run(run.path, run.verb, summary)
    return run


def _opened(folder: Path) -> Run:
    if folder.is_file():
        raise DataError(
            f"'{folder}' is a file, no run directory: name the folder of --out. (A page opens in a browser; of a sealed run "
            "diffmem verify says whether it is as it was sealed.)"
        )
    values = read_values(folder)
    if values is not None:
        if values["verb"] not in VERBS:
            raise DataError(f"'{folder}' is a run of '{values['verb']}', which this diffmem does not know.")
        verb = VERBS.get(values["verb"])
        again = verb.recognise(folder) if verb.live else None
        if again is not None:
            return Run(folder, verb.name, again)
        return Run(folder, verb.name, verb.summary.from_dict(values, folder / "summary.json"))
    if (folder / MANIFEST).exists():
        read_manifest(folder)  # a damaged one, or one of a newer version, is refused in its own words
    for name in VERBS:
        verb = VERBS.get(name)
        summary = verb.recognise(folder)
        if summary is not None:
            return Run(folder, name, summary)
    raise DataError(
        f"'{folder}' is no run directory: it has no summary.json and no {MANIFEST}. Name the folder of --out."
    )


def read_summary(folder: Path, kind: type[S]) -> S:
    """The summary of a run of one verb; DataError where another verb made it."""
    run = open_run(folder)
    if not isinstance(run.summary, kind):
        raise DataError(f"'{folder}' is a run of {run.verb}, not of {kind.verb}.")
    return run.summary


def as_run(source: Run | str | Path) -> Run:
    """A run from its folder; a Run is returned as it is."""
    return source if isinstance(source, Run) else open_run(source)


def folder_of(source: Run | str | Path) -> Path:
    """The folder of a run, for what reads its rows alone."""
    return source.path if isinstance(source, Run) else Path(source)
