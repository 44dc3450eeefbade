"""Mean and covariance of a set of embeddings, accumulated batch by batch in float64.

`Moments` is immutable: updating or merging returns a new one. Ten thousand clips are scored from
D * D numbers, and parts computed by several processes can be merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

Embeddings = Tensor | npt.NDArray[Any]


def checked_embeddings(values: Embeddings, name: str, least: int = 2) -> Tensor:
    """[N, D] as float64 on the CPU; ValueError unless finite, 2-D and of at least `least` rows."""
    values_ND = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if values_ND.ndim != 2 or values_ND.shape[0] < least or values_ND.shape[1] < 1:
        clips = {1: "one clip", 2: "two clips"}.get(least, f"{least} clips")
        if values_ND.ndim == 2 and values_ND.shape[1]:
            raise ValueError(f"{name} must hold at least {clips}, got {len(values_ND)}")
        raise ValueError(f"{name} must be [N, D], got {tuple(values_ND.shape)}")
    if not bool(torch.isfinite(values_ND).all()):
        raise ValueError(f"some values of {name} are not finite numbers")
    return values_ND


def checked_sets(
    x: Embeddings, y: Embeddings, names: tuple[str, str], least: int = 2
) -> tuple[Tensor, Tensor]:
    """Two sets [N, D] and [M, D], as `checked_embeddings`; ValueError also if D differs."""
    x_ND = checked_embeddings(x, names[0], least)
    y_MD = checked_embeddings(y, names[1], least)
    if x_ND.shape[1] != y_MD.shape[1]:
        dims = f"{x_ND.shape[1]} and {y_MD.shape[1]}"
        raise ValueError(f"{names[0]} and {names[1]} have different dimensions: {dims}")
    return x_ND, y_MD


@dataclass(frozen=True)
class Moments:
    """count: clips seen; mean_D: their mean; scatter_DD: sum of (x - mean)(x - mean)^T.

    float64, on the CPU.
    """

    count: int
    mean_D: Tensor
    scatter_DD: Tensor

    @staticmethod
    def empty(dim: int) -> Moments:
        """Of no clips, with D = `dim`."""
        return Moments(
            0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
        )

    @staticmethod
    def of(values: Embeddings) -> Moments:
        """Of one batch [N, D], N >= 1. Raises ValueError: not [N, D], NaN or infinite values."""
        values_ND = checked_embeddings(values, "the batch", least=1)
        mean_D = values_ND.mean(0)
        centred_ND = values_ND - mean_D
        return Moments(values_ND.shape[0], mean_D, centred_ND.T @ centred_ND)

    def merged(self, other: Moments) -> Moments:
        """Of both parts together, by the pairwise update of Chan, Golub and LeVeque (1979).

        Each part is centred on its own mean, so a large common offset costs no digits, as summing
        x x^T would. Raises ValueError if the dimensions differ.
        """
        if self.dim != other.dim:
            raise ValueError(f"parts have different dimensions: {self.dim} and {other.dim}")
        if not other.count:
            return self
        if not self.count:
            return other
        count = self.count + other.count
        step_D = other.mean_D - self.mean_D
        between_DD = torch.outer(step_D, step_D) * (self.count * other.count / count)
        mean_D = self.mean_D + step_D * (other.count / count)
        return Moments(count, mean_D, self.scatter_DD + other.scatter_DD + between_DD)

    def updated(self, batch: Embeddings) -> Moments:
        """With one more batch [B, D], B >= 1. Raises ValueError as `of` and `merged`."""
        return self.merged(Moments.of(batch))

    @property
    def dim(self) -> int:
        return self.mean_D.shape[0]

    def covariance(self) -> Tensor:
        """[D, D] with ddof=1. Raises ValueError: fewer than two clips."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two clips, got {self.count}")
        return self.scatter_DD / (self.count - 1)
