"""Pictures that are no training pictures by their names: masks and conditions beside them, samples, other splits."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Sequence

from diffmem.data.notes import count, named

_MASK_FOLDERS = frozenset({
    "mask", "masks", "mask_images", "masked_images", "masklabel", "masklabels", "alpha_mask", "alpha_masks", "sam_masks",
    "segmentation", "segmentations", "segmentation_masks", "segmentation_maps", "segmentationclass", "segmentationobject",
})  # fmt: skip
"""Folders that count as masks where their pictures are grey or of few colours, since a class may be called so, too."""
_CONDITION_FOLDERS = frozenset({
    "conditioning", "conditioning_image", "conditioning_images", "control_image", "control_images", "depth_maps",
    "canny_images", "pose_images", "openpose_images",
})  # fmt: skip
_PERHAPS = _MASK_FOLDERS | {
    "control", "controls", "controlnet", "condition", "conditions", "cond", "depth", "canny", "edge", "edges", "hed", "lineart",
    "scribble", "pose", "poses", "openpose", "normal_maps", "hint", "hints", "source", "sources", "input", "inputs", "original",
    "originals", "original_images", "before", "reference", "references", "lq", "lr",
}  # fmt: skip
"""Folders that may hold what an editing or controlled model is given, or training pictures: said, and counted."""
_SAMPLES = frozenset(
    {"sample", "samples", "generated", "generations", "output", "outputs", "grids", "validation_images"}
)
_BESIDE = re.compile(
    r"[-_.](masks?|masklabel|condlabel|seg|segmentation|depth|canny|cond|conditioning|openpose|matte|hint)",
    re.IGNORECASE,
)
_ONETRAINER = re.compile(r"-(masklabel|condlabel)$", re.IGNORECASE)
_SPLIT = re.compile(
    r"(?<![A-Za-z])(?:[Tt]rain(?:ing)?|[Tt]est(?:ing)?|[Vv]al(?:id(?:ation)?)?|[Dd]ev|[Ee]val|"
    r"TRAIN(?:ING)?|TEST(?:ING)?|VAL(?:ID(?:ATION)?)?|DEV|EVAL)(?:[Ss]et)?(?![a-z])"
)
_LOOKED_AT = 8


def masks_among(pictures: Sequence[str], is_flat: Callable[[str], bool]) -> list[tuple[str, str]]:
    """(name, reason) of pictures that are masks or conditions of another picture of the same name.

    `a_mask.png` beside `a.png`, or a folder called so beside the pictures' own, every one of whose pictures has its
    counterpart there.

    Args:
        pictures: names, with forward slashes.
        is_flat: whether a picture has no or few colours; asked of a few pictures of folders called after masks.
    """
    stems = {posixpath.splitext(name)[0] for name in pictures}
    found = []
    for name in pictures:
        stem = posixpath.splitext(name)[0]
        if _ONETRAINER.search(stem):
            found.append((name, "a mask or condition of a picture (OneTrainer), no picture of its own"))
        elif (end := _ending(stem)) is not None and stem[: -len(end)] in stems:
            found.append((name, "a mask or condition of the picture of the same name, no training picture"))
    for folder, inside in _by_folder(pictures).items():
        kind = posixpath.basename(folder).lower().replace("-", "_").replace(" ", "_")
        if kind not in _MASK_FOLDERS | _CONDITION_FOLDERS or not _has_counterparts(folder, inside, stems):
            continue
        if kind in _CONDITION_FOLDERS or all(is_flat(name) for name in inside[:: max(len(inside) // _LOOKED_AT, 1)]):
            reason = f"masks or conditions of the pictures of the same names beside '{folder}', no training pictures"
            found += [(name, reason) for name in inside]
    return found


def notes_on_folders(name: str, pictures: Sequence[str]) -> list[str]:
    """Sentences on folders whose pictures count as training pictures and, by the folders' names, may be none."""
    stems = {posixpath.splitext(picture)[0] for picture in pictures}
    folders = _by_folder(pictures)
    notes = []
    meanings = ((_PERHAPS, "what a model is given beside the prompt"), (_SAMPLES, "pictures that a model made"))
    for words, what in meanings:
        meant = {folder: inside for folder, inside in folders.items() if set(folder.lower().split("/")) & words}
        if words is not _SAMPLES:
            meant = {folder: inside for folder, inside in meant.items() if _has_counterparts(folder, inside, stems)}
        if meant and len(meant) < len(folders):
            total = sum(map(len, meant.values()))
            notes.append(
                f"{count(total, 'picture')} of {name} lie in folders whose names may mean {what} ({named(list(meant))}) and "
                "count as training pictures; if they are none, give the folder of the others alone"
            )
    return notes


def splits_among(names: Iterable[str]) -> list[str]:
    """The names of a data set's splits among names: those that are the same but for the word of their split and numbers."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        for match in _SPLIT.finditer(name):
            rest = re.sub(r"\d+", "#", f"{name[: match.start()]}/{name[match.end() :]}")
            found.setdefault(rest, {})[name] = match[0].lower()[:2]
    return sorted({name for same in found.values() if len(set(same.values())) > 1 for name in same})


def up_to_split(name: str) -> str:
    """A file's name up to the word of its split, which is how a pattern of the files of this split begins."""
    match = _SPLIT.search(name)
    return name if match is None else name[: match.end()]


def _ending(stem: str) -> str | None:
    """The ending of a mask's or condition's stem."""
    for match in _BESIDE.finditer(stem):
        if match.end() == len(stem):
            return match[0]
    return None


def _by_folder(pictures: Sequence[str]) -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for name in pictures:
        folders.setdefault(posixpath.dirname(name), []).append(name)
    return folders


def _has_counterparts(folder: str, inside: Sequence[str], stems: set[str]) -> bool:
    """Whether each picture of a folder has one of the same name in the folder above it, or in one beside it."""
    parent = posixpath.dirname(folder)
    bare = [posixpath.splitext(posixpath.basename(name))[0] for name in inside]
    beside = {posixpath.dirname(stem) for stem in stems if posixpath.dirname(posixpath.dirname(stem)) == parent}
    places = {parent, *beside} - {folder}
    return any(all(posixpath.join(place, stem) in stems for stem in bare) for place in places)
