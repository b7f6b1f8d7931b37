"""A model that is opened again in another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from diffmem.errors import IncompatibleRun
from diffmem.models.target import Target


@dataclass(frozen=True)
class ModelElsewhere:
    """How a worker gets the model: opened as it was here, or the object itself, by pickle.

    Attributes:
        how: opens it, or is it.
        fingerprint: that of the model here; rows of another one must not get its keys.
    """

    how: Callable[[], Target] | Target
    fingerprint: str

    @classmethod
    def of(cls, target: Target) -> ModelElsewhere:
        """For a model that is open here."""
        return cls(target.reopen or target, target.fingerprint)

    def open(self) -> Target:
        """The model. Raises IncompatibleRun where it is another one there."""
        target = self.how if isinstance(self.how, Target) else self.how()
        if target.is_function:  # what it is was measured on the hardware here, and may differ there in the last digits
            target._fingerprint = self.fingerprint
        elif target.fingerprint != self.fingerprint:
            raise IncompatibleRun(
                f"A worker opened another model than '{target.name}' is here (fingerprint {target.fingerprint[:12]} there, "
                f"{self.fingerprint[:12]} here): the machines must see the same files."
            )
        return target
