"""Write what curation proposes: the table, and on request the modified dataset; originals stay as they are."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from diffmem.atomic import write_atomic
from diffmem.copies.curation import Proposal
from diffmem.data.images import ImageSet
from diffmem.data.png import png_bytes
from diffmem.errors import UsageError
from diffmem.experiments.curate.trials import changed
from diffmem.training.checkpoint import whole_folder

Format = Literal["folder", "parquet"]


def write_table(folder: Path, proposals: Sequence[Proposal], about: Mapping[str, Any]) -> list[Path]:
    """`proposal.csv`, `proposal.parquet` and `proposal.json` (with `about`)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [proposal.as_dict() for proposal in proposals]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    write_atomic(folder / "proposal.csv", text.getvalue().encode("utf-8"))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    write_atomic(folder / "proposal.parquet", memoryview(sink.getvalue()))
    document = {**about, "images": [{key: _finite(value) for key, value in row.items()} for row in rows]}
    write_atomic(folder / "proposal.json", json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode())
    return [folder / f"proposal.{kind}" for kind in ("csv", "parquet", "json")]


def write_trials(folder: Path, trials: Sequence[Any]) -> Path:
    """`trials.json`: every change that was measured, each image's smallest first."""
    write_atomic(folder / "trials.json", json.dumps([trial.as_dict() for trial in trials], indent=1).encode())
    return folder / "trials.json"


def write_dataset(
    folder: Path, images: ImageSet, proposals: Sequence[Proposal], how: Format, seed: int
) -> tuple[Path, int]:
    """The set as the proposals would have it, in the order of the original.

    A folder holds PNG files (`a.jpg` as `a.png`, or as `a.jpg.png` where both are images) and `metadata.jsonl` (file_name,
    caption); Parquet the columns id, image {bytes, path} and caption.

    Returns:
        Where it lies and how many images it has.

    Raises:
        UsageError: the place lies inside the original set, or is there already.
    """
    place = folder / ("dataset" if how == "folder" else "dataset.parquet")
    if images.path is not None and place.resolve().is_relative_to(images.path.resolve()):
        raise UsageError(
            f"'{place}' lies inside the images themselves, which are not to be touched; give another --out."
        )
    if place.exists():
        raise UsageError(f"'{place}' is there already; give another --out, or delete it.")
    by_id = {proposal.image_id: proposal for proposal in proposals}
    items = _changed(images, by_id, seed)
    return _write_folder(place, items, by_id) if how == "folder" else _write_parquet(place, items)


def _changed(
    images: ImageSet, by_id: Mapping[str, Proposal], seed: int
) -> Iterator[tuple[str, Image.Image, str | None]]:
    """Id, picture and caption of every image that stays."""
    for item in images:
        proposal = by_id[item.id]
        if item.image is None or proposal.action in ("drop", "de-duplicate"):
            continue
        caption = proposal.new_caption if proposal.action == "re-caption" else item.caption
        yield item.id, changed(images, item.id, item.image, proposal.action, seed), caption


def _write_folder(
    place: Path, items: Iterator[tuple[str, Image.Image, str | None]], ids: Iterable[str]
) -> tuple[Path, int]:
    lines = []
    written = {name.casefold(): name for name in sorted(ids, reverse=True) if name.endswith(".png")}
    with whole_folder(place) as unfinished:
        for name, image, caption in items:
            file = _png_name(name, written)
            if file.is_absolute() or ".." in file.parts:
                raise UsageError(f"The id '{name}' leads out of the dataset; write it with --format parquet.")
            write_atomic(unfinished / file, png_bytes(image))
            row = {"file_name": file.as_posix()} | ({"caption": caption} if caption else {})
            lines.append(json.dumps(row, ensure_ascii=False))
        text = "\n".join(lines) + "\n"
        write_atomic(unfinished / "metadata.jsonl", text.encode("utf-8", errors="backslashreplace"))
    return place, len(lines)


def _png_name(name: str, written: dict[str, str]) -> Path:
    """Where an image of this id goes: `a.jpg` to `a.png`, or to `a.jpg.png` where that is another image's.

    Folders that do not tell large letters from small ones keep both, too.

    Args:
        name: the id.
        written: file names in small letters -> the id that each is for; this one is added.
    """
    file = Path(name)
    choices = [file.with_suffix(".png"), file.with_name(f"{file.name}.png")]
    choices += [file.with_name(f"{file.name}-{number}.png") for number in range(2, len(written) + 3)]
    free = next(one for one in choices if written.setdefault(one.as_posix().casefold(), name) == name)
    return Path(name) if name.endswith(".png") and free == choices[0] else free


def _write_parquet(place: Path, items: Iterator[tuple[str, Image.Image, str | None]]) -> tuple[Path, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("id", pa.string()), ("image", picture), ("caption", pa.string())])
    rows = [
        {"id": name, "image": {"bytes": png_bytes(image), "path": None}, "caption": caption}
        for name, image, caption in items
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    write_atomic(place, memoryview(sink.getvalue()))
    return place, len(rows)


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return "'" + value if isinstance(value, str) and value[:1] in "=+-@\t\r" else value


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "inf" if value > 0 else "-inf"
    return value
