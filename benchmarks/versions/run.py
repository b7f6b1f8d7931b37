"""The lowest and the newest versions of all packages that pyproject.toml allows: do they install, pass tests, find copies?

    python benchmarks/versions/run.py --set lowest
    python benchmarks/versions/run.py --set newest

Builds an environment in a temporary folder (uv resolves it; direct dependencies at their lower bounds for "lowest"), runs a
short list of tests and the digits demo in it, and writes what it saw into result.json. torch is taken as this Python has it
(with its label, such as +cpu) unless --torch says otherwise: on Linux the registry's older builds of it are for GPUs and need
6 GB of libraries. With --python, an environment that is there is tried; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
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


def run_tests(python, path):
    """What the tests of one path say in an environment."""
    told = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", path],
        cwd=ROOT, env=environment(), capture_output=True, text=True,
    ).stdout  # fmt: skip
    counted = {
        word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?)", told.splitlines()[-1])
    }
    return counted | {"names": re.findall(r"^(?:FAILED|ERROR) (\S+)", told, re.M)}


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
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="diffmem-versions-"))
    try:
        python = options.python or build(folder, options.set, options.torch, options.find_links)
        found = try_out(python, options.set)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(found, indent=1))
    demo = found["demo"]
    failed = [name for of_path in found["tests"].values() for name in of_path["names"]]
    raise SystemExit(0 if not failed and demo is not None and demo["found"] == demo["planted"] > 0 else 1)


def try_out(python, which):
    """Tests and demo in an environment; what was tried with these very versions and sources before is not tried again."""
    asked = versions(python)
    source = hashlib.sha256(b"".join(file.read_bytes() for file in sorted((ROOT / "src").rglob("*.py")))).hexdigest()
    found = {"versions": asked, "source": source, "tests": {}}
    before = read().get(which, {})
    if all(before.get(name) == found[name] for name in ("versions", "source")):
        found = before
    for path in TESTS:
        if path not in found["tests"]:
            found["tests"][path] = run_tests(python, path)
            keep(which, found)
    if "demo" not in found:
        found |= run_demo(python)
        keep(which, found)
    return found


def read():
    return json.loads(RESULT.read_text()) if RESULT.exists() else {}


def keep(which, found):
    RESULT.write_text(json.dumps(read() | {which: found}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
