"""Say what a file is whose keys are no LoRA's, or not one that can be loaded, and what to do with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_LYCORIS = (
    "merge it into its base with LyCORIS (tools/merge.py), convert the checkpoint to a pipeline with diffusers "
    "(from_single_file, save_pretrained) and audit that as the model"
)
_KINDS: tuple[tuple[str, str, str], ...] = (
    (r"\.oft_(blocks|diag|R)|\.oft_", "OFT or BOFT (LyCORIS, sd-scripts, peft)", _LYCORIS),
    (r"\.boft_", "BOFT", _LYCORIS),
    (r"\.(a1|a2|b1|b2)\.weight$|\.(a1|a2|b1|b2|bm1|bm2)$", "GLoRA (LyCORIS)", _LYCORIS),
    (r"\.on_input$|ia3_l", "(IA)^3", _LYCORIS),
    (r"\.(up|down)_list\.\d+|lora_(up|down)_list", "DyLoRA as it is trained, one tensor for each rank", "save it with its "
     "trainer, which joins them, or cut one rank out of it"),
    (r"\.scalar$", "a trained factor for each layer (LyCORIS' use_scalar), not multiplied in", _LYCORIS),
    (r"\.vera_|vera_A|vera_B", "VeRA (peft)", "merge it with peft (merge_and_unload) and audit the merged model"),
    (r"lora_E\b|ranknum", "AdaLoRA (peft)", "merge it with peft (merge_and_unload) and audit the merged model"),
    (r"randlora_|fourierft_|hra_|vblora_|lora_xs|\.R\.weight$", "another method of peft", "merge it with peft "
     "(merge_and_unload) and audit the merged model"),
    (r"^(unet|text_encoder):\d+:(up|down)$", "the numbered format of cloneofsimo's lora, where a layer is a number in the "
     "order of that day's diffusers", "convert it with that project's own code (lora_add in mode upl-ckpt-v2 merges it into a "
     "checkpoint) and audit the merged model"),
    (r"custom_diffusion", "Custom Diffusion", "load it with diffusers (load_attn_procs), save the pipeline and audit that"),
    (r"to_[kv]_ip\b|ip_adapter|image_proj", "an IP-Adapter, which needs a picture beside the prompt", "audit the model "
     "without it"),
    (r"^lllite_|lora_controlnet|control_model|controlnet_", "a ControlNet of some kind, which needs a picture beside the "
     "prompt", "audit the model without it"),
    (r"string_to_param|emb_params", "a textual inversion (embeddings of a token), not a LoRA", "put it into the pipeline with "
     "diffusers (load_textual_inversion), save the pipeline and audit that"),
    (r"\.(scale_weight|weight_scale|quant_state|absmax|scale_input)\b", "quantised weights", "use the file before it was "
     "quantised"),
    (r"lora_prior_|prior_unet", "a LoRA for a prior network (Stable Cascade, Kandinsky)", "merge it with its trainer and audit "
     "the merged model"),
    (r"^lora_vae|^vae\.", "changes of an autoencoder", "leave them out"),
    (r"modules_to_save|^base_model\.model\..*(?<!magnitude_vector)\.(weight|bias)$", "whole layers saved beside a LoRA (peft's "
     "modules_to_save or bias)", "merge it with peft (merge_and_unload), save the pipeline and audit that"),
)  # fmt: skip
_CHECKPOINT = (
    (r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.", "a whole checkpoint in one file"),
    (r"^(down_blocks|up_blocks|mid_block|conv_in|time_embedding)\b", "the weights of a whole UNet"),
    (r"^(transformer_blocks|single_transformer_blocks|joint_blocks|double_blocks|x_embedder|img_in)\b",
     "the weights of a whole transformer"),
    (r"^(text_model|encoder\.block|encoder\.layers|shared\.|embeddings\.)", "the weights of a whole text encoder"),
    (r"^(encoder|decoder|quant_conv|post_quant_conv)\.", "the weights of an autoencoder"),
)  # fmt: skip


def foreign(strange: Sequence[str], tensors: Mapping[str, Any], entries: int) -> str:
    """A sentence about keys that no rule takes.

    Args:
        strange: those keys.
        tensors: of the whole file.
        entries: how many layers of it are understood.
    """
    for pattern, what, advice in _KINDS:
        hits = [key for key in strange if re.search(pattern, key)]
        if hits:
            return f"it holds {what}: {named(hits)}. It cannot be loaded here; {advice}"
    if entries == 0:
        if set(tensors) <= {"clip_l", "clip_g", "t5", "t5xxl", "text_encoders_0", "text_encoders_1"} or (
            all(re.fullmatch(r"<[^>]+>", key) for key in tensors)
        ):
            return (
                f"it holds embeddings of tokens ({named(strange)}), a textual inversion and not a LoRA; put it into the "
                "pipeline with diffusers (load_textual_inversion), save the pipeline and audit that"
            )
        for pattern, what in _CHECKPOINT:
            hits = [key for key in strange if re.match(pattern, key)]
            if 2 * len(hits) > len(tensors):
                return (
                    f"it holds {what} ({named(hits)}), not a LoRA: give a pipeline with these weights as the model "
                    "(diffusers' from_single_file and save_pretrained make one)"
                )
        return (
            f"none of its {len(tensors)} keys is one of a LoRA ({named(strange)}); expected names that end as in "
            "….lora_A.weight (diffusers, peft), ….lora_down.weight (sd-scripts) or ….hada_w1_a (LyCORIS)"
        )
    return f"{len(strange)} of its {len(tensors)} keys belong to nothing that is known here: {named(strange)}"


def named(keys: Sequence[str], most: int = 3) -> str:
    """The first of these, and how many more there are."""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def format_of(keys: Sequence[str], config: bool) -> str:
    """The name of a LoRA file's format."""
    marks = (
        ("sd-scripts", r"^lora_(unet|te\d?|transformer)_"), ("LyCORIS", r"^lycoris_"),
        ("diffusers before 0.20", r"\.processor\.to_\w+_lora\.|lora_linear_layer|\.to_\w+_lora\."),
        ("XLabs", r"\.processor\.\w+_lora\d"), ("ComfyUI", r"^(model\.)?diffusion_model\.|^text_encoders\."),
        ("peft", r"^base_model\.model\."), ("diffusers 0.20", r"\.lora\.(down|up)\."),
        ("diffusers", r"^(unet|transformer|text_encoder\w*)\."), ("peft", r"\.lora_[AB]\b"),
    )  # fmt: skip
    for name, pattern in marks:
        if any(re.search(pattern, key) for key in keys):
            return name
    return "peft" if config else "unnamed"
