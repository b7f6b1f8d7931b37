"""An index of a training set: one vector per image, with the descriptor and the images that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from diffmem.atomic import locked
from diffmem.copies.approximate import ApproximateSearch, Search, choose_search
from diffmem.copies.descriptors.base import Descriptor
from diffmem.copies.duplicates import DuplicateGroups, near_duplicates
from diffmem.copies.index_build import describe_itself, fill
from diffmem.copies.index_files import ITEMS, IndexState, exists
from diffmem.copies.metrics import Floats, Metric
from diffmem.copies.neighbors import Ints, top_k
from diffmem.copies.templates import with_templates
from diffmem.copies.vectors import Vectors
from diffmem.data.fingerprint import hash_array, hash_json
from diffmem.data.images import ImageItem, ImageSet, as_images, load_images
from diffmem.errors import DataError, UsageError
from diffmem.notebook import ShownInNotebooks

if TYPE_CHECKING:
    from diffmem.copies.verification import Verifier

_ALIKE = 16  # near-duplicates that are looked for per image by the approximate search
MATCHING_VERSION = 1  # to be raised whenever the same index and image would give another match


class CopyIndex(ShownInNotebooks):
    """Vectors of a training set's images, by id; made by `build`, `load` or `from_vectors`.

    Attributes:
        vectors: [N, D] float32, memory-mapped where the index lies on disk.
        ids: [N] the image of each vector.
        problems: id to sentence, of images that could not be described.
        descriptor: what made them; None in an index loaded without one, which can be searched with vectors only.
        approximate: the search through FAISS, None where it is exact; see `use_search`.
    """

    approximate: ApproximateSearch | None = None
    _approximate_views: ApproximateSearch | None = None

    def __init__(self, state: IndexState, descriptor: Descriptor | None) -> None:
        self._state, self.descriptor = state, descriptor
        self._sets: dict[int, ImageSet] = {}
        self._groups: dict[float, DuplicateGroups] = {}

    @classmethod
    def build(
        cls,
        images: Any,
        descriptor: Descriptor,
        path: str | Path | None = None,
        *,
        batch: int = 64,
        part_rows: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> CopyIndex:
        """Describe a set of images, on disk or in memory.

        Described parts are kept as they are made: after an interruption the same call goes on, and with everything
        there it only compares content hashes.

        Args:
            images: an `ImageSet`, or whatever `load_images` takes.
            descriptor: makes the vectors.
            path: folder of the index; None keeps it in memory.
            batch: images described at a time.
            part_rows: images per part on disk; by default 64 MB of vectors.
            progress: called with the number of images after each batch.

        Raises:
            DataError: no image can be decoded, or the folder holds an index by another descriptor.
            IncompatibleRun: the folder holds an index of other images.
        """
        images, folder = as_images(images), None if path is None else Path(path)
        with nullcontext() if folder is None else locked(folder / ".lock"):
            if folder is not None and exists(folder):
                index = cls.load(folder, descriptor)
            else:
                index = cls(IndexState.empty(describe_itself(descriptor), folder), descriptor)
            fill(index._state, images, descriptor, batch, part_rows, progress, first=True)
        index._sets[0] = images
        return index

    @classmethod
    def load(
        cls, path: str | Path, descriptor: Descriptor | None = None, sources: Sequence[str | Path] = ()
    ) -> CopyIndex:
        """Open an index; vectors are memory-mapped.

        Args:
            path: its folder.
            descriptor: must be the one that made the index; needed to search with images.
            sources: where its image sets lie now, in order, if not where they were.

        Raises:
            DataError: no index there, damaged, or made by another descriptor.
        """
        index = cls(IndexState.read(Path(path)), None)
        index._sets = {number: as_images(source) for number, source in enumerate(sources)}
        if descriptor is not None:
            index.require(descriptor)
            index.descriptor = descriptor
        index._state.tell_left_out()
        return index

    @classmethod
    def from_vectors(cls, vectors: NDArray[Any], descriptor: Descriptor, ids: Sequence[str] | None = None) -> CopyIndex:
        """An index in memory of vectors [N, D] that a descriptor has made elsewhere."""
        names = [f"{i:06d}" for i in range(len(vectors))] if ids is None else list(ids)
        if len(names) != len(vectors) or len(set(names)) != len(names):
            raise UsageError(f"{len(names)} ids ({len(set(names))} distinct) for {len(vectors)} vectors.")
        state = IndexState.empty(describe_itself(descriptor), None)
        rows = [{"id": name, "digest": "", "source": 0} for name in names]
        state.add(np.asarray(vectors, np.float32), pa.Table.from_pylist(rows, schema=ITEMS))
        return cls(state, descriptor)

    def append(
        self,
        images: Any,
        *,
        batch: int = 64,
        part_rows: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Add another set of images; its ids must be new. Arguments as in `build`.

        Raises:
            DataError: ids that the index has already. UsageError: the index was loaded without its descriptor.
        """
        images, maker = as_images(images), self._maker()
        with nullcontext() if self.path is None else locked(self.path / ".lock"):
            fill(self._state, images, maker, batch, part_rows, progress, first=False)
        self._sets[len(self._state.meta["sources"]) - 1] = images
        self._groups.clear()
        self.approximate = None
        self._approximate_views = None
        for name in (
            "ids", "problems", "fingerprint", "images_fingerprint", "_place", "views", "view_names", "verifier",
        ):  # fmt: skip
            self.__dict__.pop(name, None)

    def use_search(self, search: Search | None = None, progress: Callable[[int], None] | None = None) -> Search:
        """Choose how it is searched from now on, and build what that takes; kept beside an index on disk.

        Args:
            search: "exact" or "faiss" (approximate); None: exact up to 10⁷ vectors, FAISS above where it is installed.
            progress: called with the number of vectors that went into the FAISS index.

        Returns:
            What was chosen.

        Raises:
            UsageError: FAISS was asked for and is not installed.
        """
        chosen = choose_search(search, len(self))
        file = None if self.path is None else self.path / f"faiss-{self.fingerprint[:16]}.index"
        self._groups.clear()
        self.approximate = self._approximate_views = None
        if chosen == "faiss":
            self.approximate = ApproximateSearch(self.vectors, self.metric, file, progress=progress)
            if len(self.views):
                beside = None if file is None else file.with_name(f"views-{file.name}")
                self._approximate_views = ApproximateSearch(self.view_vectors, self.metric, beside)
        return chosen

    def top_k(
        self, vectors: NDArray[Any], k: int, groups: NDArray[np.integer[Any]] | None = None,
        exclude: NDArray[np.integer[Any]] | None = None,
    ) -> tuple[Floats, Ints]:  # fmt: skip
        """The k most similar images of each vector by the chosen search; see `neighbors.top_k`."""
        if self.approximate is not None:
            return self.approximate.top_k(vectors, k, groups, exclude)
        return top_k(vectors, self.vectors, k, self.metric, groups=groups, exclude=exclude)

    def top_k_views(
        self, vectors: NDArray[Any], k: int, groups: NDArray[np.integer[Any]],
        exclude: NDArray[np.integer[Any]] | None = None,
    ) -> tuple[Floats, Ints]:  # fmt: skip
        """As `top_k`, among the images' other views: similarity and the view's position, one view per group [N] at most."""
        of_views = groups[self.views]
        if self._approximate_views is not None:
            return self._approximate_views.top_k(vectors, k, of_views, exclude)
        return top_k(vectors, self.view_vectors, k, self.metric, groups=of_views, exclude=exclude)

    def sample(self, most: int = 10_000) -> NDArray[Any]:
        """At most so many vectors [n, D] in memory, evenly spaced over the index."""
        return np.asarray(self.vectors[np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).astype(np.int64))])

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        place = "in memory" if self.path is None else f"in {str(self.path)!r}"
        return f"CopyIndex({len(self)} images by {self.about['name']}, {place})"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "images": len(self), "descriptor": self.about["name"], "folder": "in memory" if self.path is None else str(self.path),
        }  # fmt: skip

    @property
    def path(self) -> Path | None:
        """The folder, None in memory."""
        return self._state.path

    @property
    def vectors(self) -> Vectors:
        """[N, D] float32."""
        return Vectors(self._state.parts, int(self._state.meta["dimension"]))

    @property
    def view_vectors(self) -> Vectors:
        """[M, D] float32, of the images as training scripts may have seen them otherwise than they lie (`data.views`)."""
        return Vectors(self._state.view_parts, int(self._state.meta["dimension"]))

    @cached_property
    def views(self) -> Ints:
        """[M] the row (in `vectors`, `ids`) of the image that each of these views is of."""
        return self._state.views.column("row").to_numpy().astype(np.int64)  # type: ignore[no-any-return]

    @cached_property
    def view_names(self) -> list[str]:
        """[M] what each of these views is, as `data.views` names it."""
        return list(self._state.views.column("view").to_pylist())

    @property
    def metric(self) -> Metric:
        """How vectors compare."""
        return Metric(*self._state.meta["descriptor"]["metric"])

    @property
    def about(self) -> dict[str, Any]:
        """The descriptor: name, fingerprint, recipe, metric, duplicate_cut, copy_similarity, statistic, misses."""
        return dict(self._state.meta["descriptor"])

    @cached_property
    def verifier(self) -> Verifier | None:
        """Aligns pictures with their candidates; None unless that is what the descriptor's statistic rests on."""
        if self.about["statistic"] != "verified":
            return None
        from diffmem.copies.verification import Verifier

        return Verifier(self)

    @property
    def chosen_from(self) -> int | None:
        """How many training images those of a shortlist were chosen from, for being near some images; None for a whole set."""
        return self._state.chosen_from

    @property
    def complete(self) -> bool:
        """Whether all images of its sets are in it."""
        return self._state.complete

    @cached_property
    def ids(self) -> list[str]:
        """[N] the id of each vector's image."""
        described = self._state.items.filter(pc.is_null(self._state.items.column("problem")))
        return list(described.column("id").to_pylist())

    @cached_property
    def problems(self) -> dict[str, str]:
        """Id to sentence, of images that could not be described."""
        return self._state.problems

    @cached_property
    def images_fingerprint(self) -> str:
        """Content hash of the image sets alone, whatever described them."""
        sources = [source["fingerprint"] for source in self._state.meta["sources"]]
        return hash_json(sources or [self.ids, *(hash_array(part) for part in self._state.parts)])

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of descriptor, image sets, and the way of grouping and matching: equal ones match alike."""
        sources = [source["fingerprint"] for source in self._state.meta["sources"]]
        content = sources or [self.ids, *(hash_array(part) for part in self._state.parts)]
        if len(self.views):
            content = [*content, {"views": self._state.meta["views"], "count": len(self.views)}]
        return hash_json([MATCHING_VERSION, self.about["fingerprint"], self.about["duplicate_cut"], content])

    def require(self, descriptor: Descriptor) -> None:
        """Raise DataError unless this descriptor made the index: vectors of two descriptors do not compare."""
        made = self._state.meta["descriptor"]
        if descriptor.fingerprint != made["fingerprint"]:
            raise DataError(
                f"The index{f' in {self.path}' if self.path else ''} was made by {made['name']} with {made['recipe']}; "
                f"{descriptor.name} with {descriptor.recipe} cannot search it. Index again, or use the same settings."
            )

    def part(self, rows: Ints) -> CopyIndex:
        """An index in memory of some of the images [n], as they lie: without their other views."""
        state = IndexState.empty(self.about, None)
        described = self._state.items.filter(pc.is_null(self._state.items.column("problem")))
        state.add(self.vectors[np.asarray(rows, np.int64)], described.take(pa.array(rows)))
        return CopyIndex(state, self.descriptor)

    def with_images(self, images: ImageSet) -> CopyIndex:
        """An index in memory that has these images too, each a group of its own; vectors are shared, this one stays as it is."""
        state = replace(
            self._state, meta=deepcopy(self._state.meta), parts=[*self._state.parts], path=None,
            view_parts=[*self._state.view_parts],
        )  # fmt: skip
        joined, groups = CopyIndex(state, self.descriptor), self.duplicates()
        joined._sets = dict(self._sets)
        joined.append(images)
        own = np.arange(groups.count, groups.count + len(joined) - len(self), dtype=groups.group.dtype)
        joined._groups[groups.cut] = replace(
            groups, group=np.concatenate([groups.group, own]), size=np.concatenate([groups.size, np.ones_like(own)])
        )
        return joined

    def describe(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Vectors of other images by the index's own descriptor."""
        return self._maker().describe(images)

    def duplicates(self, cut: float | None = None) -> DuplicateGroups:
        """Near-duplicate groups of its images, with variants of one template merged (pixel descriptors only).

        Computed once per cut (by default the descriptor's own) and kept beside the index. With an approximate search
        those that are kept are used; otherwise only images that it names are compared, templates are not looked for,
        and nothing is kept.
        """
        cut = float(self.about["duplicate_cut"] if cut is None else cut)
        if cut not in self._groups:
            kept = self._state.read_groups(cut)
            approximate = self.approximate
            if kept is None and approximate is not None:
                kept = near_duplicates(
                    self.vectors, self.metric, cut, candidates=lambda rows: approximate.candidates(rows, _ALIKE)
                )
            elif kept is None:
                confirm = None if self.verifier is None else self.verifier.confirm
                found = near_duplicates(self.vectors, self.metric, cut, confirm=confirm)
                kept = with_templates(self.vectors, self.metric, found)
                self._state.write_groups(kept)
            self._groups[cut] = kept
        return self._groups[cut]

    def image(self, image_id: str) -> ImageItem:
        """The picture itself, from where it lay when it was indexed; without it, an item whose `problem` says why."""
        if image_id not in self._place:
            raise DataError(f"There is no image '{image_id}' in the index ({len(self)} images).")
        row = self._state.items.slice(self._place[image_id], 1).to_pylist()[0]
        missing = ImageItem(image_id, None, row["caption"], digest=row["digest"])
        try:
            item = self._open_source(row["source"]).by_id(image_id)
        except DataError as error:
            return replace(missing, problem=f"the image is not where it was indexed: {error}")
        if item.digest != row["digest"]:
            return replace(missing, problem="the image has changed since it was indexed")
        return item

    @cached_property
    def _place(self) -> dict[str, int]:
        return {key: i for i, key in enumerate(self._state.items.column("id").to_pylist())}

    def _maker(self) -> Descriptor:
        if self.descriptor is None:
            name = self._state.meta["descriptor"]["name"]
            raise UsageError(
                f"The index was loaded without its descriptor; load it with the same {name} to use images."
            )
        return self.descriptor

    def _open_source(self, number: int) -> ImageSet:
        if number not in self._sets:
            sources = self._state.meta["sources"]
            place = sources[number]["path"] if number < len(sources) else None
            if place is None:
                raise DataError("its set was in memory only.")
            self._sets[number] = load_images(place, sources[number]["column"])
        return self._sets[number]
