"""The terms of `[stage.structure]`, on the outputs of the blocks in the step's own forward pass.

    align      mean over pairs of  1 - mean_P cos(h_student, sg h_teacher)
    diversify  mean over pairs of  mean_P cos(u_i, u_j)^2,   u_l = h_l - h_(l-1)

h_l: the output of block l, h_0 the input of the first block; sg stops the gradient; P: tokens, but
for those of masked padding. Cosines are computed in fp32. The pairs come from the groups
(`align_pairs`; `diversify`: all pairs within a group). Sources: `docs/structure.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecli.flow.objective import Result

DEEPEST = 0.8  # of the depth: blocks beyond it decode and are no target
# An update shorter than this, relative to the output of its block, counts in proportion: the cosine
# of two vectors near zero would have an unbounded gradient.
LEAST_UPDATE = 0.01

ActionKind = Literal["align", "diversify", "none"]


class Action(Protocol):
    """A term for groups that are set. blocks: those whose outputs it reads, as in `Plan.hidden`."""

    @property
    def blocks(self) -> tuple[int, ...]: ...

    def value(self, result: Result) -> Tensor:
        """The bare term, a scalar: the mean over the samples of the batch."""
        ...

    def describe(self) -> str:
        """The blocks in words."""
        ...


def build_action(kind: ActionKind, labels: Sequence[int]) -> Action | None:
    """The term for blocks in these groups; None for "none"."""
    if kind == "align":
        return Align(align_pairs(labels))
    if kind == "diversify":
        return Diversify(members(labels))
    return None


def members(labels: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The blocks of each group, counted from 1."""
    numbered = list(enumerate(labels, 1))
    return tuple(
        tuple(block for block, label in numbered if label == group) for group in sorted(set(labels))
    )


def align_pairs(labels: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(student, teacher) blocks: the middle of a group in the first half of the depth, and that of
    the next group.

    Middles of neighbouring groups are far enough apart to differ, and a middle stands for its group
    wherever the border falls. No teacher lies beyond DEEPEST, and there is always a pair.
    """
    depth = len(labels)
    middles = sorted(group[len(group) // 2] for group in members(labels))
    pairs = [
        (student, max(student + 1, min(teacher, int(DEEPEST * depth))))
        for student, teacher in pairwise(middles)
    ]
    return tuple(pair for pair in pairs if 2 * pair[0] <= depth) or (pairs[0],)


@dataclass(frozen=True)
class Align:
    """Draws a student block's output to a deeper one's, whose own gradient is stopped."""

    pairs: tuple[tuple[int, int], ...]

    @property
    def blocks(self) -> tuple[int, ...]:
        return tuple(sorted({block for pair in self.pairs for block in pair}))

    def value(self, result: Result) -> Tensor:
        distances = []
        for student, teacher in self.pairs:
            student_BPD = result.hidden[student].float()
            teacher_BPD = result.hidden[teacher].detach().float()
            cosine_BP = F.cosine_similarity(student_BPD, teacher_BPD, dim=-1, eps=1e-6)
            distances.append(1 - token_mean(cosine_BP, result))
        return torch.stack(distances).mean()

    def describe(self) -> str:
        return ", ".join(f"{student} <- {teacher}" for student, teacher in self.pairs)


@dataclass(frozen=True)
class Diversify:
    """Makes the updates orthogonal that the blocks of a group add to the residual stream."""

    groups: tuple[tuple[int, ...], ...]

    @property
    def blocks(self) -> tuple[int, ...]:
        inside = {block for group in self.groups for block in group}
        return tuple(sorted(inside | {block - 1 for block in inside}))

    def value(self, result: Result) -> Tensor:
        total = torch.zeros((), device=result.t_B.device)
        count = 0
        for group in self.groups:
            unit = [unit_update(result.hidden[k - 1], result.hidden[k]) for k in group]
            unit_BPND = torch.stack(unit, dim=2)
            squares_BPNN = (unit_BPND @ unit_BPND.mT).square()
            total = total + token_mean(squares_BPNN.triu(1).sum((-2, -1)), result)
            count += len(group) * (len(group) - 1) // 2
        return total / count

    def describe(self) -> str:
        return ", ".join("+".join(map(str, group)) for group in self.groups)


def unit_update(before_BPD: Tensor, after_BPD: Tensor) -> Tensor:
    """The update of a block at every token, scaled to length 1, or below where it is near zero."""
    after_BPD = after_BPD.float()
    update_BPD = after_BPD - before_BPD.float()
    least_BP1 = LEAST_UPDATE * after_BPD.detach().norm(dim=-1, keepdim=True)
    return update_BPD / torch.maximum(update_BPD.norm(dim=-1, keepdim=True), least_BP1 + 1e-12)


def token_mean(value_BP: Tensor, result: Result) -> Tensor:
    """Mean over the samples of the mean over their tokens, without those of masked padding."""
    mask_BT = result.condition.get("mask") if result.condition else None
    if mask_BT is None:
        return value_BP.mean()
    # A token of several frames is real if one of them is.
    tokens = value_BP.shape[1]
    patch = -(-mask_BT.shape[1] // tokens)
    padded = F.pad(mask_BT, (0, tokens * patch - mask_BT.shape[1]))
    real_BP = padded.unflatten(1, (tokens, patch)).any(-1)
    return ((value_BP * real_BP).sum(1) / real_BP.sum(1).clamp_min(1)).mean()
