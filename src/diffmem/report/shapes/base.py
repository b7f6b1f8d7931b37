"""What all parts of a digest have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[Share, Share]


class Part(BaseModel):
    """Frozen, and without fields that are not listed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Text(Part):
    """A prompt as far as it is shown; `length` and `sha256` (first 16 hex digits) are those of the whole."""

    text: str
    length: int = Field(ge=0)
    sha256: str
