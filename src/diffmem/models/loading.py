"""Open a pipeline from a folder or a hub id: safetensors only, no remote code, one clear sentence per failure."""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffmem.errors import ModelError
from diffmem.models.known import known_models, loading_hint, resolve

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_WEIGHTLESS = {"tokenizer", "tokenizer_2", "tokenizer_3", "scheduler", "feature_extractor", "image_processor"}


def load_pipeline(
    source: str | Path, *, dtype: Any = None, revision: str | None = None, allow_pickle: bool = False
) -> Any:
    """A diffusers pipeline in eval mode.

    Args:
        source: a pipeline folder (with model_index.json), a hub id "owner/name" or a well-known model's alias.
        dtype: torch dtype of the weights; None for float32.
        revision: of the hub repository.
        allow_pickle: also open .bin weights, which can run code while they are read.

    Raises:
        ModelError: what was found, what was expected and what to do.
    """
    source = resolve(source)
    folder = Path(source).expanduser()
    if folder.exists():
        _check_folder(folder, allow_pickle)
        source = str(folder)
    elif not HUB_ID.match(str(source)):
        close = difflib.get_close_matches(str(source).lower(), [n for m in known_models() for n in m.names], n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ModelError(
            f"There is no folder {source}, and it is neither a hub id of the form owner/name nor an alias of a "
            f"well-known model (diffmem doctor --models).{hint}"
        )
    import torch

    try:
        with quiet_libraries():
            pipeline = _pipeline_class(source, revision).from_pretrained(
                source,
                dtype=dtype or torch.float32,
                revision=revision,
                use_safetensors=None if allow_pickle else True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError) as problem:
        said = f"{loading_hint(source)} The loader says: {first_line(problem)}".strip()
        raise ModelError(f"The model {source} cannot be opened. {said}") from problem
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipeline


def _pipeline_class(source: str | Path, revision: str | None) -> Any:
    """DiffusionPipeline, which finds the class itself, or our own for unconditional latent diffusion."""
    import diffusers

    from diffmem.models.latent_pipeline import REPLACED, UnconditionalLatentPipeline, is_unconditional_latent

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers passes an argument that the hub's client no longer takes
            index = diffusers.DiffusionPipeline.load_config(source, revision=revision)
    except (OSError, ValueError):
        return diffusers.DiffusionPipeline  # opening it says better why it cannot be read
    name = index.get("_class_name")
    parts = {k: v for k, v in index.items() if not k.startswith("_") and isinstance(v, list) and v[0] is not None}
    gone = isinstance(name, str) and (name in REPLACED or not hasattr(diffusers, name))
    if gone and is_unconditional_latent(parts):
        return UnconditionalLatentPipeline
    return diffusers.DiffusionPipeline


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


def _check_folder(folder: Path, allow_pickle: bool) -> None:
    from diffmem.models.lora.sniff import is_lora

    if not (folder / "model_index.json").exists() and is_lora(folder):
        raise ModelError(
            f"{folder} is a LoRA, not a model: give its base as the model, and this with --lora (lora=...)."
        )
    if folder.is_file():
        raise ModelError(
            f"{folder} is a file; expected a diffusers pipeline folder (with model_index.json) or a hub id."
        )
    index_file = folder / "model_index.json"
    if not index_file.exists():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        kind = (
            " This looks like a single component; give the folder above it."
            if (folder / "config.json").exists()
            else ""
        )
        raise ModelError(f"{folder} has no model_index.json (found: {found}), so it is no diffusers pipeline.{kind}")
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ModelError(f"{index_file} is not valid JSON ({problem}); copy the model again.") from problem
    if isinstance(index.get("_class_name"), list):
        raise ModelError(f"{folder} asks for a pipeline class of its own (remote code), which diffmem never runs.")
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or entry[0] is None:
            continue
        _check_component(folder, name, allow_pickle)


def _check_component(folder: Path, name: str, allow_pickle: bool) -> None:
    part = folder / name
    if not part.is_dir() and any((folder / f).exists() for f in ("config.json", "scheduler_config.json")):
        part = folder  # the flat layout of early diffusers: the files of all components beside model_index.json
    if not part.is_dir():
        raise ModelError(f"The component '{name}' named in {folder / 'model_index.json'} is missing: no folder {part}.")
    if name in _WEIGHTLESS:
        return
    if any(part.glob("*.safetensors")):
        return
    pickles = [p.name for p in part.iterdir() if p.suffix in _PICKLES]
    if pickles and not allow_pickle:
        raise ModelError(
            f"The weights of '{name}' are a pickle ({pickles[0]}), which can run code when opened. Convert them to "
            "safetensors, or pass allow_pickle=True (--allow-pickle) if you trust their source."
        )
    if not pickles and (part / "config.json").exists():
        raise ModelError(f"The component '{name}' in {part} has a config but no weights (*.safetensors).")


def first_line(problem: Exception) -> str:
    """What an exception says, without what follows its first line."""
    text = str(problem).strip()
    return text.splitlines()[0] if text else type(problem).__name__
