"""The lowest and the newest versions of all packages that pyproject.toml allows: do they install, pass tests, find copies?

    python benchmarks/versions/run.py --set lowest
    python benchmarks/versions/run.py --set newest

Builds an environment in a temporary folder (uv resolves it; direct dependencies at their lower bounds for "lowest"), runs a
short list of tests and the digits demo in it, and writes what it saw into result.json. torch is taken as this Python has it
(with its label, such as +cpu) unless --torch says otherwise: on Linux the registry's older builds of it are for GPUs and need
6 GB of libraries. With --python one environment can be tried in parts: --parts tests, then --parts demo.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULT = Path(__file__).with_name("result.json")
EXTRAS = ("lora", "plots", "faiss", "formats", "features", "examples")
TOOLS = ("pytest", "hypothesis", "jsonschema")
TESTS = (
    "tests/runs", "tests/cli/test_app.py", "tests/copies/test_index.py", "tests/copies/test_duplicates.py",
    "tests/models/test_families.py", "tests/models/test_lora_peft.py", "tests/scores/test_formulas.py",
    "tests/evaluation", "tests/report/test_digest.py", "tests/data", "tests/examples/test_service.py",
    "tests/attacks/test_guard_callers.py",
)  # fmt: skip


def wanted(torch):
    """What pyproject.toml asks for, with one version of torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    return [f"torch=={torch}" if re.match(r"torch\b", line) else line for line in asked]


def build(folder, which, torch, links):
    """An environment with one of the sets; its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder / "tool"], check=True)
    subprocess.run([folder / "tool/bin/python", "-m", "pip", "install", "-q", "uv"], check=True)
    uv = [str(folder / "tool/bin/uv"), "pip"]
    asked = folder / "asked.in"
    asked.write_text("\n".join(wanted(torch)) + "\n")
    found = ["--find-links", links] if links else []
    how = "lowest-direct" if which == "lowest" else "highest"
    subprocess.run(
        [
            *uv,
            "compile",
            "-q",
            "--python",
            sys.executable,
            "--resolution",
            how,
            *found,
            asked,
            "-o",
            folder / "exact.txt",
        ],
        check=True,
    )
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    python = folder / "env/bin/python"
    subprocess.run([*uv, "install", "-q", "--python", python, *found, "-r", folder / "exact.txt", *TOOLS], check=True)
    return python


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run_tests(python):
    """What the tests say in an environment."""
    begun = time.time()
    told = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
        cwd=ROOT, env=environment(), capture_output=True, text=True,
    ).stdout  # fmt: skip
    counted = re.findall(r"(\d+) (passed|failed|skipped|errors?)", told.splitlines()[-1])
    return {
        "tests": {word: int(number) for number, word in counted},
        "failed": re.findall(r"^(?:FAILED|ERROR) (\S+)", told, re.M), "seconds": round(time.time() - begun),
    }  # fmt: skip


def run_demo(python):
    """What the digits demo finds in an environment."""
    with tempfile.TemporaryDirectory() as scratch:
        demo = subprocess.run(
            [python, "-m", "diffmem", "demo", "--testbed", "digits", "--prompts", "60", "--images-per-prompt", "2", "--json",
             "--out", f"{scratch}/run"], cwd=scratch, env=environment(), capture_output=True, text=True,
        )  # fmt: skip
    copies = json.loads(demo.stdout)["copies"] if demo.returncode == 0 else None
    return {
        "demo_exit_code": demo.returncode,
        "demo": None if copies is None else {name: copies[name] for name in ("planted", "found", "negatives", "false")},
        "demo_said": demo.stderr.strip().splitlines()[-1:] if copies is None else [],
    }  # fmt: skip


PARTS = {"tests": run_tests, "demo": run_demo}


def versions(python):
    names = [re.match(r"[\w.-]+", line)[0] for line in wanted("0")]
    code = "import sys, json; from importlib.metadata import version; print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
    return json.loads(subprocess.run([python, "-c", code, *names], check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["lowest", "newest"], required=True)
    parser.add_argument("--torch", default=version("torch"), help="version of torch; default: the one of this Python")
    parser.add_argument("--find-links", default=os.environ.get("PIP_FIND_LINKS"), help="where else to look for wheels")
    parser.add_argument("--python", help="of an environment that is there already; nothing is built")
    parser.add_argument("--parts", default="tests,demo", help="what is run, with commas")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="diffmem-versions-"))
    try:
        python = options.python or build(folder, options.set, options.torch, options.find_links)
        found = {"versions": versions(python)}
        for part in options.parts.split(","):
            found |= PARTS[part](python)
    finally:
        shutil.rmtree(folder)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    before = results.get(options.set, {})
    # The other part holds for the same versions only.
    found = (before if before.get("versions") == found["versions"] else {}) | found
    RESULT.write_text(json.dumps(results | {options.set: found}, indent=1, sort_keys=True) + "\n")
    print(json.dumps(found, indent=1))
    demo = found.get("demo")
    sound = found.get("failed") == [] and demo is not None and demo["found"] == demo["planted"] > 0
    raise SystemExit(0 if sound else 1)


if __name__ == "__main__":
    main()
