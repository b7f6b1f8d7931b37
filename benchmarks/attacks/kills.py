"""Every verb that writes, ended at random moments by SIGKILL, SIGINT and SIGTERM, and started again until it is done.

    python benchmarks/attacks/kills.py [--kills 200] [--seed 0] [--seconds 500]

A parent that has imported everything forks one process per command, so that the moments fall into the work and not into
imports. After every kill: no half-written file is read, and no row that was there is gone. At the end: every row, vector,
weight and summary is that of a run that nothing has stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from common import Inputs, Tally, command, opened_once, quiet
from flips import contents, difference, timeless
from tests.tiny import random_lora, tiny_sd

from diffmem.cli.app import main as diffmem
from diffmem.experiments.review.session import Session
from diffmem.report.review.csv_file import write_labels
from diffmem.report.review.labels import CATEGORIES, read_labels
from diffmem.runs.schemas import SCHEMAS
from diffmem.runs.store import RunStore

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
PLAN = """
checkpoint_every = 3
[model]
base = "{model}"
method = "{method}"
[data]
images = "{train}"
captions = "none"
[optimizer]
steps = 12
batch = 2
"""
LAB = """
[train.model]
base = "testbed:digits"
[train.data]
images = "testbed:digits"
limit = 8
[train.optimizer]
steps = 2
batch = 2
[generate]
images_per_cell = 6
sampling = {steps = 1, guidance = 2.0}
[grid]
duplication = ["nodup", "dup_both"]
"""
GROWS = ("review --add",)
"""Verbs that write into a run that is there: a copy of the audit."""
KEPT = (".npy", ".safetensors", ".png", ".jsonl", ".csv")


def prepared(inputs, folder):
    """What some verbs start from: runs, registered pictures, labels and checkpoints, made without a kill."""
    model, train, prompts = str(inputs.model), str(inputs.train), ("--prompts", str(inputs.prompts))
    short = ("--images-per-prompt", "2", "--steps", "2", "--quiet", "--out")
    made = {
        name: str(folder / name) for name in ("measured", "canaries", "generated", "audit", "labelled", "labels.csv")
    }
    for words in (
        ("canaries", "make", train, "--counts", "1", "--per-count", "2", "--controls", "2", "--quiet", "--out",
         made["canaries"]),
        ("generate", model, *prompts, *short, made["generated"]),
        ("measure", model, "--images", train, "--score", "loss:draws=1", "--quiet", "--out", made["measured"]),
        ("audit", model, *prompts, "--train", train, "--draws", "2", *short, made["audit"]),
    ):  # fmt: skip
        code, err = run_child(words, None)
        assert code == 0, (words, err)
    shutil.copytree(made["audit"], made["labelled"])
    session = Session(Path(made["labelled"]), "anna", None, None)
    for pair in range(len(session)):
        session.label(pair, CATEGORIES[pair % 3], "")
    session.close()
    write_labels(Path(made["labels.csv"]), read_labels(Path(made["labelled"])).current)
    for step in (1, 2):
        tiny_sd(seed=step).save_pretrained(folder / "checkpoints" / f"checkpoint-{step}")
    made["lora"] = str(random_lora(tiny_sd(), folder / "lora")[0])
    return made


def verbs(inputs, folder):
    """Verb -> its command line, the output in place of OUT."""
    model, train, prompts = str(inputs.model), str(inputs.train), ("--prompts", str(inputs.prompts))
    short = ("--images-per-prompt", "2", "--steps", "2", "--quiet", "--out", "OUT")
    mitigation = ("--method", "random-tokens:count=1", "--train", train)
    for name in ("full", "lora"):
        (folder / f"{name}.toml").write_text(PLAN.format(model=model, train=train, method=name))
    (folder / "lab.toml").write_text(LAB)
    made = prepared(inputs, folder)
    reference = folder / "reference.txt"
    reference.write_text("".join(f"picture of thing {i}\n" for i in range(30)))
    return {
        "score": ("score", model, *prompts, "--draws", "6", "--micro-batch", "1", "--quiet", "--out", "OUT"),
        "generate": ("generate", model, *prompts, "--batch", "1", *short),
        "audit": ("audit", model, *prompts, "--train", train, "--draws", "2", "--batch", "1", *short),
        "audit against the base": ("audit", model, "--lora", made["lora"], "--against-base", *prompts, "--train", train,
                                   "--draws", "2", "--batch", "1", *short),
        "measure": ("measure", model, "--images", train, "--score", "loss:draws=2", "--batch", "2", "--quiet", "--out", "OUT"),
        "index": ("index", train, "--quiet", "--out", "OUT"),
        "extract": ("extract", model, "a fox", "a dog", "--clique", "2", "--batch", "1", *short),
        "mitigate": ("mitigate", model, "a fox", "a dog", *mitigation, *short),
        "robustness": ("robustness", model, "a fox", *mitigation, "--worst-of", "1", "--scales", "2", "--samplers", "ddim:1",
                       "--adversarial-steps", "0", "--paraphrases", "none", *short),
        "canaries make": ("canaries", "make", train, "--counts", "1,2", "--per-count", "2", "--controls", "2", "--quiet", "--out",
                          "OUT"),
        "canaries measure": ("canaries", "measure", model, "--registration", made["canaries"], "--images-per-prompt", "1",
                             "--steps", "1", "--quiet", "--out", "OUT"),
        "match": ("match", made["generated"], "--train", train, "--metrics", "--quiet", "--out", "OUT"),
        "calibrate": ("calibrate", model, "--reference", str(reference), "--fpr", "0.1", "--draws", "2", "--quiet", "--run",
                      "OUT/run", "--out", "OUT/threshold.json"),
        "train": ("train", str(folder / "full.toml"), "--quiet", "--out", "OUT"),
        "train a LoRA": ("train", str(folder / "lora.toml"), "--quiet", "--out", "OUT"),
        "curate": ("curate", train, "--run", made["measured"], "--write", "--quiet", "--out", "OUT"),
        "lab": ("lab", str(folder / "lab.toml"), "--device", "cpu", "--quiet", "--out", "OUT"),
        "monitor": ("monitor", str(folder / "checkpoints"), "--train", train, "--heldout", str(inputs.heldout), "--prompts",
                    str(reference), "--fpr", "0.2", "--prompt-count", "16", "--images-per-prompt", "1", "--steps", "1",
                    "--draws", "1", "--level", "0.5", "--quiet", "--out", "OUT"),
        "seal": ("seal", made["audit"], "--out", "OUT/sealed"),
        "export": ("export", made["audit"], "--csv", "OUT/csv", "--parquet", "OUT/parquet", "--png", "OUT/png"),
        "report": ("report", made["audit"], "--out", "OUT/page.html"),
        "compare": ("compare", made["audit"], made["labelled"], "--out", "OUT/page.html"),
        "review --add": ("review", "OUT", "--add", made["labels.csv"]),
        "review --csv": ("review", made["labelled"], "--csv", "OUT/labels.csv"),
        "waive": ("waive", made["audit"], "--owner", "anna", "--expires", "2099-01-01", "--out", "OUT/waivers.json"),
    }  # fmt: skip


def run_child(arguments, kill):
    """Fork, run a command, perhaps end it: (exit code or -signal, stderr)."""
    log = tempfile.NamedTemporaryFile("w+", suffix=".err", delete=False)  # noqa: SIM115 - the child writes into it
    child = os.fork()
    if child == 0:
        os.dup2(log.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - not the parent's
        os.environ["DIFFMEM_FLUSH_SECONDS"] = "0.05"
        code = 70
        try:
            code = diffmem(arguments)
        finally:
            sys.stderr.flush()
            os._exit(code)
    if kill is not None:
        after, number = kill
        deadline = time.time() + after
        while time.time() < deadline:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
    _, status = os.waitpid(child, 0)
    log.seek(0)
    text = log.read()
    log.close()
    Path(log.name).unlink()
    return os.waitstatus_to_exitcode(status), text


def snapshot(folder):
    """Everything that a finished folder says, without times."""
    found = {}
    for manifest in sorted(folder.rglob("run.json")):
        found[str(manifest.parent.relative_to(folder))] = contents(manifest.parent)
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.name == "summary.json":
            found[name] = timeless(json.loads(file.read_bytes()), folder)
        elif file.suffix in KEPT and file.is_file():
            found[name] = array(file)
        elif file.name in ("canaries.json", "threshold.json", "waivers.json"):
            values = timeless(json.loads(file.read_bytes()), folder)
            found[name] = {k: v for k, v in values.items() if k not in ("hash", "waived")}
        elif file.suffix == ".html":
            found[name] = file.read_text().rstrip().endswith("</html>")
        elif file.name == "sealed":
            found[name] = command("verify", file)[0]
        elif file.suffix == ".parquet" and file.parent.name == "parquet":
            found[name] = pq.read_table(file).num_rows
    return found


def array(file):
    if file.suffix == ".npy":
        return np.load(file).astype(float).round(4).tolist()
    if file.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return {k: v.astype(float).ravel()[:200].tolist() for k, v in load_file(file).items()}
    return hashlib.sha256(file.read_bytes()).hexdigest()


def keys(folder):
    """The keys of all rows that lie in a folder."""
    places = [manifest.parent for manifest in folder.rglob("run.json")]
    return {
        (str(place), stage, key) for place in places for stage in SCHEMAS for key in RunStore(place).finished(stage)
    }


def run(kills=200, seed=0, seconds=None, only=None):
    """The campaign: {"trials", "failures", ...}."""
    quiet()
    tally, chance, begun, per_verb = Tally("kills"), random.Random(seed), time.time(), {}
    with tempfile.TemporaryDirectory() as scratch, opened_once():
        folder = Path(scratch)
        inputs = Inputs.make(folder / "inputs")
        for warm in ("score", "generate"):  # what is imported and opened lazily is there before the first fork
            command(
                warm, inputs.model, "a fox", *(("--steps", 1, "--out", folder / "warm") if warm == "generate" else ())
            )
        known = {}
        table = verbs(inputs, folder)
        names = [name for name in table if only is None or name in only]
        turn = 0
        while tally.outcomes.total() < kills and (seconds is None or time.time() - begun < seconds):
            verb = names[turn % len(names)]
            turn += 1
            if verb not in known:
                truth = folder / "runs" / verb.replace(" ", "_")
                started = time.time()
                begin(verb, folder, truth)
                code, err = run_child([word.replace("OUT", str(truth)) for word in table[verb]], None)
                if code:
                    tally.add(f"{verb} fails without a kill: {err.strip()[-200:]}", verb, wrong=True)
                    names.remove(verb)
                    continue
                known[verb] = snapshot(truth), time.time() - started
            begin(verb, folder, folder / "trial" / str(turn))
            story(tally, chance, folder / "trial" / str(turn), table[verb], verb, known[verb], per_verb)
            shutil.rmtree(folder / "trial", ignore_errors=True)
    return tally.result(seed=seed, per_verb=per_verb, seconds=round(time.time() - begun))


def begin(verb, folder, out):
    """Lay what a verb goes on from."""
    if verb in GROWS:
        shutil.copytree(folder / "audit", out)


def story(tally, chance, out, words, verb, known, per_verb):
    """One output folder: three to six kills, each followed by the same command; then compare."""
    truth, duration = known
    arguments = [word.replace("OUT", str(out)) for word in words]
    before, label = set(), ""
    for _ in range(chance.randint(3, 6)):
        number = chance.choice(SIGNALS)
        moment = chance.uniform(0.02, 0.9) * duration
        code, err = run_child(arguments, (moment, number))
        per_verb[verb] = per_verb.get(verb, 0) + 1
        label = f"{verb} {number.name} after {moment:.2f} of {duration:.2f} s"
        now = keys(out) if out.exists() else set()
        if before - now:
            tally.add("rows lost", label, wrong=True)
        elif any(out.rglob("*.corrupt")):
            tally.add("a half-written part was read", label, wrong=True)
        elif code == 70 or (code not in (0, 3) and code != -number):
            tally.add(f"exit {code}", f"{label}: {err.strip()[-200:]}", wrong=True)
        elif code == 3 and not err.strip():
            tally.add("no word of what is wrong", label, wrong=True)
        else:
            tally.add(f"{number.name}: {'done before' if code == 0 else 'ended, nothing lost'}")
        before = now
        if code == 0:
            break
    code, err = run_child(arguments, None)
    finished = "not empty" in err or "is there already" in err  # it was done when the signal came; it is compared below
    if code and not finished:
        tally.failed.append(f"{label}: the same command then ends with {code}: {err.strip()[-300:]}")
        return
    found = difference(truth, snapshot(out))
    if found:
        tally.failed.append(f"{label}: the resumed run differs: {found}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--only", help="verbs, with commas")
    options = parser.parse_args()
    only = options.only.split(",") if options.only else None
    print(json.dumps(run(options.kills, options.seed, options.seconds, only), indent=1))


if __name__ == "__main__":
    main()
