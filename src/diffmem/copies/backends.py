"""Where the fast product of an exact search is computed: by numpy on the CPU, or by torch on any of its devices.

Either names candidates, with the same proven margin; all of them are scored again in float64 by the same code, with the same
rule for ties, so that the results are equal bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from diffmem.copies.metrics import Floats, Prepared
from diffmem.errors import UsageError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


class Backend(Protocol):
    """Names candidates of a chunk of the corpus.

    Attributes:
        chunk: corpus rows at a time.
        queries: queries at a time.
    """

    @property
    def chunk(self) -> int: ...  # noqa: D102

    @property
    def queries(self) -> int: ...  # noqa: D102

    def candidates(
        self, queries: Prepared, rows: Prepared, floor: Floats, margin: Floats, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs (query, row) that may be among the k best of the query: those that reach its floor and the k-th best here.

        Args:
            queries: [q, D].
            rows: [n, D].
            floor: [q] fast score that an entry must reach.
            margin: [q] bound of the fast score's error.
            k: how many are looked for.
        """


class TorchBackend:
    """The product on a torch device; float32 without TF32, whose rounding the margin covers.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps".
        chunk: corpus rows at a time.
        queries: queries at a time: the product holds `queries` times `chunk` numbers.
    """

    def __init__(self, device: str = "cpu", chunk: int = 65_536, queries: int = 4096) -> None:
        import torch

        try:
            self.device = torch.device(device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError, NotImplementedError) as problem:
            raise UsageError(f"The device '{device}' cannot be used here: {str(problem).splitlines()[0]}") from problem
        self.chunk, self.queries = chunk, queries
        self._held: tuple[Any, Any, list[torch.Tensor], torch.Tensor] | None = None

    def candidates(
        self, queries: Prepared, rows: Prepared, floor: Floats, margin: Floats, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `Backend`."""
        import torch

        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            with torch.inference_mode():
                scores = self._scores(queries, rows)
                bar = torch.from_numpy(floor).to(self.device)
                if scores.shape[1] >= k:
                    kth = scores.topk(k, dim=1).values[:, -1].double()
                    bar = torch.maximum(bar, kth - 2 * torch.from_numpy(margin).to(self.device))
                bar32 = torch.nextafter(bar.float(), torch.tensor(-torch.inf, device=self.device))
                found = (scores >= bar32[:, None]).nonzero()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
        pairs = found.cpu().numpy()
        return pairs[:, 0], pairs[:, 1]

    def _scores(self, queries: Prepared, rows: Prepared) -> torch.Tensor:
        import torch

        mine, a = self._queries(queries)
        theirs = [torch.from_numpy(part).to(self.device) for part in rows.parts]
        if queries.metric.kind == "cosine":
            return mine[0] @ theirs[0].T
        b = torch.from_numpy(rows.squares).to(self.device)
        worst: torch.Tensor | None = None
        for tile, (left, right) in enumerate(zip(mine, theirs, strict=True)):
            score = (left @ right.T).mul_(2 / left.shape[1]).sub_(a[tile][:, None]).sub_(b[tile][None, :])
            worst = score if worst is None else torch.minimum(worst, score)
        assert worst is not None
        return worst

    def _queries(self, queries: Prepared) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The queries on the device, moved there once for a stretch of chunks."""
        import torch

        place = (queries.parts.ctypes.data, queries.parts.shape)
        if self._held is None or self._held[0] != place:
            parts = [torch.from_numpy(np.ascontiguousarray(part)).to(self.device) for part in queries.parts]
            # Holding the array itself keeps its address from being given to another one.
            self._held = (place, queries.parts, parts, torch.from_numpy(queries.squares).to(self.device))
        return self._held[2], self._held[3]


def backend_of(name: str | None) -> Backend | None:
    """The backend of a name: None or "numpy" for numpy, "torch" for torch's GPU or else the CPU, "torch:DEVICE"."""
    if name in (None, "numpy"):
        return None
    kind, _, device = str(name).partition(":")
    if kind != "torch":
        raise UsageError(f"There is no backend '{name}'; expected numpy, torch or torch:DEVICE.")
    import torch

    return TorchBackend(device or ("cuda" if torch.cuda.is_available() else "cpu"))
