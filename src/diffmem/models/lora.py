"""Load a LoRA into a pipeline of any family, all of it or not at all.

diffusers loads what fits of a LoRA for another architecture, says so in a log line, and goes on with the rest missing.
An audit of such a model would be an audit of its base, so every layer is counted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffmem.errors import ModelError
from diffmem.models.loading import HUB_ID, first_line, quiet_libraries

FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""Names that diffusers and peft give to the file."""
PEFT_PREFIX = "base_model.model."
_PROBLEMS = (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError)


def lora_name(lora: str | Path) -> str:
    """What to call a LoRA: its file's name, or its folder's where the file has none of its own."""
    path = Path(str(lora))
    return path.parent.name or path.stem if path.name in FILES else path.stem if path.suffix else path.name


def load_lora(pipeline: Any, lora: str | Path) -> None:
    """Load a LoRA into a pipeline.

    Args:
        pipeline: any family's; those that diffusers gives no LoRA loader (PixArt, DiT, unconditional ones) take it
            through peft, into their network.
        lora: a .safetensors file, a folder with one, or a hub id; in the format of diffusers or of peft.

    Raises:
        ModelError: no such LoRA, a pickle, peft is missing, or a LoRA of another architecture, even in part.
    """
    import torch
    from safetensors import SafetensorError

    path = Path(lora).expanduser()
    if path.is_file() and path.suffix != ".safetensors":
        raise ModelError(f"The LoRA {path} is no .safetensors file; pickled LoRAs are not opened.")
    if not path.exists() and not HUB_ID.match(str(lora)):
        raise ModelError(f"There is no LoRA at {lora}, and it is no hub id of the form owner/name either.")
    try:
        import peft  # noqa: F401 - the loaders below need it, and say so less clearly
    except ImportError as problem:
        raise ModelError("LoRAs need peft, which is not installed: pip install 'diffmem[lora]'.") from problem
    try:
        with quiet_libraries():
            file = _file(path, lora)
            if hasattr(pipeline, "load_lora_weights") and not _in_peft_format(file):
                wanted = _load_by_diffusers(pipeline, path, lora)
            else:
                wanted = _load_by_peft(_network(pipeline), file)
    except (*_PROBLEMS, SafetensorError) as problem:
        raise ModelError(
            f"The LoRA {lora} cannot be loaded into a {type(pipeline).__name__} of these sizes: {first_line(problem)}"
        ) from problem
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    loaded = sum(_layers(dict(part.named_parameters())) for part in parts)
    if loaded == 0 or loaded < wanted:
        raise ModelError(
            f"The LoRA {lora} is for another architecture: {loaded} of its {wanted} layers fit a "
            f"{type(pipeline).__name__}, and a LoRA in part is another model."
        )
    for part in parts:
        part.eval()  # new layers begin in training mode, with dropout


def _layers(weights: Mapping[str, Any]) -> int:
    """How many layers these weights adapt."""
    return sum(".lora_A." in name or ".lora.down." in name or name.endswith(".lokr_w1") for name in weights)


def _network(pipeline: Any) -> Any:
    return pipeline.components.get("unet") or pipeline.components["transformer"]


def _file(path: Path, lora: str | Path) -> Path | None:
    """The LoRA's file; None for a hub id, whose file is found by name when it is needed."""
    if path.is_file():
        return path
    if not path.exists():
        return None
    found = [path / name for name in FILES if (path / name).exists()] or sorted(path.glob("*.safetensors"))
    if not found:
        raise ModelError(f"The folder {path} holds no .safetensors file, so no LoRA; pickled LoRAs are not opened.")
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:4])
        raise ModelError(f"The folder {lora} holds several LoRAs ({names}): give one file.")
    return found[0]


def _in_peft_format(file: Path | None) -> bool:
    from safetensors import safe_open

    if file is None:
        return False
    with safe_open(file, "pt") as opened:
        return any(key.startswith(PEFT_PREFIX) for key in opened.keys())  # noqa: SIM118 - no mapping, it has keys() only


def _load_by_diffusers(pipeline: Any, path: Path, lora: str | Path) -> int:
    """Load through the pipeline's own loader; the layers that the LoRA has."""
    place: dict[str, Any] = {"use_safetensors": True}
    source = str(lora)
    if path.exists():
        file = _file(path, lora)
        assert file is not None
        source, place["weight_name"] = str(file.parent), file.name
    pipeline.load_lora_weights(source, **place)
    converted = pipeline.lora_state_dict(source, **place)
    return _layers(converted[0] if isinstance(converted, tuple) else converted)


def _load_by_peft(network: Any, file: Path | None) -> int:
    """Inject adapters of peft into a network and fill them; the layers that the LoRA has.

    Ranks are read from the weights; alpha from adapter_config.json beside the file, else it equals the rank.
    """
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    if file is None:
        raise ModelError("A LoRA for this model must be a file or a folder here; download it from the hub first.")
    weights = {_bare(name): value for name, value in load_file(file).items()}
    ranks = {name.rpartition(".lora_A.")[0]: len(value) for name, value in weights.items() if ".lora_A." in name}
    if not ranks:
        raise ModelError(f"{file} holds no weights named ….lora_A.weight, the format that this model can take.")
    known = dict(network.named_modules())
    strange = [name for name in ranks if name not in known]
    if strange:
        raise ModelError(
            f"The LoRA {file} is for another architecture: {len(ranks) - len(strange)} of its {len(ranks)} layers are in "
            f"a {type(network).__name__}, and for example {strange[0]} is not."
        )
    beside = file.parent / "adapter_config.json"
    if beside.exists():
        config = LoraConfig.from_pretrained(str(file.parent))
        config.inference_mode = True
    else:
        config = LoraConfig(
            r=next(iter(ranks.values())), lora_alpha=next(iter(ranks.values())), target_modules=list(ranks),
            rank_pattern=ranks, alpha_pattern=ranks,
        )  # fmt: skip
    inject_adapter_in_model(config, network)
    set_peft_model_state_dict(network, weights)
    return len(ranks)


def _bare(name: str) -> str:
    """A weight's name inside the network as peft calls it, without the prefixes of peft and diffusers."""
    for prefix in (PEFT_PREFIX, "transformer.", "unet."):
        name = name.removeprefix(prefix)
    return name.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")
