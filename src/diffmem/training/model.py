"""Which weights are trained: all, an adapter's, or fresh ones; and how the result is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffmem.atomic import write_atomic
from diffmem.errors import ModelError, UsageError
from diffmem.models.loading import quiet_libraries
from diffmem.models.target import Target
from diffmem.randomness import seed_of
from diffmem.training.checkpoint import whole_folder
from diffmem.training.plan import ModelPlan

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass
class Trainable:
    """The model of a training run.

    Attributes:
        target: the model; its pipeline holds the weights being trained.
        modules: the parts that are trained, by the pipeline's names.
        parameters: by name ("unet.conv_in.weight"), those that move.
        plan: the model's section of the plan.
    """

    target: Target
    modules: dict[str, torch.nn.Module]
    parameters: dict[str, torch.nn.Parameter]
    plan: ModelPlan

    @property
    def pipeline(self) -> Any:
        """The pipeline in training."""
        return self.target.pipeline

    def save(self, folder: Path) -> Path:
        """Write what was trained: the pipeline to folder/model, or the adapter to folder/lora; returns that path.

        Raises:
            IncompleteRun: the disk is full; an earlier model there is kept.
        """
        return self.save_as(folder / ("lora" if self.plan.method == "lora" else "model"))

    def save_as(self, saved: Path) -> Path:
        """Write what was trained, as `save` does, to this very folder."""
        with whole_folder(saved) as place, quiet_libraries():
            if self.plan.method == "lora":
                _save_lora(self.pipeline, self.modules, place)
                for file in sorted(place.rglob("*.safetensors")):
                    order_metadata(file)
            else:
                self.pipeline.save_pretrained(place)
        return saved


def open_base(base: str, device: str | None) -> Target:
    """The base model: a folder, a hub id, or a bundled testbed; always in float32."""
    target = Target.from_pretrained(base, device=device, name=base)
    target.require_check()
    return target


def prepare_model(plan: ModelPlan, target: Target, seed: int) -> Trainable:
    """Make a loaded model trainable as the plan says.

    Args:
        plan: method, adapters, text encoder.
        target: in float32 (mixed precision is autocast, weights stay in float32).
        seed: root seed of fresh weights and adapters.

    Raises:
        ModelError: a model without a pipeline, or whose parts take no adapter.
        UsageError: a text encoder that the model does not have.
    """
    pipeline = target.pipeline
    if target.is_function:
        raise ModelError("Only a diffusers pipeline can be trained; this model was given as a function.")
    name = target.need_denoiser().network_name  # type: ignore[attr-defined]
    names = [name]
    if plan.text_encoder == "trained":
        encoders = [n for n in ENCODERS if getattr(pipeline, n, None) is not None]
        if not encoders:
            raise UsageError("model.text_encoder = 'trained', but this model has no text encoder.")
        names += encoders
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
            part.eval()
    modules: dict[str, torch.nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "training", "weights"))
        for part_name in names:
            if plan.method == "scratch":
                _draw_anew(getattr(pipeline, part_name))
            modules[part_name] = getattr(pipeline, part_name)
            if plan.method == "lora":
                _add_adapter(modules[part_name], part_name, plan)
            else:
                modules[part_name].requires_grad_(True)
    parameters = {
        f"{part}.{key}": value
        for part, module in modules.items()
        for key, value in module.named_parameters()
        if value.requires_grad
    }
    if not parameters:
        raise ModelError(
            f"None of the layers {', '.join(plan.lora_targets)} was found in {name}; set model.lora_targets to names of "
            "its own linear layers."
        )
    return Trainable(target, modules, parameters, plan)


def _draw_anew(module: Any) -> None:
    """Fresh weights, as a module of the same config has them."""
    fresh = type(module)(module.config) if _is_transformers(module) else type(module).from_config(module.config)
    module.load_state_dict(fresh.state_dict())


def _is_transformers(module: Any) -> bool:
    return type(module).__module__.startswith("transformers.")


def _add_adapter(module: Any, name: str, plan: ModelPlan) -> None:
    try:
        from peft import LoraConfig
    except ImportError as problem:
        raise UsageError("Training a LoRA needs peft: pip install 'diffmem[lora]'.") from problem
    # Text encoders of transformers call the same four layers q_proj, k_proj, v_proj and out_proj (T5: q, k, v, o).
    targets: Sequence[str] = plan.lora_targets
    if _is_transformers(module):
        targets = ("q_proj", "k_proj", "v_proj", "out_proj") if "T5" not in type(module).__name__ else tuple("qkvo")
    if not hasattr(module, "add_adapter"):
        raise ModelError(f"{type(module).__name__} ({name}) takes no adapter; choose model.method = 'full'.")
    config = LoraConfig(
        r=plan.lora_rank, lora_alpha=plan.lora_alpha or plan.lora_rank, target_modules=list(targets),
        init_lora_weights="gaussian",
    )  # fmt: skip
    try:
        module.add_adapter(config)
    except ValueError as problem:
        first = str(problem).splitlines()[0]
        raise ModelError(f"{type(module).__name__} takes no adapter on {', '.join(targets)}: {first}") from problem


def _save_lora(pipeline: Any, modules: dict[str, torch.nn.Module], folder: Path) -> None:
    from peft.utils import get_peft_model_state_dict

    for module in modules.values():
        config: Any = module.peft_config["default"]  # type: ignore[index]
        for name, value in vars(config).items():
            if isinstance(value, set):
                setattr(config, name, sorted(value))  # a set is written in another order by every process
    if not hasattr(pipeline, "save_lora_weights"):
        for name, module in modules.items():
            module.save_lora_adapter(folder / name)  # type: ignore[operator]
        return
    # In peft's names: those of diffusers exist for attention only, and a mixture of both is read in part.
    layers = {f"{name}_lora_layers": get_peft_model_state_dict(module) for name, module in modules.items()}
    # Without it alpha is lost, and a LoRA that is loaded again counts it as its rank.
    settings = {
        f"{name}_lora_adapter_metadata": module.peft_config["default"].to_dict()  # type: ignore[union-attr, index]
        for name, module in modules.items()
    }
    pipeline.save_lora_weights(folder, safe_serialization=True, **layers, **settings)


def order_metadata(file: Path) -> None:
    """Write the metadata of a safetensors file in the order of their names: safetensors takes another one every time."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if "__metadata__" not in header:
        return
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    write_atomic(file, len(text).to_bytes(8, "little") + text + data[8 + size :])
