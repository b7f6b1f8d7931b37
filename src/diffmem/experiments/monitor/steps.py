"""At which step of a training a checkpoint was saved: from what its file says, else from the one number that names it."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffmem.errors import UsageError
from diffmem.models.lora.sniff import sniff

UNITS = {
    "step": r"(?:global[_-]?)?steps?", "checkpoint": r"checkpoints?|ckpt", "iteration": r"iter(?:ation)?s?", "epoch": r"epochs?",
}  # fmt: skip
"""Words before the number that they explain, in the order in which they are believed."""


@dataclass(frozen=True)
class Steps:
    """What was read.

    Attributes:
        of: name -> step.
        unit: what is counted ("step", "epoch", "number").
        unread: names without a number among names that have one (the final model, as a rule) -> why they are left out.
    """

    of: Mapping[str, int]
    unit: str
    unread: Mapping[str, str]


def read_steps(names: Sequence[str], pattern: str | None = None) -> Steps:
    """The steps of checkpoints by their names.

    A word (`step`, `checkpoint`, `iter`, `epoch`) before the number decides; without one, the only number in which the names
    differ, or the only one that there is.

    Args:
        names: without folders and suffixes ("checkpoint-500", "cat-000010").
        pattern: a regular expression whose group is the step.

    Raises:
        UsageError: a name from which more than one number could be the step, or a pattern that does not match.
    """
    if pattern is not None:
        return _by_pattern(names, pattern)
    numbered = [name for name in names if re.search(r"\d", name)]
    bare = {
        name: "its name has no number that says at which step it was saved (PATH=STEP says it)"
        for name in names
        if name not in numbered
    }
    for unit, words in UNITS.items():
        found = {name: re.findall(rf"(?i)(?<![a-z])(?:{words})[-_= ]?0*(\d+)", name) for name in numbered}
        if numbered and all(len(numbers) == 1 for numbers in found.values()):
            return Steps({name: int(numbers[0]) for name, numbers in found.items()}, unit, bare)
    skeletons: dict[str, list[str]] = {}
    for name in numbered:
        skeletons.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    main = max(skeletons.values(), key=len, default=[])
    for group in skeletons.values():
        if group is main:
            continue
        # "sd15-cat" beside "sd15-cat-000010" is the same training's last one; anything else could be of another training.
        if all(any(other.startswith(name) for other in main) for name in group):
            bare |= dict.fromkeys(group, "the others have one more number, which says the step (PATH=STEP says it)")
        else:
            raise UsageError(
                f"The checkpoints {main[0]!r} and {group[0]!r} are not named alike: whether their numbers count the same is not "
                "to be seen. Give those of one training, or say what the step is: PATH=STEP, or --step-pattern 'name-(\\d+)'."
            )
    return _by_place(main, bare)


def _by_pattern(names: Sequence[str], pattern: str) -> Steps:
    try:
        compiled = re.compile(pattern)
    except re.error as problem:
        raise UsageError(f"--step-pattern {pattern!r} is no regular expression: {problem}.") from problem
    if compiled.groups != 1:
        raise UsageError(
            f"--step-pattern {pattern!r} has {compiled.groups} groups; expected one in brackets: 'cat-(\\d+)'."
        )
    found, unread = {}, {}
    for name in names:
        match = compiled.search(name)
        if match is None or not (match[1] or "").isdigit():
            unread[name] = f"--step-pattern {pattern} finds no number in its name"
        else:
            found[name] = int(match[1])
    if names and not found:
        raise UsageError(f"--step-pattern {pattern!r} finds no number in any name, such as {names[0]!r}.")
    return Steps(found, "step", unread)


def _by_place(names: Sequence[str], bare: Mapping[str, str]) -> Steps:
    """The only number in which names of one form differ."""
    numbers = {name: re.findall(r"\d+", name) for name in names}
    if not names:
        return Steps({}, "number", bare)
    width = len(numbers[names[0]])
    differing = [i for i in range(width) if len({numbers[name][i] for name in names}) > 1]
    if width == 1 or len(differing) == 1:
        place = 0 if width == 1 else differing[0]
        return Steps({name: int(numbers[name][place]) for name in names}, "number", bare)
    shown = " or ".join(numbers[names[0]])
    raise UsageError(
        f"At which step {names[0]!r} was saved is not to be seen: {shown}? Say it: PATH=STEP, or --step-pattern with the step "
        "in brackets ('-(\\d+)$')."
    )


def recorded_step(file: Path) -> int | None:
    """The step that a trainer wrote into the header of a .safetensors file (`ss_steps` of sd-scripts); None without one."""
    if file.suffix != ".safetensors" or not file.is_file() or sniff(file) != "safetensors":
        return None
    with file.open("rb") as opened:
        header = opened.read(struct.unpack("<Q", opened.read(8))[0])
    try:
        said = json.loads(header).get("__metadata__", {}).get("ss_steps")
    except (ValueError, AttributeError, RecursionError):
        return None  # what is wrong with it is said when it is opened
    return int(said) if isinstance(said, str) and said.isdigit() else None
