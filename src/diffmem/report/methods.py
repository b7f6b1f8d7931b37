"""The table of methods, made from the registries: nothing here is written twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffmem.copies.descriptors import DESCRIPTORS
from diffmem.copies.descriptors.base import About as DescriptorAbout
from diffmem.mitigation.removal import REMOVALS
from diffmem.registry import Registry
from diffmem.report.measures.shape import MeasuresDigest
from diffmem.report.shape import Method
from diffmem.report.shapes.copies import CopiesDigest
from diffmem.scores import DEFAULT_SCORE, SCORES
from diffmem.scores.base import About
from diffmem.scores.image import IMAGE_SCORES
from diffmem.scores.spec import parameters_class


def all_methods() -> list[About]:
    """Every registered score, as it describes itself."""
    return [SCORES.get(name).about for name in SCORES]


def image_methods() -> list[About]:
    """Every registered score of images, as it describes itself."""
    return [IMAGE_SCORES.get(name).about for name in IMAGE_SCORES]


def descriptors() -> list[DescriptorAbout]:
    """Every registered descriptor, as it describes itself."""
    return [DESCRIPTORS.get(name).about for name in DESCRIPTORS]


def one_descriptor(name: str) -> dict[str, Any]:
    """One descriptor in full, with its parameters and their defaults."""
    cls = DESCRIPTORS.get(name)
    about = cls.about
    return {
        "name": about.name, "summary": about.summary, "formula": about.formula, "reference": about.reference,
        "costs": about.cost, "misses": about.misses, "fails when": about.fails_when, "statistic": cls.statistic,
        "copy from": str(cls.copy_similarity), "weights": cls.weights().where, "version": str(cls.version),
        **_parameters(cls),
    }  # fmt: skip


def _parameters(cls: type[Any]) -> dict[str, str]:
    return {
        f"  {field}": f"{info.default!r}" + (f" ({info.description})" if info.description else "")
        for field, info in parameters_class(cls).model_fields.items()
    }


def one_method(name: str) -> dict[str, Any]:
    """One method in full, a score of prompts or of images, with its parameters and their defaults."""
    registry: Registry[Any] = IMAGE_SCORES if name in IMAGE_SCORES else SCORES
    cls = registry.get(name)
    about = cls.about
    return {
        "name": about.name, "summary": about.summary, "formula": about.formula, "reference": about.reference,
        "sees": about.access, "NFE": about.cost, "fails when": about.fails_when, "unit": about.unit,
        **({"sign": about.sign} if name in SCORES else {}),
        "version": str(cls.version), **_parameters(cls),
    }  # fmt: skip


AGREEMENT = Method(
    name="seed-agreement",
    summary="mean similarity of the images that one prompt gives from different seeds; needs no training set",
    formula="mean over pairs i < j of similarity(image_i, image_j)",
    reference="Carlini et al., USENIX Security 2023, arXiv 2301.13188, section 4.2",
    cost="0 beyond the images",
    fails_when="a prompt allows one picture only, memorized or not",
)
STATISTICS = {
    "normalised": (
        "distance to the nearest training image over the mean distance to its neighbourhood",
        "d1 / (0.5 * mean of the 50 smallest distances), near-duplicates counted once",
        "Carlini et al., USENIX Security 2023, arXiv 2301.13188, section 5.1",
    ),
    "verified": (
        "evidence that the picture and a training image, laid over each other, share a source, against the other candidates",
        "sqrt(E1) - sqrt(E2) + 4 max(0, c1 - c2); E = sum over pixels and bands of -log(1 - rho^2) / 2 nats",
        "diffmem's own; see docs/matching.md",
    ),
    "ratio": (
        "distance to the nearest over distance to the second-nearest distinct training image",
        "d1 / d2, near-duplicates counted once",
        "Yoon et al., ICML 2023 workshop",
    ),
    "similarity": (
        "similarity to the nearest training image",
        "similarity of the two descriptors",
        "Somepalli et al., CVPR 2023, arXiv 2212.03860",
    ),
}


def used_methods(
    labels: Sequence[str], copies: CopiesDigest | None, measures: MeasuresDigest | None = None
) -> tuple[Method, ...]:
    """The methods of a run: its scores from their registries, then how copies were called."""
    names = list(dict.fromkeys(label.partition(":")[0] for label in labels))
    found = [AGREEMENT if name == AGREEMENT.name else _described(name) for name in names]
    image_names = dict.fromkeys(score.score.partition(":")[0] for score in (measures.scores if measures else ()))
    found += [_described(name, IMAGE_SCORES) for name in image_names]
    if copies is not None:
        summary, formula, reference = STATISTICS[copies.threshold.statistic]
        found.append(
            Method(
                name=f"{copies.descriptor}, {copies.threshold.statistic}", summary=f"copies: {summary}",
                formula=formula, reference=reference, cost="0 beyond the images",
                fails_when=f"it misses {copies.misses}" if copies.misses else "the descriptor misses an alteration",
            )
        )  # fmt: skip
    return tuple(found)


def _described(name: str, registry: Registry[Any] = SCORES) -> Method:
    if name not in registry:
        unknown = "not known to this installation"
        return Method(name=name, summary=unknown, formula="", reference="", cost="", fails_when="")
    about = registry.get(name).about
    return Method(
        name=about.name, summary=about.summary, formula=about.formula, reference=about.reference, cost=about.cost,
        fails_when=about.fails_when,
    )  # fmt: skip


def markdown_table(methods: Sequence[About], per: str = "prompt and noise") -> str:
    """The table of methods as Markdown."""
    lines = [f"| method | what it is | sees | NFE per {per} | reference |", "|---|---|---|---|---|"]
    lines += [f"| `{m.name}` | {m.summary} | {m.access} | {m.cost} | {m.reference} |" for m in methods]
    return "\n".join(lines)


def methods_page() -> str:
    """The page of methods for the documentation, Markdown: formula, cost, reference, when each fails, parameters."""
    parts = [
        "# Methods\n",
        "This page is made by `diffmem methods --page` from the methods themselves. Higher is meant to say more memorized; "
        "whether it does on the models tried stands under each method as its sign ([detectors compared](detectors.md)). "
        f"`{DEFAULT_SCORE}` ranks, calibrates and guards by default.\n",
        markdown_table(all_methods()) + "\n",
    ]
    parts += [part for about in all_methods() for part in _described_in_full(about, SCORES, "prompt and noise")]
    from diffmem.report.moments import moments_markdown

    parts.append(f"## Where on the noise scale the scores look\n\n{moments_markdown()}\n")
    parts.append(
        "# Scores of images\n\nWhat `diffmem measure` runs, one image at a time. Values keep their own sign; the evidence "
        "beside them is higher for more memorized images.\n"
    )
    parts.append(markdown_table(image_methods(), "image") + "\n")
    parts += [part for about in image_methods() for part in _described_in_full(about, IMAGE_SCORES, "image")]
    parts.append(
        "# Descriptors\n\nHow images are compared, `--descriptor NAME` or `--descriptor NAME:key=value,...`. A copy is called "
        "on the statistic; the similarity is used only where no threshold can be calibrated.\n"
    )
    parts += [part for about in descriptors() for part in _descriptor_in_full(about)]
    parts.append(
        "# Removals\n\nWhat `diffmem remove` trains, `--method NAME` or `--method NAME:key=value,...` "
        "([Remove images from a model](removing.md)).\n"
    )
    for name in REMOVALS:
        cls = REMOVALS.get(name)
        about = cls.about
        parts += [
            f"## {about.name}\n\n{about.summary[0].upper()}{about.summary[1:]}.\n",
            f"- Formula: `{about.formula}`",
            f"- Reference: {about.reference}",
            f"- Trains: {'all of the network' if about.trains == 'full' else 'a LoRA'}. Cost: {about.cost}.",
            f"- Fails when: {about.fails_when}.",
            *_listed_parameters(cls),
            "",
        ]
    return "\n".join(parts)


def _descriptor_in_full(about: DescriptorAbout) -> list[str]:
    cls = DESCRIPTORS.get(about.name)
    return [
        f"## {about.name}\n\n{about.summary[0].upper()}{about.summary[1:]}.\n",
        f"- Formula: `{about.formula}`",
        f"- Reference: {about.reference}",
        f"- Cost per image: {about.cost}. Statistic: {cls.statistic}. Copies from a similarity of {cls.copy_similarity}.",
        f"- Misses: {about.misses}. Fails when: {about.fails_when}.",
        *_listed_parameters(cls),
        "",
    ]


def _listed_parameters(cls: type[Any]) -> list[str]:
    fields = parameters_class(cls).model_fields.items()
    listed = "; ".join(f"`{n}` = `{f.default!r}`" + (f", {f.description}" if f.description else "") for n, f in fields)
    return [f"- Parameters: {listed}."] if listed else []


def _described_in_full(about: About, registry: Registry[Any], per: str) -> list[str]:
    """The paragraph of one method on the page."""
    return [
        f"## {about.name}\n\n{about.summary[0].upper()}{about.summary[1:]}.\n",
        f"- Formula: `{about.formula}`",
        f"- Reference: {about.reference}",
        f"- Sees: {about.access}. NFE per {per}: {about.cost}. Unit: {about.unit}.",
        *([f"- Sign: {about.sign}."] if registry is SCORES else []),
        f"- Fails when: {about.fails_when}.",
        *_listed_parameters(registry.get(about.name)),
        "",
    ]
