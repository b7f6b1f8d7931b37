"""The rooms of the package: imports point downwards only, and no two files import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import diffmem
from diffmem.bench import SUITES
from diffmem.copies.descriptors import DESCRIPTORS
from diffmem.copies.descriptors.base import Descriptor
from diffmem.mitigation import MITIGATIONS
from diffmem.mitigation.base import Mitigation
from diffmem.scores import SCORES
from diffmem.scores.base import Score
from diffmem.scores.image import IMAGE_SCORES
from diffmem.scores.image.base import ImageScore

ROOMS = [
    {"errors"}, {"randomness", "registry", "renamed", "keys", "atomic", "user_code", "notebook"}, {"method"},
    {"data"}, {"models"}, {"runs"}, {"evaluation"}, {"copies"}, {"scores"}, {"mitigation"},
    {"stages", "report"}, {"training", "serving"}, {"experiments"}, {"testbeds"}, {"bench"}, {"cli"},
]  # fmt: skip
"""From the ground up; rooms of one floor do not know each other."""
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
SOURCE = Path(diffmem.__file__).parent
FILES = {".".join(p.relative_to(SOURCE.parent).with_suffix("").parts): p for p in SOURCE.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}


def imports(path: Path, types: bool) -> Iterator[str]:
    """Modules of the package that a file imports anywhere in it; with `types`, those for type checkers, too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if not types and id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "diffmem":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_file_lies_in_a_room():
    assert {room(name) for name in MODULES} - {"", "__main__"} == set(FLOOR)


def test_imports_point_downwards():
    wrong = [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        if room(name) in FLOOR
        for other in imports(path, types=True)
        if room(other) in FLOOR and room(other) != room(name) and FLOOR[room(other)] >= FLOOR[room(name)]
    ]
    assert not wrong, "\n".join(sorted(wrong))


def subclasses(cls: type) -> set[str]:
    return {cls.__name__}.union(*(subclasses(sub) for sub in cls.__subclasses__()))


def test_nothing_outside_a_method_asks_for_its_class_or_its_name():
    """Words that also name a suite, a column, a judge and a way of decoding are left out."""
    registries = [SCORES, IMAGE_SCORES, MITIGATIONS, DESCRIPTORS]
    names = {name for registry in registries for name in registry} - {*SUITES, "alignment", "clip", "replace"}
    for registry in registries:
        for name in registry:
            registry.get(name)
    classes = {name for base in (Score, ImageScore, Mitigation, Descriptor) for name in subclasses(base)}
    assert {"DenoiserScore", "SSCD", "AMG"} & classes and {"sscd", "invmm"} <= names
    wrong = []
    for name, path in MODULES.items():
        if room(name) in ("scores", "mitigation", "bench", "testbeds") or ".descriptors" in name:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
                asked = {inner.id for inner in ast.walk(node.args[1]) if isinstance(inner, ast.Name)} & classes
                wrong += [f"{name}:{node.lineno} asks for {cls}" for cls in asked]
            if isinstance(node, ast.Compare):
                told = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)]
                wrong += [f"{name}:{node.lineno} compares with '{text}'" for text in told if text in names]
    assert not wrong, "\n".join(wrong)


def test_no_circles():
    graph = {
        name: {o for o in imports(path, types=False) if o not in (name, "diffmem")} for name, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        raise AssertionError(" -> ".join(circle.args[1])) from None
