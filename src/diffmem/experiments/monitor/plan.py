"""What is measured of every checkpoint."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from diffmem.evaluation.chance import LEVEL
from diffmem.models.generation import Sampling


class MonitorPlan(BaseModel):
    """The same images, noises and prompts at every checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(256, ge=2, description="training images whose losses are measured, and as many held-out ones")
    times: tuple[float, ...] = Field(
        (0.1, 0.3, 0.5), description="shares of the noise schedule at which losses are measured"
    )
    draws: int = Field(2, ge=1, description="noises per image and time, and per caption")
    scores: tuple[str, ...] = Field(("pia",), description="membership scores beside the losses")
    prompts: int = Field(16, ge=2, description="prompts that images are generated of: half the same at every checkpoint, half "
                         "chosen by what was measured of it")  # fmt: skip
    images_per_prompt: int = Field(2, ge=1, description="images generated of each")
    level: float = Field(
        LEVEL, gt=0, lt=1, description="error of all checkpoints together, for warnings and for copies each"
    )
    sampling: Sampling = Sampling()
    seed: int = Field(0, description="root seed")
    batch: int = Field(32, ge=1, description="images per call of the pipeline at first")

    @property
    def losses(self) -> tuple[str, ...]:
        """The image scores that are losses, one per time."""
        return tuple(f"loss:time={time:g},draws={self.draws}" for time in self.times)
