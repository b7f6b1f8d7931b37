"""Find and read a LoRA's files: weights, header, peft's config, embeddings of new tokens; every file beside is named."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffmem.atomic import user_path
from diffmem.errors import ModelError, first_line
from diffmem.models.loading import HUB_ID
from diffmem.models.lora.choice import FILES, PICKLED
from diffmem.models.lora.sniff import sniff

COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
TRAINERS = ("optimizer", "scheduler", "scaler", "training_args", "random_states_0", "prior_optimizer")
"""Names of what trainers keep for going on; it is no part of a model."""
_PROBLEMS = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, EOFError)


@dataclass
class Weights:
    """One file of weights.

    Attributes:
        file: where it is.
        component: the pipeline's component that its folder is called after, or "".
        tensors: by key.
        header: of the safetensors file.
        config: adapter_config.json beside it, or None.
    """

    file: Path
    component: str
    tensors: dict[str, Any]
    header: dict[str, str]
    config: dict[str, Any] | None = None


@dataclass
class LoraFiles:
    """All files of one LoRA.

    Attributes:
        weights: of layers.
        tokens: files with embeddings of new tokens, read.
        unused: names of weight files in the same folder that are not taken for parts of it.
    """

    weights: list[Weights]
    tokens: list[Weights] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def read_lora(lora: str, allow_pickle: bool = False) -> LoraFiles:
    """Find and read a LoRA.

    Args:
        lora: a file, a folder, or a hub id (owner/name, or owner/name/file).
        allow_pickle: also read .bin, .pt and .ckpt files.

    Raises:
        ModelError: there is none, there are several, or it cannot be read.
    """
    path = user_path(lora)
    if not path.exists():
        path = _from_hub(lora)
    elif not path.is_file() and not path.is_dir():
        raise ModelError(f"The LoRA {lora} is a pipe or a device; expected a .safetensors file or a folder.")
    if path.is_file():
        whole_folder = path.name in FILES
        files, folder = [(path, "")], path.parent
    else:
        whole_folder, folder = True, path
        files = _chosen(path, lora, allow_pickle)
    weights = [_read(file, component, allow_pickle) for file, component in files]
    read = LoraFiles(weights)
    for other in sorted(f for f in folder.iterdir() if f.suffix in (".safetensors", *PICKLED)):
        if any(other == file for file, _ in files) or other.stem in TRAINERS:
            continue
        if _named_embeddings(other, files[0][0], whole_folder):
            read.tokens.append(_read(other, "", allow_pickle))
        elif whole_folder:
            read.unused.append(other.name)
    return read


def _named_embeddings(file: Path, weights: Path, whole_folder: bool) -> bool:
    """Whether a file is called as trainers call the embeddings that belong to a LoRA."""
    if file.stem.startswith("learned_embeds") or file.stem.endswith("_emb"):
        return whole_folder or file.stem == f"{weights.stem}_emb"
    return False


def _chosen(folder: Path, lora: str, allow_pickle: bool) -> list[tuple[Path, str]]:
    """The files of weights in a folder, each with the component that it is for."""
    own = [folder / name for name in FILES if (folder / name).exists()]
    if not own:
        own = [f for f in sorted(folder.glob("*.safetensors")) if not _named_embeddings(f, f, True)]
    if not own:
        parts = [(folder / name, name) for name in COMPONENTS if (folder / name).is_dir()]
        inner = [(file, name) for place, name in parts for file in [*map(place.joinpath, FILES)] if file.exists()]
        if inner:
            return inner
        pickles = sorted(f for f in folder.iterdir() if f.suffix in PICKLED and f.stem not in TRAINERS)
        if pickles and not allow_pickle:
            raise ModelError(_pickle_refusal(pickles[0]))
        own = [f for f in pickles if not _named_embeddings(f, f, True)]
    if not own:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        deeper = sorted({p.parent.name for p in folder.glob("*/*.safetensors")})
        more = f" Some lie deeper; give one, such as {folder / deeper[-1]}." if deeper else ""
        raise ModelError(f"The folder {lora} holds no .safetensors file, so no LoRA (found: {found}).{more}")
    if len(own) > 1:
        names = ", ".join(file.name for file in own[:4])
        raise ModelError(
            f"The folder {lora} holds several LoRAs ({names}): give one file, or several with --lora each."
        )
    return [(own[0], "")]


def _pickle_refusal(file: Path) -> str:
    return (
        f"The LoRA {file} is a pickle, which can run code when opened. Convert it to safetensors, or pass "
        "allow_pickle=True (--allow-pickle) if you trust its source."
    )


def _from_hub(lora: str) -> Path:
    """Download a LoRA's repository: the weights at its top and the configs, not what else it holds."""
    owner, _, rest = lora.partition("/")
    name, _, inside = rest.partition("/")
    if not HUB_ID.match(f"{owner}/{name}") or (inside and not inside.endswith((".safetensors", *PICKLED))):
        raise ModelError(f"There is no LoRA at {lora}, and it is no hub id of the form owner/name either.")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repository = f"{owner}/{name}"
    wanted = [inside] if inside else ["*.json", "*.safetensors", *(f"{part}/*" for part in COMPONENTS)]
    try:
        try:
            names = HfApi().list_repo_files(repository)
        except (OfflineModeIsEnabled, OSError):
            names = []  # offline: what an earlier run has downloaded
        if "model_index.json" in names:
            raise ModelError(f"{repository} is a whole model, not a LoRA: give it as the model.")
        if not inside and not any("/" not in n and n in FILES for n in names):
            top = [n for n in names if "/" not in n and n.endswith(".safetensors") and "_emb" not in n]
            if len(top) > 1:
                raise ModelError(
                    f"The repository {repository} holds several LoRAs ({', '.join(top[:4])}): give one, as "
                    f"{repository}/{top[0]}."
                )
        folder = Path(snapshot_download(repository, allow_patterns=wanted, local_files_only=not names))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as problem:
        raise ModelError(
            f"There is no LoRA at {lora}: no such file or folder here, and the hub says: {first_line(problem)}"
        ) from problem
    return folder / inside if inside else folder


def _read(file: Path, component: str, allow_pickle: bool) -> Weights:
    beside = file.parent / "adapter_config.json"
    config = None
    alone = file.name in FILES or len(list(file.parent.glob("*.safetensors"))) == 1
    if beside.exists() and alone:  # among several files it need not be this one's
        try:
            config = json.loads(beside.read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ValueError("no object")
        except ValueError as problem:
            raise ModelError(f"{beside} is not valid JSON ({problem}); copy the LoRA again.") from problem
    kind = sniff(file)
    if kind == "safetensors":
        tensors, header = _read_safetensors(file)
    elif kind == "pickle":
        if not allow_pickle:
            raise ModelError(_pickle_refusal(file))
        tensors, header = _read_pickle(file), {}
    else:
        raise ModelError(
            f"The LoRA {file} cannot be loaded: it is {kind}; expected a .safetensors file. Copy or download it again."
        )
    if not tensors:
        raise ModelError(f"The LoRA {file} cannot be loaded: it holds no weights at all.")
    return Weights(file, component, tensors, header, config)


def _read_safetensors(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            header = dict(opened.metadata() or {})
            return {key: opened.get_tensor(key) for key in opened.keys()}, header  # noqa: SIM118 - no mapping
    except (SafetensorError, *_PROBLEMS) as problem:
        raise ModelError(f"The LoRA {file} cannot be loaded: {first_line(problem)}") from problem


def _read_pickle(file: Path) -> dict[str, Any]:
    """Tensors of a pickle, opened with torch's restricted reader."""
    import torch

    try:
        read = torch.load(file, map_location="cpu", weights_only=True)
    except (*_PROBLEMS, pickle.UnpicklingError) as problem:
        raise ModelError(f"The LoRA {file} cannot be loaded: {first_line(problem)}") from problem
    if isinstance(read, Mapping) and isinstance(read.get("state_dict"), Mapping):
        read = read["state_dict"]
    if not isinstance(read, Mapping):
        raise ModelError(f"The LoRA {file} cannot be loaded: it holds a {type(read).__name__}, expected named tensors.")
    strange = [name for name, value in read.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise ModelError(
            f"The LoRA {file} cannot be loaded: {strange[0]!r} in it is no tensor ({len(strange)} of {len(read)} entries)."
        )
    return {str(name): value for name, value in read.items()}
