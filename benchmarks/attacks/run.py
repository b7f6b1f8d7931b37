"""All campaigns, each within a budget; what they count is added to results.json and told in docs/design/reliability.md.

    python benchmarks/attacks/run.py --budget 600 [--only flips,kills] [--seed 1] [--fresh]
    python benchmarks/attacks/run.py --page
    python benchmarks/attacks/run.py --take PRINTED.json

A budget is seconds per campaign. Results of several calls (with other seeds) add up until --fresh begins anew.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections import Counter
from pathlib import Path

from diffmem.atomic import write_atomic
from diffmem.runs.provenance import git_state

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
RESULTS = FOLDER / "results.json"
CONFIGS = FOLDER / "configs.json"
PAGE = ROOT / "docs" / "design" / "reliability.md"

CAMPAIGNS = {
    "flips": lambda seconds, seed: call("flips", flips=100_000, seed=seed, seconds=seconds),
    "flips of 0.1.0": lambda seconds, seed: call("flips", flips=100_000, seed=seed, seconds=seconds, old=1.0),
    "kills": lambda seconds, seed: call("kills", kills=100_000, seed=seed, seconds=seconds),
    "options": lambda seconds, seed: call("options", seed=seed, seconds=seconds),
    "inputs": lambda seconds, seed: call("inputs", trials=100_000, seed=seed, seconds=seconds),
    "disks": lambda seconds, seed: call("disks", trials=100_000, seed=seed, seconds=seconds),
    "pages": lambda seconds, seed: call("pages", seconds=seconds),
    "guard": lambda seconds, seed: call("guard", limit=2, seconds=seconds, seed=seed, done=done("guard")),
}
"""Name -> the campaign, given seconds and a seed; the guard's takes two values per argument, ends a class that it began, and
goes on with the classes that no earlier call has tried."""

ABOUT = {
    "flips": (
        "A bit, byte, cut or zeroed stretch in a file of a run of score, generate, match, measure or audit (index, "
        "facts, summary, manifest and pages too); then `show` and the same command again. Fails: other rows, facts or "
        "summary than those of the whole run without a word, a refusal that does not name the file, exit 70."
    ),
    "flips of 0.1.0": (
        "The same on runs as diffmem 0.1.0 left them, whose parts and JSON files have no checksums of their own: the "
        "pages' checksums of Parquet and the columns are all that can be verified, and a changed digit in a JSON file "
        "is not seen. New runs are the remedy."
    ),
    "kills": (
        "SIGKILL, SIGINT or SIGTERM at a random moment of a verb that writes, three to six times in one folder, then "
        "the same command to its end. Fails: a row that was there is gone, a half-written file is read, an exit code "
        "other than 3, the finished folder differs from one that nothing has stopped."
    ),
    "options": (
        "Every option and argument of every verb, found by their signatures: NaN, infinities, negative and huge "
        "numbers, texts with control characters and half characters, FIFOs, devices, loops of links, damaged and "
        "deeply nested files. Fails: exit 70, no word, a control character on the terminal."
    ),
    "inputs": (
        "Lists of prompts (txt, csv, tsv, json, jsonl, parquet) with odd cells, columns, encodings and damaged bytes; "
        "pictures of six formats, damaged, in folders, zip, tar and parquet. Fails: an exception that is none of diffmem's, "
        "an item that is neither a picture nor a problem."
    ),
    "disks": (
        "A disk that fills up, files that may not grow, a read-only file system (real ones, mounted for it). Fails: "
        "exit 70, no word of the cause, the same command does not go on, other numbers afterwards."
    ),
    "pages": (
        "Payloads (scripts, handlers, templates, markup, direction overrides) as prompts, ids, captions, file names "
        "and names of models, on the pages of five verbs, pictures plain, blurred and left out. Fails: anything that "
        "runs or is loaded, markup that a harmless page lacks."
    ),
    "guard": (
        "Every argument of every pipeline class that the guard takes or that shares its network, found by signature. "
        "A trial is a call that reached the network or a decision; calls that the pipeline refused before are not "
        "counted. Fails: an image given out whose conditioning no decision covers."
    ),
    "configs": (
        "Model folders of every family in which one thing is wrong (benchmarks/attacks/configs.py). Fails: it opens as "
        "another model without a word, runs code of the folder, exit 70."
    ),
}


def done(name):
    """Classes that earlier calls of a campaign have tried."""
    known = json.loads(RESULTS.read_text()).get(name, {}) if RESULTS.exists() and "--fresh" not in sys.argv else {}
    return frozenset(known.get("classes", {}))


def call(module, **options):
    return importlib.import_module(module).run(**options)


def add(results, name, result, seed, revision):
    """Add what one call counted to what earlier calls counted."""
    old = results.get(name, {"trials": 0, "failures": 0, "failed": [], "outcomes": {}, "calls": []})
    about = {
        k: v
        for k, v in result.items()
        if k not in ("campaign", "failed", "outcomes", "seed") and not isinstance(v, dict | list)
    }
    results[name] = {
        "trials": old["trials"] + result["trials"], "failures": old["failures"] + result["failures"],
        "failed": old["failed"] + result["failed"],
        "outcomes": dict(sorted((Counter(old["outcomes"]) + Counter(result["outcomes"])).items())),
        "calls": [*old["calls"], {"seed": seed, "revision": revision, **about}],
    }  # fmt: skip
    for kind in ("classes", "per_verb"):
        if kind in result:
            results[name][kind] = dict(sorted((Counter(old.get(kind, {})) + Counter(result[kind])).items()))


def revision():
    """The commit that is at work; "changed" where files differ from it."""
    state = git_state(ROOT)
    return None if state is None else state.revision[:12] + (", changed" if state.dirty else "")


def of_configs():
    """The campaign on model folders, which keeps a file of its own, in the shape of the others."""
    if not CONFIGS.exists():
        return {}
    result = json.loads(CONFIGS.read_text())
    failed = [
        f"{name}: {bad['mutation']}: {bad['outcome']}"
        for name, family in result["families"].items()
        for bad in family["failures"]
    ]
    calls = [
        {
            "seed": family["seed"],
            "revision": family["provenance"]["git"]["revision"][:12],
            "trials": family["mutations"],
        }
        for family in result["families"].values()
    ]
    return {
        "configs": {
            "trials": result["mutations"], "failures": result["failures"], "failed": failed,
            "outcomes": result["outcomes"], "calls": calls,
        }
    }  # fmt: skip


def page(results):
    """The page: trials and failures per campaign, and what the trials were."""
    lines = [
        "# What was tried to break it",
        "",
        "Made by `benchmarks/attacks/run.py` from `benchmarks/attacks/results.json`, which names the failures and the "
        "revision of every call; nothing here is typed in. The goal is 0 in the last column: nothing silent, no exit code "
        "70, nothing lost, nothing executed, no image given out undecided.",
        "",
        "| campaign | trials | failures |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {result['trials']:,} | {result['failures']:,} |" for name, result in results.items()]
    for name, result in results.items():
        revisions = sorted({str(call["revision"]) for call in result["calls"]})
        lines += ["", f"## {name[0].upper()}{name[1:]}", "", f"{ABOUT[name]} Revision: {', '.join(revisions)}."]
        lines += ["", *(f"- {outcome[:120]}: {count:,}" for outcome, count in result["outcomes"].items())]
        lines += [*of_parts(result)]
        if result["failed"]:
            lines += ["", "Failures:", "", *(f"- `{text[:200]}`" for text in result["failed"][:10])]
    versions = ROOT / "benchmarks" / "versions" / "result.json"
    if versions.exists():
        lines += ["", "## Versions of other packages", "", *of_versions(json.loads(versions.read_text()))]
    return "\n".join(lines) + "\n"


def of_parts(result):
    """How the trials are spread over verbs or classes."""
    if "per_verb" in result:
        yield from ("", "By verb: " + ", ".join(f"{verb} {count}" for verb, count in result["per_verb"].items()) + ".")
    if "classes" in result:
        tried = [count for count in result["classes"].values() if count]
        every = "every one that there is" if result["calls"][-1].get("complete") else "not yet every one"
        yield from (
            "",
            f"{len(tried)} pairs of a family's parts and a class, {every}; {min(tried)} to {max(tried)} calls each.",
        )


def of_versions(results):
    yield "`benchmarks/versions/run.py` installs the lowest and the newest versions that pyproject.toml allows, extras for"
    yield "users included, runs a short list of tests and the digits demo."
    yield ""
    yield "| set | tests passed | tests failed | demo: found of planted |"
    yield "|---|---|---|---|"
    for name, found in sorted(results.items()):
        demo = "none" if found.get("demo") is None else "{found} of {planted}".format(**found["demo"])
        paths = found["tests"].values()
        passed, failed = (sum(counts.get(word, 0) for counts in paths) for word in ("passed", "failed"))
        yield f"| {name} | {passed} | {failed} | {demo} |"
    for name, found in sorted(results.items()):
        for lost in (name for counts in found["tests"].values() for name in counts["names"]):
            yield f"- failed: `{lost}`"
        yield ""
        yield f"{name}: " + ", ".join(f"{package} {number}" for package, number in found["versions"].items()) + "."


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=600, help="seconds per campaign")
    parser.add_argument("--only", help=f"with commas: {', '.join(CAMPAIGNS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="forget earlier results of these campaigns")
    parser.add_argument("--page", action="store_true", help="write the page from results.json, run nothing")
    parser.add_argument(
        "--take", type=Path, nargs="+", default=[], help="files with what a campaign printed when called alone"
    )
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    at_work = revision()
    for file in options.take:
        text = file.read_text()
        result = json.loads(text[text.index("{\n") :])
        add(results, result["campaign"], result, result.get("seed"), at_work)
        write_atomic(RESULTS, (json.dumps(results, indent=1, ensure_ascii=True) + "\n").encode())
    for name in [] if options.page or options.take else options.only.split(",") if options.only else CAMPAIGNS:
        begun = time.time()
        result = CAMPAIGNS[name](options.budget, options.seed)
        results = (
            json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        )  # another campaign may have ended meanwhile
        if options.fresh:
            results.pop(name, None)
        add(results, name, result, options.seed, at_work)
        write_atomic(RESULTS, (json.dumps(results, indent=1, ensure_ascii=True) + "\n").encode())
        print(
            f"{name}: {result['trials']} trials, {result['failures']} failures, {time.time() - begun:.0f} s", flush=True
        )
    results |= of_configs()
    write_atomic(PAGE, page(results).encode("utf-8", errors="backslashreplace"))
    raise SystemExit(1 if any(result["failures"] for result in results.values()) else 0)


if __name__ == "__main__":
    main()
