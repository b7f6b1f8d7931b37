"""Data sets of the Hugging Face hub by name: the parquet files that the hub keeps of each, one split of them."""

from __future__ import annotations

from pathlib import Path

from diffmem.errors import DataError

PREFIX = "hf:"
REVISION = "refs/convert/parquet"
"""The branch into which the hub converts every data set that it can: CONFIG/SPLIT/0000.parquet."""


def is_hub_dataset(source: str | Path) -> bool:
    """Whether a source names a data set of the hub: hf:OWNER/NAME, or hf:OWNER/NAME/CONFIG/SPLIT."""
    return str(source).startswith(PREFIX)


def hub_tables(source: str | Path) -> list[Path]:
    """The parquet files of one split, downloaded unless they are there already (HF_HOME, HF_HUB_OFFLINE as usual).

    Nothing but parquet is read: no loading script of a data set runs.

    Args:
        source: hf:OWNER/NAME, whose configuration is `default` and whose split is `train`, or with both named.

    Raises:
        DataError: no such data set or split (those that there are get named), no way to the hub.
    """
    from huggingface_hub import snapshot_download

    parts = str(source).removeprefix(PREFIX).split("/")
    if len(parts) not in (2, 4) or not all(parts):
        raise DataError(f"'{source}'; expected hf:OWNER/NAME or hf:OWNER/NAME/CONFIG/SPLIT.")
    repository = "/".join(parts[:2])
    place = "/".join(parts[2:] or ("default", "train"))
    try:
        folder = snapshot_download(
            repository, repo_type="dataset", revision=REVISION, allow_patterns=[f"{place}/*.parquet"]
        )
        found = sorted((Path(folder) / place).glob("*.parquet"))
        splits = [] if found else _splits(repository)
    except Exception as problem:
        # The hub's client raises many kinds; all of them mean that the data cannot be had.
        said = next(iter(str(problem).splitlines()), "no answer")
        raise DataError(
            f"The data set '{source}' cannot be had from the Hugging Face hub ({type(problem).__name__}: {said}); download "
            "it and give the folder of its parquet files, or of what datasets.save_to_disk writes."
        ) from problem
    if not found:
        raise DataError(f"The data set {repository} has no {place}; name one: {_named(repository, splits)}.")
    return found


def _splits(repository: str) -> list[str]:
    from huggingface_hub import HfApi

    files = HfApi().list_repo_files(repository, repo_type="dataset", revision=REVISION)
    return list(dict.fromkeys(name.rsplit("/", 1)[0] for name in sorted(files) if name.endswith(".parquet")))


def _named(repository: str, splits: list[str]) -> str:
    names = [f"{PREFIX}{repository}/{split}" for split in splits[:8]]
    return ", ".join(names) + (", …" if len(splits) > len(names) else "")
