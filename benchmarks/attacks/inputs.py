"""Prompt lists, tables, images and archives with anything in them: read, counted as unreadable, or refused in a sentence.

    python benchmarks/attacks/inputs.py [--trials 1000] [--seed 0] [--seconds 300]

A trial writes a list of prompts (txt, csv, tsv, json, jsonl, parquet) with odd cells or damaged bytes, or pictures (png, jpg,
webp, gif, bmp, tiff, in a folder, zip, tar or parquet) that are damaged, and reads it as every verb does. Fails: an exception
that is none of diffmem's, an item that is neither a picture nor a problem, more than 20 seconds.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
import tempfile
import time
import traceback
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import Tally, bounded, print_campaign, quiet
from PIL import Image

import diffmem as dm
from diffmem.errors import DiffmemError

CELLS = (
    "a fox", "", " ", "\x00", "\x1b[31m", "\ud800", "\ufeffa", "a" * 100_000, "\u202eabc", 'a"b', "a,b", "a\nb", "\r", "nan",
    "null", "=1+1", "🦊" * 50, "e\u0301", "\u2028", "#", "a\tb", None, 3, 2.5, float("nan"), float("inf"), True, [], ["a", "b"],
    {}, {"text": "a"}, b"a", 10**30,
)  # fmt: skip
COLUMNS = (["prompt"], ["text", "id"], ["prompt", "label", "id"], ["caption"], ["x", "y"], ["prompt", "prompt"], [])
NO_PICTURES = (b"<svg onload=1/>", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"II*\0", b"x" * 99)
FORMATS = ("txt", "csv", "tsv", "json", "jsonl", "parquet")
PICTURES = ("png", "jpg", "webp", "gif", "bmp", "tiff")
HOLDERS = ("folder", "zip", "tar", "parquet")


def text_of(value):
    return "" if value is None else str(value)


def prompts(folder, chance):
    """A list of prompts with odd cells, perhaps with odd columns, perhaps damaged afterwards."""
    kind = chance.choice(FORMATS)
    file = folder / f"prompts.{kind}"
    columns = chance.choice(COLUMNS)
    rows = [{name: chance.choice(CELLS) for name in columns} for _ in range(chance.choice((0, 1, 3, 20)))]
    if kind == "parquet":
        names = list(dict.fromkeys(columns))
        arrays = [pa.array([text_of(row[n]).encode("utf-8", "replace").decode() for row in rows]) for n in names]
        if names and chance.random() < 0.5:
            odd = chance.choice(([[1, 2]], [{"a": 1}], [b"x"], [True], [None], [1.5]))
            arrays[-1] = pa.array(odd * len(rows)) if rows else arrays[-1]
        pq.write_table(pa.table(arrays, names=names) if names else pa.table({}), file)
    elif kind in ("json", "jsonl"):
        plain = [{k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()} for row in rows]
        texts = [json.dumps(chance.choice((row, list(row.values()), next(iter(row.values()), None)))) for row in plain]
        file.write_text("\n".join(texts) if kind == "jsonl" else f"[{','.join(texts)}]")
    else:
        glue = {"csv": ",", "tsv": "\t", "txt": " "}[kind]
        lines = [glue.join(columns)] if kind != "txt" else []
        lines += [glue.join(text_of(value) for value in row.values()) for row in rows]
        encoding = chance.choice(("utf-8", "utf-16", "latin-1", "utf-8-sig"))
        file.write_bytes("\n".join(lines).encode(encoding, "replace"))
    if chance.random() < 0.4:
        damage(file, chance)
    return file, f"{kind} {columns}"


def picture(kind, chance):
    mode = chance.choice(("RGB", "L", "RGBA", "1", "P", "I;16", "CMYK", "LA", "F"))
    size = chance.choice(((16, 16), (1, 1), (1, 300), (300, 2)))
    pixels = np.random.default_rng(chance.randrange(2**32)).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    buffer = io.BytesIO()
    try:
        Image.fromarray(pixels).convert(mode).save(buffer, format={"jpg": "JPEG"}.get(kind, kind.upper()))
    except (OSError, ValueError, KeyError):  # this format has no such pictures
        Image.fromarray(pixels).save(buffer, format={"jpg": "JPEG"}.get(kind, kind.upper()))
    return bytearray(buffer.getvalue())


def change(data, chance):
    """Damage a picture's bytes."""
    how = chance.choice(("none", "bits", "cut", "header", "empty", "other", "twice"))
    if how == "bits":
        for _ in range(chance.randrange(1, 30)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del data[chance.randrange(len(data)) :]
    elif how == "header":
        place = chance.randrange(min(40, len(data)))
        data[place : place + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
    elif how == "empty":
        data = bytearray()
    elif how == "other":
        data = bytearray(chance.choice(NO_PICTURES))
    elif how == "twice":
        data = data + data
    return data, how


def pictures(folder, chance):
    """Pictures in a folder, an archive or a table."""
    holder, files, about = chance.choice(HOLDERS), {}, []
    for number in range(chance.choice((1, 3))):
        kind = chance.choice(PICTURES)
        data, how = change(picture(kind, chance), chance)
        stem = chance.choice(("a", "é", "a b", "\x1b", "..", "x" * 100, "a\nb"))
        files[f"{stem}{number}.{kind}"] = bytes(data)
        about.append(f"{kind} {how}")
    place = folder / f"set.{holder}" if holder != "folder" else folder / "set"
    if holder == "folder":
        place.mkdir()
        for name, data in files.items():
            (place / name).write_bytes(data)
    elif holder == "zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, data in files.items():
                archive.writestr(chance.choice(("", "../", "/", "d/")) + name, data)
    elif holder == "tar":
        with tarfile.open(place, "w") as archive:
            for name, data in files.items():
                entry = tarfile.TarInfo(chance.choice(("", "../", "/", "d/")) + name)
                entry.size, entry.type = len(data), chance.choice((tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE))
                archive.addfile(entry, io.BytesIO(data))
    else:
        cells = [{"bytes": data, "path": name} for name, data in files.items()]
        pq.write_table(pa.table({"image": cells, "text": [chance.choice(("a", None)) for _ in cells]}), place)
    if holder != "folder" and chance.random() < 0.3:
        damage(place, chance)
    return place, f"{holder} {about}"


def damage(file, chance):
    data = bytearray(file.read_bytes())
    for _ in range(chance.randrange(1, 6)):
        if data:
            data[chance.randrange(len(data))] = chance.randrange(256)
    if chance.random() < 0.3:
        del data[chance.randrange(len(data) + 1) :]
    file.write_bytes(data)


def read(kind, place):
    """Read it as verbs do: how many items are sound and how many have a problem."""
    if kind == "prompts":
        listed = list(dm.load_prompts(place))
        return sum(p.problem is None for p in listed), sum(p.problem is not None for p in listed)
    sound = bad = 0
    for item in dm.load_images(place):
        if (item.image is None) == (item.problem is None):
            raise AssertionError("an item that is neither a picture nor a problem")
        sound, bad = sound + (item.image is not None), bad + (item.problem is not None)
    return sound, bad


def run(trials=1000, seed=0, seconds=None):
    """The campaign: {"trials", "failures", ...}."""
    quiet()
    tally, chance, begun = Tally("inputs"), random.Random(seed), time.time()
    for number in range(trials):
        if seconds is not None and time.time() - begun > seconds:
            break
        kind = ("prompts", "images")[number % 2]
        with tempfile.TemporaryDirectory() as scratch:
            place, about = (prompts if kind == "prompts" else pictures)(Path(scratch), chance)
            try:
                with bounded():
                    sound, bad = read(kind, place)
                whole = "read" if not bad else "read in part, the rest named" if sound else "all items named as bad"
                tally.add(f"{kind}: {whole}")
            except DiffmemError as problem:
                words = str(problem)
                wrong = len(words) < 20
                tally.add(
                    f"{kind}: refused" if not wrong else "a refusal that says little", f"{about}: {words[:200]}", wrong
                )
            except BaseException as problem:
                last = traceback.extract_tb(problem.__traceback__)[-1]
                place = f"{type(problem).__name__}: {problem} ({Path(last.filename).name}:{last.lineno})"
                tally.add("another exception", f"{about} (seed {seed}, trial {number}): {place}"[:300], wrong=True)
    return tally.result(seed=seed, seconds=round(time.time() - begun))


def main():
    print_campaign(run, __doc__, trials=1000)


if __name__ == "__main__":
    main()
