"""Put the changes of LoRAs into a pipeline as adapters of peft, and hold what the layers then do against the files."""

from __future__ import annotations

import copy
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffmem.errors import ModelError
from diffmem.models.lora.changes import Change, Layers, factors, rows_of
from diffmem.models.lora.first_names import Part

TOLERANCE = 1e-3
"""Relative error of a layer's change against the file; twice the type's resolution where that is coarser."""


def layers_of(component: nn.Module, change: Change) -> Layers:
    """The layers of a change's place, without adapters around them."""
    return {part.layer: _base(component.get_submodule(part.layer)) for part in change.place.parts}


def _base(layer: Any) -> Any:
    return getattr(layer, "base_layer", layer)


class Installation:
    """The changes of all LoRAs of a pipeline, installed together and checked together."""

    def __init__(self, pipeline: Any, changes: Sequence[Change]) -> None:
        self.pipeline = pipeline
        self.changes = changes
        self._merged: dict[tuple[str, str, str], Tensor | None] = {}  # as they were before

    def install(self) -> None:
        """Adapters for weights of linear and convolutional layers; biases, norms and embeddings are changed in place."""
        adapters: dict[tuple[str, str], list[tuple[Change, Part]]] = defaultdict(list)
        for change in self.changes:
            for part in change.place.parts:
                layer = self._layer(change.place.component, part.layer)
                if change.on_weight and isinstance(layer, nn.Linear | nn.Conv2d):
                    dora = self._as_dora(change, part)
                    adapters[change.place.component, f"lora{change.lora}{'_dora' if dora else ''}"].append(
                        (change, part)
                    )
        for (component, name), pieces in adapters.items():
            self._add_adapter(self.pipeline.components[component], name, pieces)
        for component in {component for component, _ in adapters}:
            _activate(self.pipeline.components[component])
        for change in self.changes:
            for part in change.place.parts:
                self._merge(change, part)

    def _layer(self, component: str, layer: str) -> Any:
        return _base(self.pipeline.components[component].get_submodule(layer))

    def _as_dora(self, change: Change, part: Part) -> bool:
        """Whether peft's own DoRA does exactly this: magnitudes by rows, the whole change, no other LoRA in the layer."""
        t = change.entry.tensors
        if change.entry.kind != "LoRA" or "magnitude" not in t or "mid" in t or change.scale != 1:
            return False
        others = [c for c in self.changes if c is not change and c.place.component == change.place.component
                  and any(p.layer == part.layer for p in c.place.parts) and c.on_weight]  # fmt: skip
        return (
            not others and change.magnitude(t["up"].new_empty(t["up"].shape[0], t["down"].shape[1], device="meta"))[0]
        )

    def _add_adapter(self, component: nn.Module, name: str, pieces: Sequence[tuple[Change, Part]]) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        dora = name.endswith("_dora")
        made = {}
        for change, part in pieces:
            layers = layers_of(component, change)
            if dora:
                t, shape = change.entry.tensors, layers[part.layer].weight.shape
                up = rows_of(part, t["up"].float().flatten(1))
                made[part.layer] = (t["down"].float().reshape(-1, *shape[1:]), up, change.scaling)
            else:
                made[part.layer] = factors(change, part, layers)
        exact = {f"^{re.escape(layer)}": len(down) for layer, (down, _, _) in made.items()}
        config = LoraConfig(
            r=1, lora_alpha=1, target_modules="|".join(re.escape(layer) for layer in made), use_dora=dora,
            rank_pattern=exact, alpha_pattern={f"^{re.escape(k)}": s * len(d) for k, (d, _, s) in made.items()},
            inference_mode=True, lora_dropout=0.0,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are meant
            inject_adapter_in_model(config, component, adapter_name=name)
        for change, part in pieces:
            layer: Any = component.get_submodule(part.layer)
            down, up, _ = made[part.layer]
            base = layer.base_layer.weight
            # DoRA's magnitudes are near the norms of whole rows: in half precision the change would drown in rounding.
            dtype = torch.float32 if dora else base.dtype
            for matrices, value in ((layer.lora_A, down), (layer.lora_B, up)):
                held = matrices[name].weight
                held.data = value.reshape(held.shape).to(base.device, dtype)
            if dora:
                held = layer.lora_magnitude_vector[name].weight
                value = rows_of(part, change.magnitude(_rows(change))[1])
                held.data = value.reshape(held.shape).to(base.device, dtype)

    def _merge(self, change: Change, part: Part) -> None:
        """Changes for which peft has no layer are added to the weights: norms, embeddings, biases."""
        layer = self._layer(change.place.component, part.layer)
        todo = [("bias", change.bias())]
        if change.on_weight and not isinstance(layer, nn.Linear | nn.Conv2d):
            layers = layers_of(self.pipeline.components[change.place.component], change)
            todo.append(("weight", change.weight(layers)))
        for name, value in todo:
            if value is None:
                continue
            held = getattr(layer, name, None)
            self._merged.setdefault(
                (change.place.component, part.layer, name), None if held is None else held.detach().clone()
            )
            added = rows_of(part, value).to(layer.weight.device)
            if held is None:
                layer.register_parameter(name, nn.Parameter(added.to(layer.weight.dtype), requires_grad=False))
            else:
                held.data = (held.detach().float() + added.reshape(held.shape)).to(held.dtype)

    def check(self) -> None:
        """Compare what each layer does now with what the files say.

        Each layer is given random inputs, in float64: (layer - layer without adapters)(x) against the change computed
        from the file's tensors. Cost: one product of each changed weight.

        Raises:
            ModelError: a layer whose change differs by more than TOLERANCE.
            NothingChanges: a LoRA all of whose changes are zero.
        """
        wanted: dict[tuple[str, str, str], Tensor] = {}
        moves: dict[int, bool] = {change.lora: False for change in self.changes}
        for change in self.changes:
            for component, layer, name, value in self._said(change):
                moves[change.lora] |= bool(value.abs().max() > 0)
                base = self._layer(component, layer)
                adapted = name == "weight" and isinstance(base, nn.Linear | nn.Conv2d)
                output = _apply(base, value) if adapted else value.double()
                key = (component, layer, name)
                wanted[key] = wanted[key] + output if key in wanted else output
        still = [lora for lora, moved in moves.items() if not moved]
        if still:
            raise NothingChanges(still[0])
        for (component, layer, name), output in wanted.items():
            base = self._layer(component, layer)
            if (component, layer, name) in self._merged:
                held, before = getattr(base, name), self._merged[component, layer, name]
                done = (held.double() - (0 if before is None else before.double())).cpu()
            else:
                done = _done(self.pipeline.components[component].get_submodule(layer))
            error = _error(done, output.reshape(done.shape))
            if not error <= max(TOLERANCE, 2 * torch.finfo(base.weight.dtype).eps):
                raise ModelError(
                    f"After loading, the {name} of {component}.{layer} is changed otherwise than the file says (relative "
                    f"error {error:.2g}), and nothing is audited with a LoRA that is not whole. A model that is opened in "
                    "half precision may hold it in float32."
                )

    def _said(self, change: Change) -> Iterator[tuple[str, str, str, Tensor]]:
        """(component, layer, "weight" or "bias", the change in it) from the file's tensors."""
        component = change.place.component
        bias = change.bias()
        whole = change.weight(layers_of(self.pipeline.components[component], change)) if change.on_weight else None
        for part in change.place.parts:
            if whole is not None:
                yield component, part.layer, "weight", rows_of(part, whole)
            if bias is not None:
                yield component, part.layer, "bias", rows_of(part, bias)


class NothingChanges(Exception):
    """A LoRA all of whose changes are zero; its number is the argument."""


def _rows(change: Change) -> Tensor:
    t = change.entry.tensors
    return t["up"].new_empty((t["up"].shape[0], t["down"].shape[1]), device="meta")


def _activate(component: nn.Module) -> None:
    """All adapters of a component, in eval mode and without gradients."""
    from peft.tuners.lora import LoraLayer

    for layer in component.modules():
        if isinstance(layer, LoraLayer):
            layer.set_adapter([*layer.lora_A])
            for name, weight in layer.named_parameters():
                if "lora_" in name:
                    weight.requires_grad_(False)
    component.eval()  # new layers begin in training mode


def _probe(base: Any) -> Tensor:
    made = torch.Generator().manual_seed(0)
    if isinstance(base, nn.Conv2d):
        size = [2 * k for k in base.kernel_size]
        return torch.randn(2, base.in_channels, *size, generator=made, dtype=torch.float64)
    return torch.randn(4, base.in_features, generator=made, dtype=torch.float64)


def _apply(base: Any, change: Tensor) -> Tensor:
    """What a change of the weight does to the probe."""
    change, x = change.reshape(base.weight.shape).double().cpu(), _probe(base)
    if isinstance(base, nn.Conv2d):
        return nn.functional.conv2d(x, change, None, base.stride, base.padding, base.dilation, base.groups)
    return nn.functional.linear(x, change)


def _done(layer: nn.Module) -> Tensor:
    """What the adapters of a layer do to the probe."""
    twin: Any = copy.deepcopy(layer).cpu().double()
    x = _probe(twin.base_layer)
    with torch.no_grad():
        with_adapters, without = twin(x), twin.base_layer(x)
    return torch.sub(with_adapters, without)


def _error(done: Tensor, wanted: Tensor) -> float:
    """Relative error; where nothing is wanted, whatever is done."""
    size, off = float(wanted.norm()), float((done - wanted).norm())
    return off / size if size else off
