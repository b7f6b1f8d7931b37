"""The images of a measuring run: read, converted to the model's size and mode, exact repeats taken once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from diffmem.data.fingerprint import hash_bytes
from diffmem.data.images import ImageItem as Picture
from diffmem.data.images import ImageSet
from diffmem.keys import row_key
from diffmem.models.model_image import ModelImage, convert
from diffmem.randomness import seed_of

HELD_OUT = "heldout/"
"""Before the ids of held-out images, so that they never meet those of the measured ones."""


@dataclass(frozen=True)
class TargetImage:
    """One image to be measured, without its pixels.

    Attributes:
        id: in the run.
        sha: content hash of the converted pixels (of the file for an image that cannot be used).
        caption: of its source.
        member: whether the model was trained on it; None if that is not known.
        group: what it belongs to (by default the first folder of its path).
        duplicates: how many images of the set have these very pixels, itself included; None if only a part was read.
        note: what the conversion changed.
        problem: why it cannot be measured.
        position: in its set.
    """

    id: str
    sha: str
    caption: str | None
    member: bool | None
    group: str | None
    duplicates: int | None
    note: str | None
    problem: str | None
    position: int


def image_sha(image: Image.Image) -> str:
    """Content hash of an image's mode, size and pixels."""
    return hash_bytes(f"{image.mode} {image.size} ".encode() + image.tobytes())


class MeasuredSet:
    """One set of images as a measuring run takes it.

    Args:
        images: where they come from.
        form: what the model takes.
        member: whether the model was trained on them; None if not known.
        prefix: before their ids.
        strict: images of another size or mode are not converted but refused.
        only: ids to be measured; `limit` is then without effect.
        limit: a random part of so many images; a larger one contains it.
        seed: of that choice.
        groups: id -> group, instead of the first folder of the path.
        duplicates: id -> how often the image was in the training set, instead of counting.
        by_caption: equal pixels under different captions are different images.
    """

    def __init__(
        self, images: ImageSet, form: ModelImage, member: bool | None, *, prefix: str = "", strict: bool = False,
        only: Sequence[str] | None = None, limit: int | None = None, seed: int = 0, groups: Mapping[str, str] | None = None,
        duplicates: Mapping[str, int] | None = None, by_caption: bool = False,
    ) -> None:  # fmt: skip
        self.images, self.form, self.member, self.prefix, self.strict = images, form, member, prefix, strict
        self._groups, self._duplicates, self._by_caption = groups or {}, duplicates, by_caption
        ids = list(images.ids)
        places: Sequence[int] = range(len(ids))
        self.limited = only is not None or (limit is not None and limit < len(ids))
        if only is not None:
            wanted = set(only)
            places = [place for place, name in enumerate(ids) if name in wanted]
        elif self.limited:
            places = sorted(sorted(places, key=lambda i: seed_of(seed, "measured images", ids[i]))[:limit])
        self.places = places

    def targets(self) -> list[TargetImage]:
        """Every distinct image once, the first of its repeats; decodes each image once."""
        found: dict[tuple[str, str | None], TargetImage] = {}
        count: dict[str, int] = {}
        for place, picture in self._read(self.places):
            target, _ = self._target(place, picture)
            count[target.sha] = count.get(target.sha, 0) + 1
            found.setdefault((target.sha, target.caption if self._by_caption else None), target)
        return [self._counted(target, count[target.sha]) for target in found.values()]

    def pixels(self, targets: Sequence[TargetImage]) -> Iterator[tuple[TargetImage, Image.Image]]:
        """The converted images of these targets, read again one at a time."""
        wanted = {target.position: target for target in targets}
        for place, picture in self._read(sorted(wanted)):
            if picture.image is not None:
                yield wanted[place], convert(picture.image, self.form)[0]

    def _read(self, places: Sequence[int]) -> Iterator[tuple[int, Picture]]:
        for first, last in _runs(places):
            yield from zip(range(first, last + 1), self.images.items(first, last + 1), strict=True)

    def _target(self, place: int, picture: Picture) -> tuple[TargetImage, Image.Image | None]:
        problem, note, image = picture.problem, picture.note, None
        if picture.image is not None:
            image, changed = convert(picture.image, self.form)
            if changed is not None and self.strict:
                problem = f"not {self.form.describe()}, which the model takes ({changed}); --strict-size refuses it"
            note = "; ".join(part for part in (note, changed) if part) or None
        usable = image is not None and problem is None
        sha = image_sha(image) if usable and image is not None else picture.digest
        folder, slash, _ = picture.id.partition("/")
        return TargetImage(
            self.prefix + picture.id, sha, picture.caption, self.member,
            self._groups.get(picture.id, folder if slash else None), None, note, problem, place,
        ), image  # fmt: skip

    def _counted(self, target: TargetImage, count: int) -> TargetImage:
        if self._duplicates is not None:
            return replace(target, duplicates=self._duplicates.get(target.id.removeprefix(self.prefix)))
        return replace(target, duplicates=None if self.limited or target.problem else count)


def in_image_shard(target: TargetImage, shard: tuple[int, int] | None) -> bool:
    """Whether an image belongs to a shard: by content, so that every process agrees without talking."""
    return shard is None or int.from_bytes(row_key(image=target.sha)[:8], "big") % shard[1] == shard[0]


def _runs(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Consecutive positions as (first, last)."""
    first = last = None
    for place in places:
        if first is None or last is None:
            first = last = place
        elif place == last + 1:
            last = place
        else:
            yield first, last
            first = last = place
    if first is not None and last is not None:
        yield first, last
