"""Open one component of a pipeline, all of its weights from its files or not at all.

The loaders of diffusers and transformers draw at random what a file lacks and say so in a log line. Here they are asked
for missing and unexpected keys, and every parameter in memory is looked for among the values of the files.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffmem.errors import ModelError, first_line
from diffmem.models.config_types import check_types
from diffmem.models.folder import Part, read_json
from diffmem.models.lora.sniff import INTEGERS, dtypes, sniff

_SAMPLE = 16
_COMPUTED = r"(^|\.)(position_ids|inv_freq)$"
_ELSEWHERE = {
    "diffusers": re.compile(_COMPUTED),
    "transformers": re.compile(
        rf"{_COMPUTED}|^(vision_model|visual_projection|text_projection|logit_scale|decoder|lm_head)(\.|$)"
    ),
}
"""Keys that a file may hold beside a part's own: buffers that are computed, and the other tower of CLIP or T5."""


def pipeline_class(index: Mapping[str, Any], source: str | Path) -> Any:
    """DiffusionPipeline, which finds the class itself, or our own for unconditional latent diffusion."""
    import diffusers

    from diffmem.models.latent_pipeline import REPLACED, UnconditionalLatentPipeline, is_unconditional_latent

    name = index.get("_class_name")
    parts = {k: v for k, v in index.items() if not k.startswith("_") and isinstance(v, list) and v[0] is not None}
    gone = isinstance(name, str) and (name in REPLACED or not hasattr(diffusers, name))
    if gone and is_unconditional_latent(parts):
        return UnconditionalLatentPipeline
    if isinstance(name, str) and not _is_pipeline(getattr(diffusers, name, None)):
        close = difflib.get_close_matches(name, [n for n in dir(diffusers) if n.endswith("Pipeline")], n=1)
        raise ModelError(
            f"The installed diffusers {diffusers.__version__} has no pipeline class {name!r}, which {source} asks for."
            + (f" Did you mean {close[0]!r}?" if close else "")
        )
    return diffusers.DiffusionPipeline


def _is_pipeline(kind: Any) -> bool:
    import diffusers

    return isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)


def part_class(part: Part) -> Any:
    """The class of a component; ModelError where the installed libraries have none of that name that can be opened."""
    import diffusers
    import transformers

    package: Any = {"diffusers": diffusers, "transformers": transformers}.get(part.package)
    if package is None:
        package = getattr(diffusers.pipelines, part.package)
    name = part.class_name
    if part.package == "transformers" and not hasattr(transformers, name):
        name = _renamed(name)
    found = getattr(package, name, None) if name.isidentifier() else None
    if not isinstance(found, type) or not hasattr(found, "from_pretrained") or _is_pipeline(found):
        raise ModelError(
            f"The component '{part.name}' is a {part.package}.{name}, which the installed {part.package} cannot open "
            "as a component: correct model_index.json, or install the version that the model was saved with."
        )
    return found


def open_part(part: Part, dtype: torch.dtype, allow_pickle: bool) -> Any:
    """One component in eval mode.

    Raises:
        ModelError: it cannot be opened, lacks weights, or its files hold weights that its class does not have.
    """
    kind = part_class(part)
    _check_config(part, kind)
    _check_vocabulary(part, kind)
    if not issubclass(kind, torch.nn.Module):
        opened = _opened(part, kind)
        if isinstance(opened, torch.nn.Module):  # AutoModel and the like, which were not asked what they lack
            raise ModelError(
                f"The component '{part.name}' is a {part.package}.{part.class_name}, which stands for other classes; name "
                f"its own in model_index.json: {type(opened).__name__}."
            )
        return opened
    model, report = _opened(part, kind, dtype, allow_pickle)
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    beside = _ELSEWHERE["transformers" if part.package == "transformers" else "diffusers"]
    _refuse_incomplete(part, missing, [key for key in unexpected if not beside.search(key)])
    unread = [name for name, value in model.named_parameters() if value.is_meta]
    _refuse_incomplete(part, unread, [])
    strange = not_from_files(model, part.weights)
    if strange:
        # Either a loader that rearranged the values or one that drew them: a second opening tells.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            again = dict(_opened(part, kind, dtype, allow_pickle)[0].named_parameters())
        values = dict(model.named_parameters())
        _refuse_incomplete(part, [name for name in strange if not torch.equal(values[name], again[name])], [])
    return model.eval()


def _check_config(part: Part, kind: Any) -> None:
    """Types of a diffusers class's config (transformers looks at those of its own), and whole numbers as weights."""
    from diffusers.configuration_utils import ConfigMixin

    file = part.folder / str(getattr(kind, "config_name", None) or "config.json")
    values = read_json(file) if file.is_file() else {}
    if issubclass(kind, ConfigMixin):
        check_types(values, kind, str(file))
    if values.get("quantization_config"):
        made = values["quantization_config"]
        how = made.get("quant_method") if isinstance(made, dict) else None
        raise ModelError(
            f"The component '{part.name}' is quantised ({how or 'quantization_config'}), says {file}: its weights are not those "
            "that were trained. Use the model before it was quantised."
        )
    for weights in part.weights:
        found = next(
            (key for key, dtype in dtypes(weights) if key.endswith((".weight", ".bias")) and dtype in INTEGERS), None
        )
        if found:
            raise ModelError(
                f"{weights} holds {found} as whole numbers ({dict(dtypes(weights))[found]}): quantised weights, or no weights. "
                "Use the file before it was quantised."
            )


def _check_vocabulary(part: Part, kind: Any) -> None:
    """Refuse a tokenizer without its vocabulary: transformers makes an empty one, to which all prompts are alike."""
    names: dict[str, str] = dict(getattr(kind, "vocab_files_names", None) or {})
    whole = names.pop("tokenizer_file", "tokenizer.json")
    needed = [name for key, name in names.items() if key in ("vocab_file", "merges_file")]
    if not hasattr(kind, "convert_tokens_to_ids") or not needed or (part.folder / whole).exists():
        return
    lost = [name for name in needed if not (part.folder / name).exists()]
    if lost:
        raise ModelError(
            f"The tokenizer '{part.name}' in {part.folder} has no vocabulary: neither {whole} nor {' and '.join(needed)} is "
            "whole. All prompts would be alike; copy the folder again."
        )


def _renamed(name: str) -> str:
    """What a class of transformers that was renamed since is called now, as diffusers knows it."""
    from diffusers.pipelines import pipeline_loading_utils

    rename: Any = getattr(pipeline_loading_utils, "_maybe_remap_transformers_class", None)
    return (rename(name) if rename is not None else None) or name


def _opened(part: Part, kind: Any, dtype: torch.dtype | None = None, allow_pickle: bool = False) -> Any:
    """What the library's loader returns; whatever it raises on these files becomes one sentence."""
    options: dict[str, Any] = {"local_files_only": True}
    if dtype is not None:
        safe = None if allow_pickle and not part.weights else True
        options |= {"dtype": dtype, "output_loading_info": True, "use_safetensors": safe}
        if part.variant is not None:
            options["variant"] = part.variant
    try:
        return kind.from_pretrained(str(part.folder), **options)
    except Exception as problem:  # the libraries raise anything at all on a damaged file
        kinds = {file.name: sniff(file) for file in part.weights}
        odd = [f"{name} is {kind}" for name, kind in kinds.items() if kind != "safetensors"]
        what = first_line(problem).rstrip(". ")
        if len(what) < 20:  # a KeyError is the key alone
            what = f"{type(problem).__name__}: {what}"
        said = f"{', '.join(odd)}." if odd else f"{what}."
        raise ModelError(
            f"The component '{part.name}' ({part.class_name}) in {part.folder} cannot be opened: {said} Its files are "
            f"damaged, or of another version of {part.package}: copy them again."
        ) from problem


def not_from_files(model: Any, files: Iterable[Path]) -> list[str]:
    """Names of parameters whose values stand in none of the files (looked up by size and 16 values of each tensor)."""
    from safetensors import safe_open

    stored: dict[int, list[torch.Tensor]] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - no mapping, it has keys() only
                tensor = opened.get_tensor(key).reshape(-1)
                stored.setdefault(tensor.numel(), []).append(_some(tensor))
    known: dict[tuple[int, torch.dtype], set[bytes]] = {}
    strange = []
    for name, value in model.named_parameters():
        size, flat = value.numel(), value.detach().reshape(-1)
        if (size, value.dtype) not in known:
            known[size, value.dtype] = {_bytes(sample.to(value.dtype)) for sample in stored.get(size, [])}
        if size and _bytes(_some(flat)) not in known[size, value.dtype]:
            strange.append(name)
    return strange


def not_in_model(file: Path, weights: Iterable[torch.Tensor]) -> list[str]:
    """Names of tensors of a file whose values no weight has (looked up as in `not_from_files`)."""
    from safetensors import safe_open

    held: dict[int, set[bytes]] = {}
    kind = torch.float32
    for weight in weights:
        kind = weight.dtype
        held.setdefault(weight.numel(), set()).add(_bytes(_some(weight.detach().reshape(-1))))
    with safe_open(file, "pt") as opened:
        return [
            key
            for key in opened.keys()  # noqa: SIM118 - no mapping, it has keys() only
            if _bytes(_some((tensor := opened.get_tensor(key)).reshape(-1)).to(kind))
            not in held.get(tensor.numel(), ())
        ]


def _some(flat: torch.Tensor) -> torch.Tensor:
    return flat[torch.linspace(0, max(0, len(flat) - 1), min(_SAMPLE, len(flat))).long()].cpu()


def _bytes(sample: torch.Tensor) -> bytes:
    raw: bytes = (sample + 0).contiguous().view(torch.uint8).numpy().tobytes()  # + 0: no negative zeros
    return raw


def _refuse_incomplete(part: Part, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    if missing:
        renamed = (
            f" Its files hold {len(unexpected)} others that it has not, such as {unexpected[0]}: they may stand under "
            "other names, as in a converted checkpoint."
            if unexpected
            else ""
        )
        raise ModelError(
            f"The files of '{part.name}' in {part.folder} lack {len(missing)} of its weights, such as {missing[0]}, "
            f"which would be drawn at random.{renamed} Copy or convert the component again."
        )
    if unexpected:
        raise ModelError(
            f"The files of '{part.name}' in {part.folder} hold {len(unexpected)} weights that a {part.class_name} of "
            f"this config does not have, such as {unexpected[0]}: the model would be run without them. Correct the "
            "config or the class in model_index.json, or save the component without them."
        )
