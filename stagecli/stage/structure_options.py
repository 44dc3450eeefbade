"""Options of `[stage.structure]`, and the recipes in which it can act."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from stagecli.errors import Problem, StageError
from stagecli.schema import Fraction, PositiveFraction, PositiveReal, Recipe, Seed
from stagecli.stage import grouping
from stagecli.stage.options import MechanismOptions, RegimeNeed

LEAST_DEPTH = 4  # two groups of two
SURE = 12  # depth from which every partition can reach z = 4


class StructureOptions(MechanismOptions):
    groups: Literal["measured", "shuffled", "random", "thirds"] = "measured"
    """`measured`; controls: those `shuffled` over blocks, a `random` partition, or `thirds`."""
    when: Literal["converged", "always", "step"] = "converged"
    """Begin when groups have converged, as soon as there are groups (`always`), or at a `step`."""
    at: Fraction = 0.5
    """Share of the budget at which the term begins (when = "step")."""
    similarity: Literal["moments", "updates"] = "moments"
    """Compare changes of W^T W or W W^T, or of W itself (blind to permuted units)."""
    z: PositiveReal = 4.0
    """Least distance from the Toeplitz null, in its standard deviations (when = "converged")."""
    change: PositiveReal = 0.15
    """Largest relative change of the similarities between probes (when = "converged")."""
    r: Fraction = 0.5
    """Least regime variable (when = "converged")."""
    share: PositiveReal = 0.03
    """Norm of the term's gradient (mean of 12 steps) over the whole gradient's, after the ramp."""
    cap: PositiveFraction = 0.1
    """Upper bound on that ratio."""
    ramp: Fraction = 0.05
    """Share of the budget over which the term comes in, by a half cosine."""
    seed: Seed = 0
    """Seed for the sketches, the null model and the control groupings."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.share > self.cap:
            raise ValueError("share must not exceed cap")
        if self.when != "step" and "at" in self.model_fields_set and self.at != 0.5:
            raise ValueError('at requires when = "step"')
        return self

    def regime_need(self) -> RegimeNeed:
        return RegimeNeed("its probes provide the EMA weights, and the term waits for r")


def check_structure(options: StructureOptions, recipe: Recipe) -> None:
    """Raises StageError without validation, or for a depth at which the term could never act."""
    # The term ends by the validation loss.
    if not recipe.train.validate_every:
        raise StageError(
            "[stage.structure] watches the validation loss, but the recipe never measures it",
            problems=[Problem("train.validate_every", "0: never")],
            hint="set train.validate_every, for example to a 20th of train.steps",
        )

    # Groups of two blocks, in thirds or in halves.
    depth = recipe.model.resolved()[1]
    least = 6 if options.groups == "thirds" else LEAST_DEPTH
    if depth < least:
        raise StageError(
            f"groups of at least {grouping.LEAST} blocks need {least} blocks, "
            f"the model has {depth}",
            problems=[Problem("stage.structure.groups", options.groups)],
            hint=f"set model.depth to {least} or more, or leave [stage.structure] out",
        )

    # A depth at which some partition can pass the test.
    if options.when != "converged" or depth >= SURE:
        return
    count, every, most = grouping.reachable(depth, options.z)
    if not count:
        raise StageError(
            f"{depth} blocks are too few to tell groups from chance: none of their {every} "
            f"partitions scores above z = {most:.1f} against the Toeplitz null, and "
            f"stage.structure.z is {options.z:g}, so the term would never act",
            problems=[
                Problem(
                    "model.depth",
                    f"{depth}; from 8 on some partitions reach z = 4, from 12 on all of them",
                )
            ],
            hint='use a deeper model, or when = "step" or "always", which do not test the groups',
        )
