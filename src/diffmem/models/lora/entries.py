"""What a LoRA file says, layer by layer: its keys sorted into entries, whatever naming they follow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_W = r"(?:\.(?P<adapter>(?!weight$|bias$)[\w-]+))?"  # peft's own state holds the adapter's name behind lora_A
ROLES: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern + "$"), layer, role)
    for pattern, layer, role in (
        # diffusers before 0.20: attention processors; the text encoder's twice, by different names
        (
            r"(?P<l>.+)\.processor\.(?P<p>to_q|to_k|to_v|add_k_proj|add_v_proj)_lora\.down\.weight",
            r"\g<l>.\g<p>",
            "down",
        ),
        (r"(?P<l>.+)\.processor\.(?P<p>to_q|to_k|to_v|add_k_proj|add_v_proj)_lora\.up\.weight", r"\g<l>.\g<p>", "up"),
        (r"(?P<l>.+)\.processor\.to_out_lora\.down\.weight", r"\g<l>.to_out.0", "down"),
        (r"(?P<l>.+)\.processor\.to_out_lora\.up\.weight", r"\g<l>.to_out.0", "up"),
        (r"(?P<l>.+\.self_attn)\.to_(?P<p>q|k|v|out)_lora\.down\.weight", r"\g<l>.\g<p>_proj", "down"),
        (r"(?P<l>.+\.self_attn)\.to_(?P<p>q|k|v|out)_lora\.up\.weight", r"\g<l>.\g<p>_proj", "up"),
        (r"(?P<l>.+)\.lora_linear_layer\.down\.weight", r"\g<l>", "down"),
        (r"(?P<l>.+)\.lora_linear_layer\.up\.weight", r"\g<l>", "up"),
        # XLabs' Flux processors
        (
            r"(?:diffusion_model\.)?(?P<l>double_blocks\.\d+)\.processor\.(?P<p>qkv|proj)_lora1\.down\.weight",
            r"\g<l>.img_attn.\g<p>",
            "down",
        ),
        (
            r"(?:diffusion_model\.)?(?P<l>double_blocks\.\d+)\.processor\.(?P<p>qkv|proj)_lora1\.up\.weight",
            r"\g<l>.img_attn.\g<p>",
            "up",
        ),
        (
            r"(?:diffusion_model\.)?(?P<l>double_blocks\.\d+)\.processor\.(?P<p>qkv|proj)_lora2\.down\.weight",
            r"\g<l>.txt_attn.\g<p>",
            "down",
        ),
        (
            r"(?:diffusion_model\.)?(?P<l>double_blocks\.\d+)\.processor\.(?P<p>qkv|proj)_lora2\.up\.weight",
            r"\g<l>.txt_attn.\g<p>",
            "up",
        ),
        (
            r"(?:diffusion_model\.)?(?P<l>single_blocks\.\d+)\.processor\.qkv_lora\.down\.weight",
            r"\g<l>.qkv",
            "down",
        ),
        (
            r"(?:diffusion_model\.)?(?P<l>single_blocks\.\d+)\.processor\.qkv_lora\.up\.weight",
            r"\g<l>.qkv",
            "up",
        ),
        (
            r"(?:diffusion_model\.)?(?P<l>single_blocks\.\d+)\.processor\.proj_lora\.down\.weight",
            r"\g<l>.linear2",
            "down",
        ),
        (
            r"(?:diffusion_model\.)?(?P<l>single_blocks\.\d+)\.processor\.proj_lora\.up\.weight",
            r"\g<l>.linear2",
            "up",
        ),
        # everybody else
        (rf"(?P<l>.+)\.lora(?:_A|_down|\.down){_W}(?:\.weight)?", r"\g<l>", "down"),
        (rf"(?P<l>.+)\.lora(?:_B|_up|\.up){_W}\.bias", r"\g<l>", "up_bias"),
        (rf"(?P<l>.+)\.lora(?:_B|_up|\.up){_W}(?:\.weight)?", r"\g<l>", "up"),
        (r"(?P<l>.+)\.lora_mid\.weight", r"\g<l>", "mid"),
        (rf"(?P<l>.+)\.lora_embedding_A{_W}(?:\.weight)?", r"\g<l>", "embedding_down"),
        (rf"(?P<l>.+)\.lora_embedding_B{_W}(?:\.weight)?", r"\g<l>", "embedding_up"),
        (rf"(?P<l>.+)\.(?:dora_scale|lora_magnitude_vector{_W}(?:\.weight)?)", r"\g<l>", "magnitude"),
        (r"(?P<l>.+)\.(?P<r>hada_w1_a|hada_w1_b|hada_w2_a|hada_w2_b|hada_t1|hada_t2)" + _W, r"\g<l>", ""),
        (r"(?P<l>.+)\.(?P<r>lokr_w1|lokr_w1_a|lokr_w1_b|lokr_w2|lokr_w2_a|lokr_w2_b|lokr_t2)" + _W, r"\g<l>", ""),
        (r"(?P<l>.+)\.diff(?:\.weight)?", r"\g<l>", "diff"),
        (r"(?P<l>.+)\.diff_b", r"\g<l>", "bias_diff"),
        (r"(?P<l>.+)\.w_norm", r"\g<l>", "diff"),
        (r"(?P<l>.+)\.b_norm", r"\g<l>", "bias_diff"),
        (r"(?P<l>.+?)(?:\.lora|\.lora_linear_layer)?\.(?:lora_)?alpha", r"\g<l>", "alpha"),
    )
)
"""(pattern of a key, the layer it speaks of, its role there); an empty role is the group `r`."""
SETS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "LoRA": (frozenset({"down", "up"}), frozenset({"alpha", "magnitude", "up_bias", "mid"})),
    "LoHa": (
        frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
        frozenset({"alpha", "magnitude", "hada_t1", "hada_t2"}),
    ),
    "LoKr": (frozenset(), frozenset({"alpha", "magnitude", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a",
                                     "lokr_w2_b", "lokr_t2"})),
    "difference": (frozenset(), frozenset({"alpha", "diff", "bias_diff"})),
    "embedding LoRA": (frozenset({"embedding_down", "embedding_up"}), frozenset({"alpha"})),
}  # fmt: skip
"""Kind of an entry -> (roles that it must have, roles that it may have)."""
_MARKS = {"LoRA": ("down", "up", "mid", "up_bias"), "LoHa": ("hada_",), "LoKr": ("lokr_",),
          "difference": ("diff", "bias_diff"), "embedding LoRA": ("embedding_",)}  # fmt: skip


@dataclass
class Entry:
    """All that a file says of one layer.

    Attributes:
        layer: the layer's name as the file has it.
        component: the pipeline's component that the file's place names ("" where it is left to the name).
        tensors, keys: role -> tensor, and its key in the file.
        kind: LoRA, LoHa, LoKr, difference, embedding LoRA.
    """

    layer: str
    component: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    kind: str = ""

    @property
    def rank(self) -> int | None:
        """The inner dimension that alpha is divided by; None where there is none (full matrices)."""
        t = self.tensors
        if "down" in t:
            return int(t["down"].shape[0])
        if "embedding_down" in t:
            return int(t["embedding_down"].shape[0])
        for role in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
            if role in t:
                return int(t[role].shape[0])
        return None


@dataclass
class Sorted:
    """A file's keys, sorted.

    Attributes:
        entries: by layer.
        tokens: embeddings of new tokens, key -> tensor.
        strange: keys that belong to no entry.
        incomplete: sentences about layers of which the file holds a part only.
    """

    entries: list[Entry]
    tokens: dict[str, Any]
    strange: list[str]
    incomplete: list[str]


def sort_keys(tensors: Mapping[str, Any], component: str = "") -> Sorted:
    """Sort a file's tensors into entries by layer; every key ends up in exactly one place."""
    entries: dict[str, Entry] = {}
    tokens, strange, incomplete = {}, [], []
    adapters: set[str] = set()
    for key, value in tensors.items():
        if key.startswith("bundle_emb."):
            tokens[key] = value
            continue
        found = _role(key)
        if found is None:
            strange.append(key)
            continue
        layer, role, adapter = found
        adapters |= {adapter} if adapter else set()
        entry = entries.setdefault(layer, Entry(layer, component))
        if role in entry.tensors:
            incomplete.append(f"{entry.keys[role]} and {key} say the same of one layer")
            continue
        entry.tensors[role], entry.keys[role] = value, key
    if len(adapters) > 1:
        incomplete.append(f"the file holds several adapters ({', '.join(sorted(adapters))})")
    for entry in entries.values():
        problem = _kind(entry)
        if problem:
            incomplete.append(problem)
    return Sorted(list(entries.values()), tokens, strange, incomplete)


def kind_of_key(key: str) -> bool:
    """Whether a key is one that only a LoRA, LoHa or LoKr has."""
    found = _role(key)
    return found is not None and any(found[1].startswith(m) for kind in ("LoRA", "LoHa", "LoKr") for m in _MARKS[kind])


def _role(key: str) -> tuple[str, str, str | None] | None:
    for pattern, layer, role in ROLES:
        match = pattern.fullmatch(key)
        if match:
            groups = match.groupdict()
            return match.expand(layer), role or groups["r"], groups.get("adapter")
    return None


def _kind(entry: Entry) -> str | None:
    """Set the entry's kind; a sentence where its roles make no whole."""
    roles = set(entry.tensors)
    kinds = [kind for kind, marks in _MARKS.items() if any(role.startswith(marks) for role in roles)]
    if len(kinds) > 1 and "diff" not in roles:  # a change of the bias goes with any kind
        kinds = [kind for kind in kinds if kind != "difference"]
    if len(kinds) != 1:
        what = " and ".join(kinds) if kinds else "nothing but " + ", ".join(sorted(entry.keys.values()))
        return f"{entry.layer} has {what}"
    entry.kind = kinds[0]
    needed, allowed = SETS[entry.kind]
    missing, excess = needed - roles, roles - needed - allowed - {"bias_diff"}
    if entry.kind == "LoKr":
        for w in ("lokr_w1", "lokr_w2"):
            if w not in roles and not {f"{w}_a", f"{w}_b"} <= roles:
                missing |= {w}
            if w in roles and {f"{w}_a", f"{w}_b"} & roles:
                excess |= {f"{w}_a"}
    if entry.kind == "LoHa" and len({"hada_t1", "hada_t2"} & roles) == 1:
        missing |= {"hada_t1", "hada_t2"} - roles
    if missing:
        return f"{entry.layer} has {', '.join(sorted(entry.keys.values()))} but no {', '.join(sorted(missing))}"
    if excess:
        return f"{entry.layer} has {', '.join(entry.keys.get(r, r) for r in sorted(excess))} beside a {entry.kind}"
    return None


def kinds_of(entries: Iterable[Entry]) -> str:
    """The kinds of these entries in words: "LoRA and LoHa"; DoRA where magnitudes are given."""
    names = {"DoRA" if e.kind == "LoRA" and "magnitude" in e.tensors else e.kind for e in entries}
    return " and ".join(sorted(names))
