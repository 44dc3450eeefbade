"""The term of structure-aware regularization: pulls the blocks of a group together and keeps groups
apart.

    mean_m [ mean_l (1 - cos(B_lm, B_g(l)m)) + beta mean_{g != h} max(0, cos(B_gm, B_hm) - c0_ghm) ]

m: q, k, v, o, fc1, fc2; B_lm = A P / |A P|, A = W^T W (q, k, v, fc1) or W W^T (o, fc2), P a fixed
random matrix of 64 columns; B_gm: the mean over a group, without gradient in the first part and for
h in the second; c0: the cosines when the term began. A does not change when heads or hidden units
change places; raw weights are never averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stagecli.errors import StageError
from stagecli.stage.base import blocks_of

READING = ("q", "k", "v", "fc1")  # read the residual stream; o and fc2 write to it
TYPES = ("q", "k", "v", "o", "fc1", "fc2")
EVERY_TYPE = slice(len(TYPES))
COLUMNS = 64  # of P
BETA = 0.5  # weight of the hinge between groups


def block_matrices(network: nn.Module, depth: int) -> dict[str, list[Tensor]]:
    """Type -> the matrix of every block. Raises StageError where the network lacks one."""
    blocks = [block.matrices() for block in blocks_of(network)]
    if len(blocks) != depth:
        raise StageError(f"the network has {len(blocks)} blocks, the recipe {depth}")
    for number, matrices in enumerate(blocks, 1):
        missing = [kind for kind in TYPES if kind not in matrices]
        if missing:
            raise StageError(
                f"block {number} of the network has no matrix {missing[0]}: it cannot be compared"
            )
    return {kind: [matrices[kind] for matrices in blocks] for kind in TYPES}


def second_moments(W_LOD: Tensor, P_DX: Tensor) -> Tensor:
    """W^T W P of every block, flattened and of length 1: [L, D * X]; D is the residual stream's
    width.
    """
    return F.normalize((W_LOD.mT @ (W_LOD @ P_DX)).flatten(1), dim=1)


@lru_cache(maxsize=8)  # used at every step, and a copy to a GPU would force a sync
def membership(labels: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(1 where a block is in a group [L, G], the map from blocks to group means [G, L])."""
    same_LG = F.one_hot(torch.tensor(labels)).float().to(device)
    return same_LG, (same_LG / same_LG.sum(0)).T


def between(moments: Sequence[Tensor], labels: tuple[int, ...]) -> Tensor:
    """Cosines [M, G, G] of the group means; gradient for the first of a pair only, -1 on the
    diagonal.
    """
    _, mean_GL = membership(labels, moments[0].device)
    unit = [F.normalize(mean_GL @ B_LX, dim=1) for B_LX in moments]
    return torch.stack([(u_GX @ u_GX.detach().T).fill_diagonal_(-1.0) for u_GX in unit])


def pull_and_hinge(
    moments: Sequence[Tensor], labels: tuple[int, ...], ceiling_MGG: Tensor, beta: float
) -> Tensor:
    """The term by type, [M].

    The mean over blocks of 1 - cos(B, mean of its group, without gradient), plus beta times the
    mean over pairs of groups of the amount by which their cosine exceeds `ceiling_MGG`.
    """
    same_LG, mean_GL = membership(labels, moments[0].device)
    apart = []
    for B_LX in moments:
        target_LX = same_LG @ (mean_GL @ B_LX.detach())
        apart.append((1 - F.cosine_similarity(B_LX, target_LX, dim=1, eps=1e-12)).mean())
    # relu has no gradient at the ceiling itself, where the term begins.
    past_MGG = torch.relu(between(moments, labels) - ceiling_MGG)
    G = past_MGG.shape[1]
    past_MGG = past_MGG * (1 - torch.eye(G, device=past_MGG.device))
    return torch.stack(apart) + beta * past_MGG.sum((1, 2)) / max(1, G * (G - 1))


class GroupTerm:
    """The bare term of the live weights, for groups that are set once.

    matrices: from `block_matrices`; rng: draws P. values: the term by type as last computed.
    """

    def __init__(self, matrices: Mapping[str, list[Tensor]], rng: np.random.Generator) -> None:
        self.matrices = matrices
        self.device = matrices["q"][0].device
        width = matrices["q"][0].shape[-1]
        P_DX = rng.standard_normal((width, COLUMNS), dtype=np.float32)
        self.P_DX = torch.from_numpy(P_DX).to(self.device)
        self.labels: tuple[int, ...] = ()
        self.ceiling_MGG: Tensor | None = None  # c0; None while there are no groups
        # Kept on the device and converted only when a row is written, to avoid a sync per step.
        self.values: list[Tensor | float] = [0.0] * len(TYPES)

    @property
    def weights(self) -> list[Tensor]:
        """All matrices, type by type."""
        return [weight for kind in TYPES for weight in self.matrices[kind]]

    @torch.no_grad()
    def begin(self, labels: tuple[int, ...]) -> None:
        """Set the groups; the present cosines between them become the ceiling of the hinge."""
        self.labels = labels
        self.ceiling_MGG = between(self.moments(EVERY_TYPE), labels)

    def end(self) -> None:
        """Release what the term needs; `labels` stay for the report."""
        self.values = [0.0] * len(TYPES)
        self.ceiling_MGG = None

    def moments(self, types: slice) -> list[Tensor]:
        """Sketched second moments [L, D * 64] of every block, for each of some of TYPES."""
        moments = []
        for kind in TYPES[types]:
            W_LOI = torch.stack([weight.float() for weight in self.matrices[kind]])
            reading_LOD = W_LOI if kind in READING else W_LOI.mT
            moments.append(second_moments(reading_LOD, self.P_DX))
        return moments

    def by_type(self, types: slice) -> Tensor:
        """The bare term for each of some of TYPES, [M]."""
        assert self.ceiling_MGG is not None
        return pull_and_hinge(self.moments(types), self.labels, self.ceiling_MGG[types], BETA)

    def whole(self) -> Tensor:
        """The bare term over all types."""
        return self.by_type(EVERY_TYPE).mean()

    def one_type(self, turn: int) -> Tensor:
        """The bare term of one type, remembered in `values`."""
        value = self.by_type(slice(turn, turn + 1)).sum()
        self.values[turn] = value.detach()
        return value

    def gradient_norm(self) -> float:
        """Norm of the whole term's gradient; also renews `values`."""
        values_M = self.by_type(EVERY_TYPE)
        self.values = list(values_M.detach().unbind())
        gradients = torch.autograd.grad(values_M.mean(), self.weights)
        return float(torch.stack([g.float().norm() for g in gradients]).norm())

    def value(self) -> float:
        """Mean over the types of the values as last computed."""
        return sum(map(float, self.values)) / len(TYPES)

    def state_dict(self) -> dict[str, Any]:
        return {
            "labels": list(self.labels),
            "ceiling": self.ceiling_MGG,
            "values": [float(value) for value in self.values],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        ceiling = state["ceiling"]
        self.labels = tuple(state["labels"])
        self.ceiling_MGG = None if ceiling is None else ceiling.clone().to(self.device)
        self.values = list(state["values"])
