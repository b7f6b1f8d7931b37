"""Odd values for every option of every verb, found by the verbs' own signatures: an exit code and a sentence, never 70.

python benchmarks/attacks/options.py [--seed 0] [--part 0/4]
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

from common import Inputs, Tally, command, judge

from diffmem.cli.app import VERBS, build_app

NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e308",
    str(2**31),
    str(2**63),
    str(-(2**64)),
    "0.5",
    "",
    "x",
    "1e-320",
    "٣",
)
TEXTS = (
    "", "\x1b[31mred\x07", "\x9b31m", "\ud800", "x" * 5000, "nan", "a:b=c", ":", "name:=", "../..", "[red]", "{}", "\u202eabc",
    "a\nb", "--help", "%s%n", "cuda", "cuda:99", "none",
)  # fmt: skip
MITIGATED = (
    "{model}", "a fox", "--method", "random-tokens:count=1", "--train", "{train}", "--images-per-prompt", "1",
        "--steps", "1",
)  # fmt: skip
SHORT = {
    "score": ("{model}", "a fox", "--draws", "1", "--score", "score-difference", "--quiet"),
    "generate": ("{model}", "a fox", "--images-per-prompt", "1", "--steps", "1", "--out", "{new}", "--quiet"),
    "audit": ("{model}", "a fox", "--images-per-prompt", "1", "--draws", "1", "--steps", "1", "--score",
        "score-difference", "--train", "{train}", "--out", "{new}", "--quiet"),
    "measure": ("{model}", "--images", "{train}", "--score", "loss:draws=1", "--limit", "2", "--quiet"),
    "curate": ("{train}", "--run", "{measured}", "--out", "{new}", "--quiet"),
    "index": ("{train}", "--out", "{new}", "--quiet"),
    "extract": ("{model}", "a fox", "--images-per-prompt", "3", "--clique", "2", "--steps", "1", "--out", "{new}",
        "--quiet"),
    "match": ("{generated}", "--train", "{train}", "--quiet"),
    "mitigate": (*MITIGATED, "--out", "{new}", "--quiet"),
    "robustness": (*MITIGATED, "--worst-of", "1", "--scales", "2", "--samplers", "ddim:1", "--adversarial-steps", "0",
        "--paraphrases", "none", "--out", "{new}", "--quiet"),
    "train": ("{plan}", "--out", "{new}", "--quiet"),
    "lab": ("{plan}", "--out", "{new}", "--quiet"),
    "canaries make": ("{train}", "--counts", "1", "--per-count", "1", "--controls", "2", "--out", "{new}", "--quiet"),
    "canaries measure": ("{model}", "--registration", "{canaries}", "--images-per-prompt", "1", "--steps", "1",
        "--out", "{new}", "--quiet"),
    "evaluate": ("{audited}",),
    "calibrate": ("{model}", "--reference", "{reference}", "--draws", "1", "--out", "{new}.json", "--quiet"),
    "compare": ("{audited}", "{audited}"),
    "show": ("{audited}",),
    "report": ("{audited}", "--out", "{new}.html"),
    "schema": (),
    "methods": (),
    "doctor": (),
    "bench": ("--suite", "text-shortcut", "--data", "{train}"),
    "demo": ("--prompts", "1", "--images-per-prompt", "1", "--out", "{new}", "--quiet"),
}  # fmt: skip
PLAN = """
[model]
base = "{model}"
[data]
images = "{train}"
captions = "none"
[optimizer]
steps = 1
batch = 2
"""


def options_of():
    """Every option of every verb: (verb, name, kind), the kind by its type; positional arguments have a name without dashes."""
    app = build_app(VERBS)
    for words in SHORT:
        inner = app
        for word in words.split():
            inner = inner[word]
        for argument in inner.assemble_argument_collection():
            hint, kind = str(argument.hint), argument.field_info.kind
            if not argument.parse or "*" in argument.names:
                continue
            name = argument.names[0] if kind is inspect.Parameter.KEYWORD_ONLY else argument.names[0].lstrip("-")
            kind = "number" if "int" in hint or "float" in hint else "path" if "Path" in hint else "flag"
            kind = kind if "bool" not in hint else "flag"
            kind = "text" if kind == "flag" and "str" in hint else kind
            if "Literal" in hint:
                kind = "text"
            yield words, name, kind


def paths(folder):
    """Places of every odd kind."""
    odd = folder / "odd"
    odd.mkdir(exist_ok=True)
    os.mkfifo(odd / "pipe")
    (odd / "device").symlink_to("/dev/zero")
    (odd / "loop").symlink_to(odd / "loop")
    (odd / "nowhere").symlink_to(odd / "gone")
    (odd / "empty").write_bytes(b"")
    (odd / "empty.txt").write_bytes(b"")
    (odd / "empty.parquet").write_bytes(b"")
    (odd / "rubbish.json").write_bytes(os.urandom(300))
    (odd / "deep.json").write_text("[" * 50_000)
    (odd / "list.json").write_text("[1, null, {}]")
    (odd / "none.toml").write_text("\x1b = 1")
    (odd / "folder").mkdir()
    (odd / "a\x1b[31m\x07b.png").write_bytes(b"x")
    (odd / os.fsdecode(b"\xff\xfe.txt")).write_bytes(b"a fox\n")
    (odd / "control.txt").write_text("a \x1b[31m fox \x07\nb \x9b31m\n")
    (odd / "cells.csv").write_text('prompt,id\n"a\x00b",1\n\x1b,2\n,\n"x,3\n')
    listed = [os.fsencode(path) for path in sorted(odd.iterdir(), key=os.fsencode)]
    return [*listed, b"/proc/x", b"/proc/self/mem", b"", b"x" * 300, b"a\xff"]


class Campaign:
    """Inputs, runs to read, and one trial after the other."""

    def __init__(self, folder):
        self.inputs = Inputs.make(folder / "inputs")
        self.folder = folder
        self.number = 0
        self.places = {
            "model": self.inputs.model, "train": self.inputs.train, "plan": folder / "plan.toml",
            **{name: folder / name for name in ("audited", "generated", "measured", "canaries")},
            "reference": folder / "reference.txt",
        }  # fmt: skip
        self.places["plan"].write_text(PLAN.format(model=self.inputs.model, train=self.inputs.train))
        self.places["reference"].write_text("".join(f"picture of thing {i}\n" for i in range(30)))
        bases = {"audit": "audited", "generate": "generated", "measure": "measured", "canaries make": "canaries"}
        for verb, name in bases.items():
            given = self.short(verb, new=self.places[name])
            code, _, err = command(*verb.split(), *given, *(() if "--out" in given else ("--out", self.places[name])))
            assert code == 0, err

    def short(self, verb, new=None):
        self.number += 1
        new = new or self.folder / "new" / str(self.number)
        return [word.format(new=new, **self.places) for word in SHORT[verb]]

    def trial(self, tally, verb, name, value):
        words = self.short(verb)
        if name.startswith("--"):
            words = [w for i, w in enumerate(words) if w != name and (not i or words[i - 1] != name)]
            words += [name, value]
        elif words and not words[0].startswith("--"):
            words[0] = value
        else:
            words = [value, *words]
        label = f"{verb} {name} {value!r}"[:160]
        begun = time.time()
        before = Path.cwd()
        (self.folder / "here").mkdir(exist_ok=True)
        os.chdir(self.folder / "here")
        try:
            judge(tally, label, *command(*verb.split(), *words))
        finally:
            os.chdir(before)
        shutil.rmtree(self.folder / "new", ignore_errors=True)
        return time.time() - begun


def trials(folder):
    """Every (verb, option, value)."""
    places = paths(folder)
    for verb, name, kind in options_of():
        if kind == "number":
            yield from ((verb, name, value) for value in NUMBERS)
        elif kind == "path":
            yield from ((verb, name, value) for value in places)
        elif kind == "text":
            yield from ((verb, name, value) for value in TEXTS)
            if not name.startswith("--"):
                yield from ((verb, name, value) for value in places)


def run(seed=0, part=(0, 1), limit=None, seconds=None):
    """The campaign, or a part of it: {"trials", "failures", ...}."""
    tally = Tally("options")
    with tempfile.TemporaryDirectory() as scratch:
        campaign = Campaign(Path(scratch))
        chosen = list(trials(Path(scratch)))
        random.Random(seed).shuffle(chosen)
        whole, begun = len(chosen), time.time()
        chosen = chosen[part[0] :: part[1]][:limit]
        for verb, name, value in chosen:
            if seconds is not None and time.time() - begun > seconds:
                break
            took = campaign.trial(tally, verb, name, value)
            if took > 10:
                print(f"{verb} {name} {value!r:.80} took {took:.0f} s", flush=True)
    return tally.result(of=whole, seed=seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    part = tuple(int(number) for number in options.part.split("/"))
    print(json.dumps(run(options.seed, part, options.limit, options.seconds), indent=1))


if __name__ == "__main__":
    main()
