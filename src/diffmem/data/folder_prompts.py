"""The captions of a set of pictures as prompts: what a model trained on them was told to make."""

from __future__ import annotations

from pathlib import Path

from diffmem.data.captions import Captions
from diffmem.data.images import load_images
from diffmem.data.notes import count, named, say
from diffmem.data.prompt_list import Prompt, PromptList
from diffmem.errors import DataError


def folder_prompts(
    path: Path, captions: Captions | None = None, column: str | None = None, encoding: str | None = None
) -> PromptList:
    """Every distinct caption of the pictures of a folder, archive or folder of parquet files, in the pictures' order.

    A prompt's id is its picture's (`name`, and `name#2`, ... for further captions); captions of one picture are a group.
    A caption of several pictures is one prompt, named after the first.

    Args:
        path: where the pictures lie.
        captions: where their captions are read from, see `diffmem.data.captions`.
        column: of the captions in metadata or tables; by default found by its name.
        encoding: of captions in text files.

    Raises:
        DataError: no pictures, no captions, or captions of two kinds that differ.
    """
    images = load_images(path, captions=captions, caption_column=column, encoding=encoding)
    images.require_captions()
    found: dict[str, Prompt] = {}
    silent: list[str] = []
    for item in images.words():
        if not item.captions:
            silent.append(item.id)
        for turn, text in enumerate(item.captions):
            name = item.id if turn == 0 else f"{item.id}#{turn + 1}"
            found.setdefault(text, Prompt(name, text, group=item.id, extra={"image": item.id}))
    if not found:
        why = "".join(f" ({note})" for note in images.notes if "caption" in note)
        raise DataError(
            f"None of the {len(images)} pictures of '{path}' has a caption{why}; expected metadata.csv, .jsonl or .parquet "
            "with file_name and text (or captions, a list), .caption or .txt files beside the pictures, or a list of prompts "
            "instead of the folder."
        )
    if silent:
        say(f"{len(silent):,} of {count(len(images), 'picture')} of {images.name} have no caption: {named(silent)}")
    return PromptList(tuple(found.values()), str(path), "captions", None)
