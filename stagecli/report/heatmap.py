"""A similarity matrix of blocks with the borders of their groups: what is drawn of it."""

from __future__ import annotations

from dataclasses import dataclass

from stagecli.stage.probe_columns import GroupedMatrix

NUMBERED_IN_FULL = 12  # blocks up to which every one is numbered
NUMBERS = 9  # about so many are numbered beyond that


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """matrix: [L][L]; low, high: the ends of the colour scale; boundaries: after which blocks a
    group ends; names: of the groups in order of depth, empty if no groups are known."""

    title: str
    matrix: list[list[float]]
    low: float
    high: float
    boundaries: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, matrix: GroupedMatrix, suffix: str = "") -> HeatMap:
        """The drawing of a mechanism's matrix; suffix: of the title."""
        low, high = matrix.bounds
        return cls(
            title=f"{matrix.title}, step {matrix.step:,}{suffix}",
            matrix=matrix.values,
            low=low,
            high=high,
            boundaries=matrix.boundaries,
            names=matrix.group_names,
        )

    @property
    def groups(self) -> list[tuple[int, int, str]]:
        """Groups as (first block from 0, one past the last, name)."""
        edges = (0, *self.boundaries, len(self.matrix))
        return list(zip(edges, edges[1:], self.names, strict=False))

    @property
    def numbered(self) -> range:
        """Blocks, from 0, whose number is written."""
        depth = len(self.matrix)
        return range(0, depth, 1 if depth <= NUMBERED_IN_FULL else -(-depth // NUMBERS))
