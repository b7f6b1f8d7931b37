"""What a list of prompts is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from diffmem.data.fingerprint import hash_json
from diffmem.errors import DataError
from diffmem.notebook import ShownInNotebooks


@dataclass(frozen=True)
class Prompt:
    """One prompt of a list.

    Attributes:
        id: unique within the list.
        text: as written, not stripped.
        label: True memorized, False not, None unknown.
        group: name of a set of prompts that belong together, if the list has such a column.
        extra: every other column of the row.
        problem: why this prompt cannot be used ("empty prompt"), None if it can; the engine makes an error row of it.
    """

    id: str
    text: str
    label: bool | None = None
    group: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class PromptList(Sequence[Prompt], ShownInNotebooks):
    """Prompts in the order of their source, where they came from and which columns were read."""

    prompts: tuple[Prompt, ...]
    source: str
    column: str | None = None
    id_column: str | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        return f"PromptList({len(self)} prompts of {self.source})"

    def shown_facts(self) -> dict[str, object]:
        """What a notebook shows."""
        return {
            "prompts": [prompt.text for prompt in self.prompts], "source": self.source, "column": self.column,
        }  # fmt: skip

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __getitem__(self, index: Any) -> Any:
        return self.prompts[index]

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of ids, texts, labels and groups in order; extra columns do not count."""
        return hash_json([[p.id, p.text, p.label, p.group] for p in self.prompts])

    def by_id(self, prompt_id: str) -> Prompt:
        """The prompt with this id; raises DataError if there is none."""
        found = self._positions.get(prompt_id)
        if found is None:
            raise DataError(f"There is no prompt '{prompt_id}' in {self.source} ({len(self)} prompts).")
        return self.prompts[found]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {prompt.id: i for i, prompt in enumerate(self.prompts)}
