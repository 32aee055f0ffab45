"""The agreement between the tokens of two engines, and the least that is accepted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

#: Least mean and first percentile of the cosines between tokens; below either an engine is refused.
LEAST_MEAN_COSINE = 0.999
LEAST_FIRST_PERCENTILE = 0.995


class Agreement(BaseModel):
    """Cosines between the tokens of two engines for the same pixels.

    Attributes:
        tokens: number of tokens compared.
        not_finite: number of tokens that hold a NaN or an infinity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tokens: int = Field(gt=0)
    not_finite: int = Field(ge=0)
    mean_cosine: float = Field(ge=-1.000001, le=1.000001)
    first_percentile_cosine: float = Field(ge=-1.000001, le=1.000001)

    @property
    def holds(self) -> bool:
        """Whether the agreement is accepted."""
        return (
            self.not_finite == 0
            and self.mean_cosine >= LEAST_MEAN_COSINE
            and self.first_percentile_cosine >= LEAST_FIRST_PERCENTILE
        )

    def describe(self) -> str:
        """Describe the cosines found and wanted."""
        bad = f", {self.not_finite} of {self.tokens} tokens not finite" if self.not_finite else ""
        return (
            f"token cosine {self.mean_cosine:.5f} on average (wanted {LEAST_MEAN_COSINE}), "
            f"{self.first_percentile_cosine:.5f} at the first percentile (wanted "
            f"{LEAST_FIRST_PERCENTILE}){bad}"
        )


def compare_tokens(tokens: NDArray[Any], expected: NDArray[Any]) -> Agreement:
    """Compare tokens with the expected ones by their cosines.

    Args:
        tokens: shape (..., channels); a token that is not finite counts as a cosine of 0.
        expected: tokens of the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    if tokens.shape != expected.shape:
        raise ValueError(f"tokens {tokens.shape} cannot be compared with {expected.shape}")
    a, b = (t.reshape(-1, t.shape[-1]).astype(np.float64) for t in (tokens, expected))
    finite = np.asarray(np.isfinite(a).all(axis=1))
    a[~finite] = 0.0
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.maximum(norms, 1e-30)
    return Agreement(
        tokens=len(a),
        not_finite=int((~finite).sum()),
        mean_cosine=float(cosine.mean()),
        first_percentile_cosine=float(np.percentile(cosine, 1)),
    )


def probe(height: int, width: int, count: int = 2) -> NDArray[np.float32]:
    """Make normalised images (N, 3, H, W) with structure at every scale and some noise."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    pictures = np.zeros((count, 3, height, width))
    for wave in range(12):
        fy, fx = rng.uniform(-1, 1, 2) * 2 ** (wave / 2)
        phase = rng.uniform(0, 2 * np.pi, (count, 3, 1, 1))
        pictures += np.cos(2 * np.pi * (fy * y + fx * x) + phase) / (1 + wave / 4)
    pictures += 0.2 * rng.normal(size=pictures.shape)
    return np.asarray(pictures / pictures.std(), np.float32)
