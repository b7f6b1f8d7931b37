"""Open a single-file checkpoint (.safetensors or .ckpt, as Civitai and ComfyUI keep them) with configs that are here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffmem.errors import ModelError, first_line
from diffmem.models.components import not_from_files, not_in_model, pipeline_class
from diffmem.models.families._inputs import kind_of
from diffmem.models.folder import check_file, parts_of, read_index
from diffmem.models.lora.sniff import sniff

SUFFIXES = (".safetensors", ".ckpt")
_RENAMED = ("model.diffusion_model.", "first_stage_model.encoder.", "first_stage_model.decoder.")
_CONVERT = (
    "Convert it where the hub can be reached: in Python, "
    "diffusers.DiffusionPipeline of its kind, .from_single_file(FILE).save_pretrained(FOLDER), and give the folder; "
    "or put the file into a folder of its kind's configs (model_index.json and the components' config files)."
)


def load_single_file(file: Path, dtype: Any, allow_pickle: bool) -> Any:
    """A pipeline from one file through diffusers' own converter.

    The configs are those of the folder that the file lies in, if it has a model_index.json, else those of the kind
    that diffusers recognises, where they are in the hub's cache; nothing is downloaded.

    Raises:
        ModelError: no checkpoint, a LoRA, no configs here, or weights that are not all in the file.
    """
    check_file(file)
    if file.name in ("model_index.json", "config.json"):
        raise ModelError(f"{file} is a config; give the folder of the whole pipeline, in which model_index.json lies.")
    if file.suffix not in SUFFIXES:
        raise ModelError(
            f"{file} is a file; expected a diffusers pipeline folder (with model_index.json), a single-file checkpoint "
            f"({' or '.join(SUFFIXES)}) or a hub id."
        )
    if file.suffix == ".ckpt" and not allow_pickle:
        raise ModelError(
            f"{file} is a pickle, which can run code when opened. Convert it to safetensors, or pass allow_pickle=True "
            "(--allow-pickle) if you trust its source."
        )
    if file.suffix == ".safetensors" and (found := sniff(file)) != "safetensors":
        raise ModelError(f"{file} is no readable safetensors file but {found}; copy it again.")
    folder = file.parent if (file.parent / "model_index.json").exists() else _cached_configs(file)
    index = read_index(folder)
    parts_of(folder, index, allow_pickle, None, weights=False)
    kind = pipeline_class(index, folder)
    import diffusers

    kind = getattr(diffusers, index["_class_name"], kind)
    if not hasattr(kind, "from_single_file"):
        raise ModelError(f"diffusers opens no single file as a {index['_class_name']}. {_CONVERT}")
    pipeline = _opened(kind, file, folder, dtype, seed=0)
    _refuse_unread(pipeline, file)
    _refuse_random(pipeline, file, lambda: _opened(kind, file, folder, dtype, seed=1))
    return pipeline


def _opened(kind: Any, file: Path, folder: Path, dtype: Any, seed: int) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            pipeline = kind.from_single_file(str(file), config=str(folder), local_files_only=True, dtype=dtype)
        except Exception as problem:  # the converter raises anything at all on another kind of file
            what = first_line(problem)
            if "meta tensor" in what:
                what = "it holds no weights for parts of the model."
            raise ModelError(
                f"The file {file} cannot be opened as a {kind.__name__} with the configs of {folder}: {what} {_CONVERT}"
            ) from problem
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipeline


def _refuse_random(pipeline: Any, file: Path, reopen: Any) -> None:
    """Refuse weights that the file does not hold: those that differ from one opening to the next."""
    import torch

    files = [file] if file.suffix == ".safetensors" else []
    strange = {
        name: lost
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module) and (lost := not_from_files(part, files))
    }
    if not strange:
        return
    again = reopen()
    for name, lost in strange.items():
        ours, theirs = (dict(getattr(p, name).named_parameters()) for p in (pipeline, again))
        drawn = [key for key in lost if ours[key].is_meta or not torch.equal(ours[key], theirs[key])]
        if drawn:
            raise ModelError(
                f"{file} holds no weights for {len(drawn)} parameters of '{name}', such as {drawn[0]}, which would be "
                f"drawn at random. {_CONVERT}"
            )


def _refuse_unread(pipeline: Any, file: Path) -> None:
    """Refuse weights of the file that configs of fewer layers leave out, where the converter only renames weights."""
    if file.suffix != ".safetensors" or kind_of(pipeline.components.get("unet")) != "UNet2DConditionModel":
        return
    kept = [weight for name in ("unet", "vae") for weight in pipeline.components[name].parameters()]
    lost = [key for key in not_in_model(file, kept) if key.startswith(_RENAMED)]
    if lost:
        raise ModelError(
            f"{file} holds {len(lost)} weights that the configs beside it leave out, such as {lost[0]}: the model would be run "
            f"without them. {_CONVERT}"
        )


def _cached_configs(file: Path) -> Path:
    """The folder of configs of the kind that diffusers takes the file for, from the hub's cache."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
    from huggingface_hub import snapshot_download

    try:
        repository = fetch_diffusers_config(load_single_file_checkpoint(str(file)))["pretrained_model_name_or_path"]
    except Exception as problem:  # of torch and diffusers, on a file of another kind
        raise ModelError(f"{file} cannot be read as a checkpoint: {first_line(problem)} {_CONVERT}") from problem
    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except Exception as problem:
        raise ModelError(
            f"{file} is a single-file checkpoint, which diffusers takes for the kind of {repository}; the configs of "
            f"that kind are not on this machine. {_CONVERT}"
        ) from problem
