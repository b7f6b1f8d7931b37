"""The verbs of the command: what each does, the job it belongs to, two examples, and options that had other names."""

from __future__ import annotations

import re
from typing import NamedTuple

from cyclopts import Group

JOBS = ("Audit a model", "Look at images", "Compare and evaluate", "Train and try out", "Protect", "Tools")

PROMPTS, SAMPLING, COPIES, MODEL, RUN, RARE = (
    Group(name, sort_key=place)
    for place, name in enumerate(("Prompts", "Sampling", "Copies", "Model", "Run", "Rarely needed"), start=1)
)
"""The groups of options in a verb's help, behind those of the verb itself."""


class Verb(NamedTuple):
    """One verb of the command line.

    Attributes:
        path: `module:function`, imported when the verb runs.
        summary: its line in the list of verbs.
        job: the group in that list, one of `JOBS`.
        examples: arguments after `diffmem`, as a user would type them; they lead the verb's help.
        has_own_app: it has verbs of its own (and shows the examples itself).
    """

    path: str
    summary: str
    job: str = "Tools"
    examples: tuple[str, ...] = ()
    has_own_app: bool = False

    @property
    def shown_examples(self) -> str:
        """The examples as a text for the help; lines too long for a terminal are broken before options."""
        return "\n".join(["Examples:", *map(_typed_line, self.examples)]) if self.examples else ""


def _typed_line(arguments: str) -> str:
    """A command as it is typed, broken before options where it is too long for a terminal."""
    lines = ["  diffmem"]
    for part in re.split(r" (?=--)", arguments):
        if len(lines[-1]) + len(part) > 74:
            lines[-1] += " \\"
            lines.append("     ")
        lines[-1] += f" {part}"
    return "\n".join(lines)


def _verb(name: str, job: int, summary: str, *examples: str) -> Verb:
    return Verb(f"diffmem.cli.{name}:{name}", summary, JOBS[job], tuple(f"{name} {text}".strip() for text in examples))


VERBS = {
    "demo": _verb(
        "demo", 0, "Audit the bundled model whose memorized images are known: minutes, CPU, offline.", "", "--testbed digits"
    ),
    "audit": _verb(
        "audit", 0, "Score prompts, generate images, find copies, say what was found.",
        "./my-model --prompts captions.csv --train ./images --out runs/audit",
        "./base --lora my.safetensors --against-base --prompts captions.csv --train ./images --out runs/lora",
    ),
    "plan": _verb(
        "plan", 0, "Say how large an audit has to be to find a given share of reproducing prompts.",
        "--detect 1% --power 0.8", "--detect 5% --heldout 300 --cost-of runs/audit",
    ),
    "score": _verb(
        "score", 0, "Score prompts for memorization, without generating images.",
        './my-model "a red fox" "a blue bird"', "./my-model --prompts captions.csv --out runs/scores",
    ),
    "localize": _verb(
        "localize", 0, "Say which words of a prompt cause its score.", './my-model "Golden Gate Bridge Poster"',
        "./my-model --prompts suspicious.txt --json",
    ),
    "generate": _verb(
        "generate", 0, "Generate images per prompt with recorded seeds.",
        './my-model "a red fox" --images-per-prompt 8 --out runs/images',
        "./my-model --prompts captions.csv --out runs/images --shard 0/4",
    ),
    "show": _verb("show", 0, "Print what a run found.", "runs/audit", 'runs/audit --fail-if verdict==reproduces'),
    "report": _verb(
        "report", 0, "Write the report of a run: one HTML file, offline.",
        "runs/audit", "runs/audit --annex --out annex.html",
    ),
    "seal": _verb(
        "seal", 0, "Write a run into one file that shows every later edit.", "runs/audit", "runs/audit --out audit.sealed"
    ),
    "verify": _verb(
        "verify", 0, "Say whether a sealed run is as it was sealed, and make images of it again.",
        "runs/audit.sealed", "runs/audit.sealed --model ./my-model --replays 5",
    ),
    "review": _verb(
        "review", 0, "Label pairs by eye: what is a copy, and how far the matcher can be trusted.",
        "runs/audit --reviewer anna", "runs/audit --csv labels.csv",
    ),
    "waive": _verb(
        "waive", 0, "Accept the pairs that a run calls copies, so that gates fail on new ones only.",
        "runs/audit --out waivers.json --owner anna --expires 2027-06-30",
        "runs/audit --out waivers.json --owner anna --expires 2027-06-30 --train-id 0012.png",
    ),
    "measure": _verb(
        "measure", 1, "Measure how easily a model reproduces each image.",
        "./my-model --images ./images --score vgr --out runs/measure",
        "./my-model --images ./images --heldout ./unseen --trained --out runs/measure",
    ),
    "match": _verb(
        "match", 1, "Find the nearest training image of each generated image.",
        "./generated --train ./images --heldout ./unseen", "runs/images --train index --metrics --out runs/match",
    ),
    "index": _verb(
        "index", 1, "Describe a training set once, for later matching.",
        "./images --out index", "./more-images --out index --append",
    ),
    "extract": _verb(
        "extract", 1, "Find memorized images without the training set, from prompts alone.",
        './my-model "a red fox" --out runs/extract', "./my-model --prompts captions.csv --train ./images --out runs/extract",
    ),
    "claim": _verb(
        "claim", 1, "Say which of the given works a model, or a set of images, reproduces.",
        "./my-model --works ./works --decoys ./decoys --out runs/claim",
        "--images ./made --log log.csv --works ./works --decoys ./decoys --out runs/claim",
    ),
    "curate": _verb(
        "curate", 1, "Propose what to do with each training image, from what was measured.",
        "./images --run runs/measure --out runs/curate", "./images --run runs/measure --out curated --write",
    ),
    "evaluate": _verb(
        "evaluate", 2, "Print AUROC and TPR of a run's scores, with intervals.",
        "runs/audit", "runs/audit --labels measured --fpr 0.05",
    ),
    "compare": _verb(
        "compare", 2, "Compare two runs on the same prompts, paired.", "runs/base runs/tuned",
        "runs/base runs/tuned --out comparison.html",
    ),
    "bench": _verb(
        "bench", 2, "Measure the methods on models with known memorization.", "--suite digits", "--suite digits-images"
    ),
    "train": _verb(
        "train", 3, "Train or fine-tune with known duplication, captions and mitigations.",
        "plan.toml --dry-run", "plan.toml --out runs/train",
    ),
    "monitor": _verb(
        "monitor", 3, "Say from which checkpoint of a training on the model copies, and which is the last without copies.",
        "./output --train ./images --heldout ./unseen --out runs/monitor",
        "./loras --base ./my-model --train ./images --watch --out runs/monitor",
    ),
    "lab": _verb(
        "lab", 3, "Train a grid of duplication, captions and mitigations; measure what is copied.",
        "digits --out runs/lab", "plan.toml --data ./images --out runs/lab --shard 0/2",
    ),
    "canaries": _verb(
        "canaries", 3, "Put known synthetic pictures into a training set, and measure how strongly each is reproduced.",
        "make ./images --out with-canaries",
        "measure ./my-model --registration with-canaries/canaries.json --out runs/canaries",
    )._replace(has_own_app=True),
    "mitigate": _verb(
        "mitigate", 4, "Compare mitigations on the same prompts and noises.",
        "./my-model --prompts memorized.csv --train ./images --method random-tokens --out runs/mitigate",
        "./my-model --prompts memorized.csv --train ./images --method all --sweep --out runs/mitigate",
    ),
    "robustness": _verb(
        "robustness", 4, "Try a mitigation under other seeds, guidance, samplers, words and embeddings.",
        "./my-model --prompts memorized.csv --train ./images --method random-tokens --out runs/robust",
        "./my-model --prompts memorized.csv --train ./images --adversarial-steps 0 --out runs/robust",
    ),
    "remove": _verb(
        "remove", 4, "Fine-tune a model so that it forgets images; say whether they are gone or only hidden.",
        "./my-model --prompts memorized.csv --train ./images --out runs/removed",
        "./my-model --images ./to-be-removed --train ./images --method retrack:lr=1e-4 --out runs/removed",
    ),
    "calibrate": _verb(
        "calibrate", 4, "Set a score's threshold at a stated false-positive rate, for score and for the guard.",
        "./my-model --out threshold.json", "./my-model --reference ordinary.txt --fpr 0.05 --out threshold.json",
    ),
    "export": _verb(
        "export", 5, "Write a run's tables and images as CSV, Parquet and PNG files.",
        "runs/audit --csv tables", "runs/audit --parquet tables --png images",
    ),
    "methods": _verb(
        "methods", 5, "List the methods: what they need, what they cost, where they come from.", "", "anisotropy"
    ),
    "doctor": _verb(
        "doctor", 5, "Check this machine and installation, or what diffmem sees of a model.", "", "./my-model"
    ),
    "schema": _verb("schema", 5, "Print the JSON schema of what diffmem writes.", "audit", "mitigate"),
}  # fmt: skip

_RATES = frozenset({"audit", "match", "mitigate", "robustness", "curate"})
_COUNTS = frozenset({"audit", "demo", "extract", "generate", "canaries", "mitigate", "robustness"})
RENAMED: dict[str, tuple[str, frozenset[str]]] = {
    "--false-positives": ("--fpr", _RATES),
    "--rate": ("--fpr", frozenset({"calibrate", "compare", "evaluate"})),
    "--images": ("--images-per-prompt", _COUNTS),
}
"""Option of 0.1.0 -> its name today, and the verbs that had it. The old name works for one release more, with a warning."""
