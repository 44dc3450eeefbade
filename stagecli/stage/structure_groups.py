"""Measures, probe by probe, which blocks of the network change alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from stagecli.errors import StageError
from stagecli.stage import grouping
from stagecli.stage.base import blocks_of
from stagecli.stage.grouping import Array, Grouping, Sketch

READING = ("q", "k", "v", "fc1")  # read the residual stream; o and fc2 write to it
TYPES = ("q", "k", "v", "o", "fc1", "fc2")
WIDTHS = {"moments": 4096, "updates": 512}  # of a sketch
KEPT = 4  # probes that S is the mean over


def seed_of(*numbers: int) -> int:
    """A seed that is independent for every list of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


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


class GroupMonitor:
    """Similarities S of the blocks' updates between probes, and the groups found in them.

    similarity, seed: as in `StructureOptions`; matrices: from `block_matrices`; network: that holds
    them, for the names that EMA weights go by.
    """

    def __init__(
        self,
        *,
        similarity: Literal["moments", "updates"],
        seed: int,
        matrices: Mapping[str, list[Tensor]],
        network: nn.Module,
    ) -> None:
        self.similarity = similarity
        self.seed = seed
        names: dict[Tensor, str] = {p: name for name, p in network.named_parameters()}
        self.names = {kind: [names[p] for p in matrices[kind]] for kind in TYPES}
        # The sketch of a matrix smaller than this is exact.
        self.width = min(WIDTHS[similarity], matrices["q"][0].numel())
        self.sketches: dict[str, Sketch] = {}
        self.previous_MLp: Array | None = None  # sketches of the weights at the last probe
        self.recent: list[Array] = []  # similarities of the last KEPT probes
        self.S_LL: Array | None = None  # their mean
        self.grouping: Grouping | None = None
        self.ari = math.nan  # with the partition of the last probe
        self.change = math.nan  # of S since the last probe
        self.measurements = 0

    def measure(self, ema_weights: Mapping[str, Tensor]) -> None:
        """Take in the EMA weights of a probe; the first one has nothing to compare with."""
        current_MLp = np.stack([self._sketched(kind, ema_weights) for kind in TYPES])
        previous_MLp = self.previous_MLp
        self.previous_MLp = current_MLp
        if previous_MLp is None:
            return
        self.measurements += 1
        similarity_LL = grouping.similarity(current_MLp - previous_MLp)
        self.recent = [*self.recent, similarity_LL][-KEPT:]
        last_LL = self.S_LL
        last = self.grouping
        self.S_LL = np.mean(self.recent, axis=0)
        self.grouping = grouping.group(self.S_LL, seed=seed_of(self.seed, 1, self.measurements))
        if last is not None and last_LL is not None:
            self.ari = grouping.adjusted_rand(self.grouping.labels, last.labels)
            self.change = grouping.relative_change(self.S_LL, last_LL)

    def _sketched(self, kind: str, ema_weights: Mapping[str, Tensor]) -> Array:
        """Sketches [L, p] of one type's matrices or of their moments, in double precision on the
        CPU.
        """
        weights = [ema_weights[name] for name in self.names[kind]]
        if self.similarity == "moments":
            weights = [grouping.traceless_moment(w if kind in READING else w.T) for w in weights]
        if kind not in self.sketches:
            seed = seed_of(self.seed, 0, TYPES.index(kind))
            entries = weights[0].numel()
            self.sketches[kind] = Sketch.make(entries, self.width, seed, weights[0].device)
        sketch = self.sketches[kind]
        return torch.stack([sketch(w) for w in weights]).cpu().double().numpy()

    def scores(self) -> dict[str, Any]:
        """The newest scores by name; None or NaN where there are none yet."""
        newest = self.grouping
        return {
            "K": None if newest is None else newest.K,
            "ari": self.ari,
            "change": self.change,
            "z": None if newest is None else newest.z,
            "p": None if newest is None else newest.p,
            "contrast": None if newest is None else newest.contrast,
        }

    def row(self) -> dict[str, Any]:
        """Scores, S and labels for JSON; None where not known yet."""
        row: dict[str, Any] = {}
        for name, value in self.scores().items():
            unknown = isinstance(value, float) and math.isnan(value)
            row[name] = None if unknown else value
        S_LL = self.S_LL
        row["S"] = None
        if S_LL is not None:
            row["S"] = [[round(value, 4) for value in line] for line in S_LL.tolist()]
        row["labels"] = None if self.grouping is None else list(self.grouping.labels)
        return row

    def state_dict(self) -> dict[str, Any]:
        newest = self.grouping
        scores = None
        if newest is not None:
            scores = [list(newest.labels), newest.contrast, newest.z, newest.p]
        return {
            "previous": _packed(self.previous_MLp),
            "recent": [_packed(S_LL) for S_LL in self.recent],
            "S": _packed(self.S_LL),
            "grouping": scores,
            "ari": self.ari,
            "change": self.change,
            "measurements": self.measurements,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises StageError for the state of a network of another depth."""
        S = state["S"]
        depth = len(self.names["q"])
        if S is not None and len(S) != depth:
            raise StageError(
                f"the checkpoint's groups are of {len(S)} blocks, the model has {depth}"
            )
        self.previous_MLp = _unpacked(state["previous"])
        self.recent = [S_LL.numpy().copy() for S_LL in state["recent"]]
        self.S_LL = _unpacked(S)
        self.grouping = None
        if state["grouping"] is not None:
            labels, contrast, z, p = state["grouping"]
            self.grouping = Grouping(tuple(labels), contrast, z, p)
        self.ari = state["ari"]
        self.change = state["change"]
        self.measurements = state["measurements"]


def _packed(array: Array | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)


def _unpacked(tensor: Tensor | None) -> Array | None:
    return None if tensor is None else tensor.numpy().copy()
