"""Lines of text as prompts: plain ones, and the files of sample prompts that sd-scripts and web UIs read."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

from diffmem.data.notes import count, named

# sd-scripts' options behind a prompt: n negative, w width, h height, d seed, s steps, l guidance, …
_KNOWN = {
    "n": "negative_prompt", "w": "width", "h": "height", "d": "seed", "s": "steps", "l": "guidance", "g": "embedded_guidance",
    "ss": "sampler", "cn": "control_image", "ctl": "control_image", "am": "lora_strength", "fs": "flow_shift", "f": "frames",
    "t": "second_prompt", "i": "image", "r": "repeats", "nt": "negative_type", "ct": "control_type",
}  # fmt: skip
_TELLING = frozenset("nwhdl")  # at least one of these makes it a file of sd-scripts; others' options look alike
_OPTION = re.compile(r"\s--([a-zA-Z]{1,6})(?:\s+|=)(\S[^\n]*?)(?=\s--[a-zA-Z]|$)")
_ANY_OPTION = re.compile(r"(?:^|\s)(--[a-zA-Z][\w-]*)(?=\s|$)")
_WEIGHTS = re.compile(r"<(?:lora|lyco|hypernet):[^<>]+>|\([^()]*:\d+(?:\.\d+)?\)")
_CHOICES = re.compile(r"\{[^{}\n]*\|[^{}\n]*\}|(?<!\w)__[\w/-]+__(?!\w)|(?<!\w)BREAK(?!\w)|\{prompt\}")
_NUMBERED = re.compile(r"\s*(\d+)(?:[.):]\s|\t)")
_PARAMETERS = re.compile(r"\s*(?:Negative prompt:|Steps: \d+, )")
_UI_LINE = re.compile(r"\s*--(prompt|negative_prompt|steps|width|height|seed|cfg_scale|sampler_name)\b")


def prompt_rows(lines: Sequence[str], name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows with `prompt`, and what is to be said of them.

    In a file whose lines end in sd-scripts' options (` --w 512 --n blurry`), options become columns, and blank lines and
    lines that begin with # are no prompts, as that program reads it. Lines of a web UI (`--prompt "..." --steps 20`) likewise.

    Args:
        lines: of the file.
        name: what messages call it.
    """
    if any(_UI_LINE.match(line) for line in lines) and any("--prompt" in line for line in lines):
        return _ui_rows(lines, name)
    used = {option for line in lines for option, _ in _options(line)}
    if used & _TELLING and used <= _KNOWN.keys():
        return _sample_rows(lines, name, used)
    return [{"prompt": line} for line in lines], literal_notes(lines, name)


def literal_notes(texts: Sequence[str], name: str) -> list[str]:
    """Sentences on prompts that hold another program's notation, which pipelines take as words."""
    notes = []
    marked = [text for text in texts if text.lstrip().startswith("# ")]
    if marked:
        notes.append(
            f"{count(len(marked), 'line')} of {name} begin with # and are prompts like the others; sd-scripts takes them as "
            f"comments: {named([_short(text) for text in marked], 2)}"
        )
    options = list(dict.fromkeys(found for text in texts for found in _ANY_OPTION.findall(text)))
    if options:
        notes.append(f"prompts of {name} hold options of another program, which are taken as words: {named(options)}")
    weights = list(dict.fromkeys(found for text in texts for found in _WEIGHTS.findall(text)))
    if weights:
        notes.append(
            f"prompts of {name} hold a web UI's weights or LoRAs, which the pipeline takes as words: "
            f"{named([_short(text) for text in weights], 3)}"
        )
    choices = list(dict.fromkeys(found for text in texts if not text.isupper() for found in _CHOICES.findall(text)))
    if choices:
        notes.append(
            f"prompts of {name} hold a web UI's choices, wildcards or breaks, which the pipeline takes as words: "
            f"{named([_short(text) for text in choices], 3)}"
        )
    numbers = [int(match[1]) if (match := _NUMBERED.match(text)) else None for text in texts]
    if len(texts) > 1 and None not in numbers and numbers in (list(range(len(texts))), list(range(1, len(texts) + 1))):
        notes.append(
            f"the prompts of {name} are numbered, and the numbers are taken as words: {named([_short(texts[0])])}"
        )
    quoted = [text for text in texts if len(text.strip()) > 2 and text.strip()[0] == text.strip()[-1] == '"']
    if texts and len(quoted) == len(texts):
        notes.append(
            f"all prompts of {name} are in quotes, which are taken as part of them: {named([_short(texts[0])])}"
        )
    return notes


def looks_like_parameters(lines: Sequence[str]) -> str | None:
    """The first line of a web UI's generation parameters that is no prompt, where the lines are such."""
    return next((line for line in lines if _PARAMETERS.match(line)), None)


def looks_like_json(lines: Sequence[str]) -> str | None:
    """What a text is in words, where it is JSON rather than a prompt per line."""
    first = next((line.strip() for line in lines if line.strip()), "")
    try:
        if first[:1] == "{" and isinstance(json.loads(first), dict):
            return "JSON objects"
        if first[:1] == "[" and isinstance(json.loads("\n".join(lines)), list):
            return "a JSON list"
    except (ValueError, RecursionError):
        pass  # a prompt may begin with a bracket
    return None


def looks_like_table(lines: Sequence[str], columns: Sequence[str]) -> str | None:
    """The first line, where it is the header of a table rather than a prompt: known column names, separated."""
    if len(lines) < 2:
        return None
    known = {
        *columns,
        "id",
        "image",
        "image_id",
        "image_name",
        "file_name",
        "filename",
        "file",
        "label",
        "url",
        "key",
        "comment",
    }
    for delimiter in (",", "\t", ";", "|"):
        names = [part.strip().strip('"').lower() for part in lines[0].split(delimiter)]
        if len(names) > 1 and set(names) <= known and set(names) & {*columns, "comment"}:
            return lines[0]
    return None


def _options(line: str) -> list[tuple[str, str]]:
    return [] if line.lstrip().startswith("#") else _OPTION.findall(line)


def _sample_rows(lines: Sequence[str], name: str, used: set[str]) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    comments = 0
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            comments += bool(line.strip())
            continue
        first = _OPTION.search(line)
        text = line if first is None else line[: first.start()]
        rows.append({"prompt": text.strip(), **{_KNOWN[key]: value.strip() for key, value in _options(line)}})
    listed = ", ".join(f"--{key}" for key in sorted(used))
    notes = [
        f"{name} is a file of sample prompts of sd-scripts: the options behind them ({listed}) are kept as columns and not "
        "applied; give --width, --height, --steps, --guidance, --negative-prompt and --seed for all prompts",
    ]
    if comments:
        notes.append(f"{count(comments, 'comment line')} of {name} left out")
    return rows, notes + literal_notes([row["prompt"] for row in rows], name)


def _ui_rows(lines: Sequence[str], name: str) -> tuple[list[dict[str, Any]], list[str]]:
    rows: list[dict[str, Any]] = []
    odd = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            words = shlex.split(line)
        except ValueError:
            words = []
        values: dict[str, list[str]] = {}
        key = ""
        for word in words:
            if word.startswith("--"):
                key = word[2:]
                values[key] = []
            elif key:
                values[key].append(word)
        if "prompt" not in values:
            odd += 1
            rows.append({"prompt": line})
            continue
        rows.append({option: " ".join(parts) for option, parts in values.items()})
    notes = [f"{name} holds a web UI's lines (--prompt ...): their other options are kept as columns and not applied"]
    if odd:
        notes.append(f"{count(odd, 'line')} of {name} without --prompt taken as they are")
    return rows, notes


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
