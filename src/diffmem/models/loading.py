"""Open a pipeline from a folder, a file or a hub id: safetensors only, no remote code, one clear sentence per failure."""

from __future__ import annotations

import difflib
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffmem.atomic import user_path
from diffmem.errors import ModelError
from diffmem.errors import first_line as first_line
from diffmem.models.folder import parts_of, read_index
from diffmem.models.known import known_models, loading_hint, resolve

_LOG = logging.getLogger(__name__)

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
OPTIONAL = frozenset({"safety_checker", "feature_extractor", "image_encoder", "watermark"})
"""Parts that a prompt's way to an image does not pass: a model is opened without those that cannot be opened here."""


def load_pipeline(
    source: str | Path,
    *,
    dtype: Any = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    variant: str | None = None,
) -> Any:
    """A diffusers pipeline in eval mode, every weight of which comes from its files.

    Args:
        source: a pipeline folder (with model_index.json), a single-file checkpoint, a hub id "owner/name" or a
            well-known model's alias.
        dtype: torch dtype of the weights; None for float32.
        revision: of the hub repository.
        allow_pickle: also open .bin and .ckpt weights, which can run code while they are read.
        variant: of the weights' files ("fp16"); parts without it are opened plain.

    Returns:
        The pipeline. Parts left out that a prompt's way to an image does not pass are named in a log warning.

    Raises:
        ModelError: what was found, what was expected and what to do.
    """
    import torch

    dtype = dtype or torch.float32
    source = resolve(source)
    path = user_path(source)
    try:
        there = path.exists()
    except (OSError, ValueError) as problem:
        raise ModelError(f"{str(source)[:200]!r} is no path that this machine can look at: {problem}.") from problem
    from diffmem.models.lora.sniff import is_lora

    if there and not (path / "model_index.json").exists() and is_lora(path):
        raise ModelError(f"{path} is a LoRA, not a model: give its base as the model, and this with --lora (lora=...).")
    if there and not path.is_dir():
        from diffmem.models.single_file import load_single_file

        with quiet_libraries():
            return load_single_file(path, dtype, allow_pickle)
    if not there and not HUB_ID.match(str(source)):
        close = difflib.get_close_matches(str(source).lower(), [n for m in known_models() for n in m.names], n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ModelError(
            f"There is no folder {source}, and it is neither a hub id of the form owner/name nor an alias of a "
            f"well-known model (diffmem doctor --models).{hint}"
        )
    with quiet_libraries():
        folder = path if there else _downloaded(str(source), revision, allow_pickle, variant)
        return _load_folder(folder, str(source), dtype, allow_pickle, variant)


def _downloaded(source: str, revision: str | None, allow_pickle: bool, variant: str | None) -> Path:
    """The folder in the hub's cache; what is there already is not fetched again."""
    from diffmem.models.components import pipeline_class

    try:
        found = pipeline_class(_hub_index(source, revision), source).download(
            source, revision=revision, variant=variant, use_safetensors=None if allow_pickle else True,
            trust_remote_code=False,
        )  # fmt: skip
    except ModelError:
        raise
    except Exception as problem:  # of the network, the hub and its client
        said = f"{loading_hint(source)} The loader says: {first_line(problem)}".strip()
        raise ModelError(f"The model {source} cannot be opened. {said}") from problem
    return Path(found)


def _load_folder(folder: Path, source: str, dtype: Any, allow_pickle: bool, variant: str | None) -> Any:
    from diffmem.models.components import open_part, pipeline_class

    try:
        index = read_index(folder)
        parts = parts_of(folder, index, allow_pickle, variant)
    except OSError as problem:
        raise ModelError(f"The folder {folder} cannot be read: {first_line(problem)}") from problem
    kind = pipeline_class(index, source)
    opened: dict[str, Any] = {name: None for name in index if name in OPTIONAL}
    for part in parts:
        try:
            opened[part.name] = open_part(part, dtype, allow_pickle)
        except ModelError as problem:
            if part.name not in OPTIONAL:
                raise
            _LOG.warning("%s The model is opened without it.", problem)
    if "safety_checker" in opened and opened.get("feature_extractor") is None:
        opened["safety_checker"] = None  # it looks at what the extractor makes of an image
    try:
        pipeline = kind.from_pretrained(str(folder), **opened, dtype=dtype, trust_remote_code=False)
    except Exception as problem:  # of diffusers, on an index that is of no pipeline or lacks parts
        said = first_line(problem)
        if isinstance(problem, NameError):  # what only an optional package would define
            said = f"{said}; diffusers needs a Python package for it that is not installed (torchvision, perhaps)."
        raise ModelError(f"The model {source} cannot be opened. The loader says: {said}") from problem
    return pipeline


def _hub_index(source: str, revision: str | None) -> dict[str, Any]:
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers passes an argument that the hub's client no longer takes
        index: dict[str, Any] = diffusers.DiffusionPipeline.load_config(source, revision=revision)
    return index


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars and no notices (such as one on torchvision, which is not needed) while a model is opened."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    bars = diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    levels = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, bar, level in zip((diffusers_logging, transformers_logging), bars, levels, strict=True):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()
