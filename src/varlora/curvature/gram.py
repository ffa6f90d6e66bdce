"""Sums of outer products Σ_n x_n x_nᵀ over a stream of rows: whole, or the leading eigenpairs from a sketch.

The sketch of a matrix M (d × d) that is never formed is Y = M Ω, with a fixed Ω (d × l) of orthonormal columns. It is
linear in M, so rows are added in any order and in batches of any size: Y += Xᵀ (X Ω). In the end

    M ≈ Y (Ωᵀ Y)⁺ Yᵀ

(Nyström), of which the leading k < l eigenpairs are kept. It is exact where M has rank k or less, and else close to
the best approximation of rank k when the eigenvalues fall off.

Source: Tropp et al. 2017, arXiv 1706.05736.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from varlora.readout.answer_logits import widened

_STRIP = 96
"""The narrowest strip that is multiplied at full speed."""


@dataclass(kw_only=True, eq=False)
class Gram:
    """Σ x xᵀ, whole.

    Attributes:
        matrix: the sum so far (d, d), float64 where the device has it; right on and above the diagonal.

    Example:
        >>> gram = Gram.zeros(2, torch.device("cpu"))
        >>> gram.add(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        >>> gram.matrix.tolist()
        [[2.0, 1.0], [1.0, 1.0]]
    """

    matrix: Tensor

    @classmethod
    def zeros(cls, dimension: int, device: torch.device) -> Gram:
        """The sum over no rows."""
        return cls(matrix=torch.zeros(dimension, dimension, dtype=accumulating(device), device=device))

    def add(self, rows: Tensor) -> None:
        """Adds rows (n, d)."""
        x = widened(rows)
        for part in _strips(x.shape[1]):
            self.matrix[part, part.start :] += x[:, part].mT @ x[:, part.start :]

    def eigenpairs(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (d,) >= 0, falling, and eigenvectors (d, d)."""
        values, vectors = torch.linalg.eigh(self.matrix, UPLO="U")
        return values.clamp(min=0).flip(0), vectors.flip(1)


@dataclass(kw_only=True, eq=False)
class SketchedGram:
    """The leading eigenpairs of Σ x xᵀ.

    Attributes:
        rank: k, the number of eigenpairs.
        test_matrix: Ω (d, l).
        sketch: Y (d, l).

    Example:
        >>> gram = SketchedGram.zeros(50, torch.device("cpu"), rank=1, generator=torch.Generator().manual_seed(0))
        >>> gram.add(torch.ones(3, 50))
        >>> gram.eigenpairs()[0].round().tolist()
        [150.0]
    """

    rank: int
    test_matrix: Tensor
    sketch: Tensor
    _eps: float = field(default=0.0)

    @classmethod
    def zeros(cls, dimension: int, device: torch.device, *, rank: int, generator: torch.Generator) -> SketchedGram:
        """The sum over no rows.

        Args:
            dimension: d.
            device: where the rows are.
            rank: k, at most d.
            generator: draws Ω, on its own device.
        """
        normal = torch.randn(
            dimension, sketch_width(dimension, rank), generator=generator, device=generator.device, dtype=torch.float64
        )
        test_matrix = torch.linalg.qr(normal).Q.to(device, accumulating(device))
        return cls(rank=min(rank, dimension), test_matrix=test_matrix, sketch=torch.zeros_like(test_matrix))

    def add(self, rows: Tensor) -> None:
        """Adds rows (n, d)."""
        x = widened(rows)
        self.sketch += x.mT @ (x @ self.test_matrix.to(x.dtype))
        self._eps = max(self._eps, torch.finfo(x.dtype).eps)

    def eigenpairs(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (k,) >= 0, falling, and eigenvectors (d, k)."""
        core = self.test_matrix.mT @ self.sketch
        values, vectors = torch.linalg.eigh((core + core.mT) / 2)
        kept = values > 10 * self._eps * values.amax()  # the rest is rounding
        scale = torch.where(kept, values, 1).rsqrt() * kept
        u, s, _ = torch.linalg.svd(self.sketch @ (vectors * scale), full_matrices=False)
        return s[: self.rank] ** 2, u[:, : self.rank]


def _strips(dimension: int) -> Iterator[slice]:
    """Rows of a symmetric matrix that are multiplied at a time: what is below the diagonal blocks is left out."""
    width = max(_STRIP, -(-dimension // 8))
    for start in range(0, dimension, width):
        yield slice(start, min(start + width, dimension))


def sketch_width(dimension: int, rank: int) -> int:
    """l for k eigenpairs of d dimensions: four times as many and ten more.

    Example:
        >>> sketch_width(4096, 10)
        50
    """
    return min(dimension, 4 * rank + 10)


def accumulating(device: torch.device) -> torch.dtype:
    """The dtype of sums over the data: float64, or float32 on a device that has no other (Apple's)."""
    return torch.float32 if device.type == "mps" else torch.float64
