"""Load LoRAs whole: every key of their files is accounted for before, every layer's change is checked after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmem.errors import ModelError, first_line
from diffmem.models.loading import quiet_libraries
from diffmem.models.lora.choice import LoraChoice, Loras, choices, lora_name
from diffmem.models.lora.entries import Entry, Sorted, kinds_of, sort_keys
from diffmem.models.lora.files import LoraFiles, Weights, read_lora
from diffmem.models.lora.foreign import foreign, format_of, named
from diffmem.models.lora.remarks import remarks
from diffmem.models.lora.settings import says_dora
from diffmem.models.lora.strength import Strengths

if TYPE_CHECKING:
    from diffmem.models.lora.changes import Change
    from diffmem.models.lora.names import Names, Place

_PROBLEMS = (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError)


@dataclass
class Loaded:
    """What was loaded of one LoRA.

    Attributes:
        name: of the LoRA.
        summary: one line: format, kinds, layers by component, ranks, scale.
        notes: what the user should know: alpha that was not given, tokens added, files not used.
        tokens: new tokens that prompts can hold.
    """

    name: str
    summary: str = ""
    notes: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)


def load_lora(pipeline: Any, lora: str | Path, scale: float | None = None, *, allow_pickle: bool = False) -> Loaded:
    """Load one LoRA into a pipeline, see `load_loras`."""
    wanted = choices(lora)[0] if scale is None else LoraChoice(str(lora), scale)
    return load_loras(pipeline, [wanted], allow_pickle=allow_pickle)[0]


def load_loras(pipeline: Any, loras: Loras, *, allow_pickle: bool = False) -> list[Loaded]:
    """Load LoRAs into a pipeline, all of each or none.

    W' = W + sum over LoRAs of scale * (what the file says it does to W): changes are reckoned from the model's own
    weights, so their order does not matter; with DoRA the scale multiplies the whole change, as ComfyUI has it.

    Args:
        pipeline: any family's.
        loras: files, folders or hub ids, each alone or with a scale: (file, scale), or as text "FILE:SCALE". LoRA,
            DoRA, LoHa, LoKr and full differences in the formats of sd-scripts, LyCORIS, diffusers, peft, ComfyUI, XLabs.
        allow_pickle: also read .bin, .pt and .ckpt files.

    Returns:
        What was loaded of each.

    Raises:
        ModelError: no such LoRA, a pickle, peft is missing, another architecture, or anything in the file that is not
            understood or would not take effect. The pipeline is not to be used after it.
    """
    import torch

    wanted = choices(loras)
    if not wanted:
        return []
    try:
        import peft  # noqa: F401 - needed below, where its absence would be said less clearly
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as problem:
        raise ModelError("LoRAs need peft, which is not installed: pip install 'diffmem[lora]'.") from problem
    from diffmem.models.lora.install import Installation, NothingChanges
    from diffmem.models.lora.names import Names

    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module) and any(isinstance(m, BaseTunerLayer) for m in part.modules()):
            raise ModelError(f"The pipeline's {name} holds adapters already; load all LoRAs in one call.")
    names = Names(pipeline)
    done, changes, tokens = [], [], []
    for number, choice in enumerate(wanted):
        files = read_lora(choice.file, allow_pickle)
        loaded = Loaded(lora_name(choice.file))
        one = _OneLora(choice, number, pipeline, names, loaded)
        changes += one.changes(files)
        tokens.append(one.embeddings(files))
        loaded.notes += [f"{name} lies beside the LoRA {loaded.name} and is not used" for name in files.unused]
        done.append(loaded)
    from diffmem.models.lora.tokens import add_tokens

    installation = Installation(pipeline, changes)
    try:
        with quiet_libraries():
            installation.install()
            installation.check()
    except NothingChanges as problem:
        raise ModelError(
            f"The LoRA {wanted[problem.args[0]].file} changes nothing: all that it would add is zero (saved before "
            "training began?). Audit the base instead."
        ) from problem
    except _PROBLEMS as problem:
        raise ModelError(
            f"The LoRA {', '.join(str(c) for c in wanted)} cannot be loaded into a {type(pipeline).__name__}: "
            f"{first_line(problem)}"
        ) from problem
    for loaded, found in zip(done, tokens, strict=True):
        add_tokens(pipeline, found, loaded)
    return done


class _OneLora:
    """One LoRA on its way from its files to changes of layers."""

    def __init__(self, choice: LoraChoice, number: int, pipeline: Any, names: Names, loaded: Loaded) -> None:
        self.choice, self.number, self.pipeline, self.names, self.loaded = choice, number, pipeline, names, loaded
        self._embedded: dict[str, Any] = {}
        self.strengths = Strengths(choice, self.refuse)

    def refuse(self, why: str) -> ModelError:
        return ModelError(f"The LoRA {self.choice.file} cannot be loaded into a {type(self.pipeline).__name__}: {why}.")

    def changes(self, files: LoraFiles) -> list[Change]:
        """Every layer's change; ModelError where a key of the files is in none."""
        made: list[Change] = []
        for weights in files.weights:
            made += self._changes_of(weights)
        made = self._without_twins(made)
        self._summarize(files, made)
        for weights in files.weights:
            self.loaded.notes += remarks(self.loaded.name, weights.header, self.pipeline)
        return made

    def _without_twins(self, made: Sequence[Change]) -> list[Change]:
        """Some files hold a layer twice (joined and split): one of two equal changes, ModelError where they differ."""
        from diffmem.models.lora.changes import same_change

        kept: list[Change] = []
        taken: dict[tuple[str, str, bool], Change] = {}
        for change in made:
            keys = [(change.place.component, part.layer, change.on_weight) for part in change.place.parts]
            before = {id(taken[key]): taken[key] for key in keys if key in taken}
            for other in before.values():
                if not same_change(change, other):
                    both = " and ".join(sorted((other.entry.layer, change.entry.layer)))
                    raise self.refuse(f"{both} are both for {keys[0][0]}.{keys[0][1]}, and differ")
            if before and not all(key in taken for key in keys):
                raise self.refuse(
                    f"{change.entry.layer} is in part for layers that other entries of the file change, too"
                )
            if before:
                self.loaded.notes.append(
                    f"{change.entry.layer} says the same as other entries of the LoRA; it counts once"
                )
                continue
            taken |= dict.fromkeys(keys, change)
            kept.append(change)
        return kept

    def _changes_of(self, weights: Weights) -> list[Change]:
        from diffmem.models.lora.changes import Change, check_shapes
        from diffmem.models.lora.install import layers_of

        found = sort_keys(weights.tensors, weights.component)
        self._embedded |= found.tokens
        self._refuse_broken(found, weights)
        if says_dora(weights.header) and not any("magnitude" in entry.tensors for entry in found.entries):
            raise self.refuse(
                "its header says that magnitudes were trained (DoRA), and the file holds none; copy or save it again"
            )
        places = {entry.layer: self.names.find(entry.layer, entry.component) for entry in found.entries}
        lost = [entry.layer for entry in found.entries if places[entry.layer] is None]
        if lost:
            raise self._other_architecture(lost, len(found.entries), found.entries)
        made = []
        for entry in found.entries:
            place = places[entry.layer]
            assert place is not None
            change = Change(entry, place, 1.0, self.choice.scale or 1.0, self.number)
            self._refuse_unheard(place)
            problem = check_shapes(
                change, layers_of(self.pipeline.components[place.component], change), place.component
            )
            if problem:
                raise self.refuse(f"it is for another architecture: {problem}")
            change.scaling = self.strengths.of(
                entry, place.parts[0].layer, place.component, weights, kinds_of(found.entries)
            )
            made.append(change)
        self._say_targets(weights, [entry.layer for entry in found.entries])
        return made

    def _say_targets(self, weights: Weights, layers: Sequence[str]) -> None:
        """Note the target modules of peft's config of which the file holds no layer."""
        targets = (weights.config or {}).get("target_modules")
        if not isinstance(targets, list):
            return
        lost = [str(target) for target in targets if not any(f".{layer}".endswith(f".{target}") for layer in layers)]
        if lost:
            self.loaded.notes.append(
                f"adapter_config.json of the LoRA {self.loaded.name} lists target modules of which the file holds no layer: "
                f"{named(lost)}; if they were trained, the file is not whole"
            )

    def _refuse_unheard(self, place: Place) -> None:
        """Torch's own attention reads the weights of its layers and never calls them: adapters would not be heard."""
        import torch

        component = self.pipeline.components[place.component]
        for part in place.parts:
            owner = component.get_submodule(part.layer.rpartition(".")[0])
            if isinstance(owner, torch.nn.MultiheadAttention):
                raise self.refuse(
                    f"{place.component}.{part.layer} is in a torch.nn.MultiheadAttention, where no adapter works"
                )

    def _refuse_broken(self, found: Sorted, weights: Weights) -> None:
        import torch

        if found.strange:
            raise self.refuse(foreign(found.strange, weights.tensors, len(found.entries)))
        if found.incomplete:
            raise self.refuse(f"{found.incomplete[0]} ({len(found.incomplete)} such layers); copy or save it again")
        if not found.entries:
            raise self.refuse(f"it holds no layers, only {named(list(weights.tensors))}")
        empty = [entry.layer for entry in found.entries if entry.rank == 0]
        if empty:
            raise self.refuse(
                f"{named(empty)} have rank 0 (tensors without any number); save it again without these layers"
            )
        for entry in found.entries:
            for role, value in entry.tensors.items():
                if value.dtype == torch.bool or (not value.is_floating_point() and role != "alpha"):
                    raise self.refuse(
                        f"{entry.keys[role]} is of type {value.dtype}, quantised; use the file before that"
                    )
                if not torch.isfinite(value.float()).all():
                    raise self.refuse(f"{entry.keys[role]} holds values that are not finite (NaN or infinity)")

    def _other_architecture(self, lost: Sequence[str], total: int, entries: Sequence[Entry]) -> ModelError:
        components = sorted({self.names.means(layer) for layer in lost})  # where the file has them
        return self.refuse(
            f"it is for another architecture: {total - len(lost)} of its {total} layers are in this pipeline, and in "
            f"{' and '.join(components)} there is no {named(list(lost))}, and a LoRA in part is another model (read as the "
            f"{kinds_of(entries)} format of {format_of([k for e in entries for k in e.keys.values()], False)})"
        )

    def embeddings(self, files: LoraFiles) -> dict[str, Any]:
        """Embeddings of new tokens, key -> tensor, from within and beside the file."""
        found = dict(self._embedded)
        for file in files.tokens:
            found |= {f"{file.file.name}:{key}": value for key, value in file.tensors.items()}
        return found

    def _summarize(self, files: LoraFiles, made: Sequence[Change]) -> None:
        layers = Counter(change.place.component for change in made for _ in change.place.parts)
        ranks = sorted({change.entry.rank for change in made if change.entry.rank is not None})
        keys = [key for change in made for key in change.entry.keys.values()]
        rank = "" if not ranks else f", rank {ranks[0]}" if len(ranks) == 1 else f", ranks {ranks[0]} to {ranks[-1]}"
        where = " and ".join(f"{count} of {component}" for component, count in layers.items())
        scale = "" if self.choice.scale is None else f", scale {self.choice.scale:g}"
        self.loaded.summary = (
            f"LoRA {self.loaded.name}: {kinds_of(change.entry for change in made)} in the format of "
            f"{format_of(keys, files.weights[0].config is not None)}, layers: {where}{rank}{scale}"
        )
        self.loaded.notes += self.strengths.notes(self.loaded.name, len(made))
