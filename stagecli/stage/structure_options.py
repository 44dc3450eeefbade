"""Options of `[stage.structure]`, and the recipes in which it can act."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import model_validator

from stagecli.bounds import Range
from stagecli.errors import Problem, StageError
from stagecli.schema import Recipe
from stagecli.schema.section import Fraction, Seed
from stagecli.stage import grouping
from stagecli.stage.options import MechanismOptions, RegimeNeed

LEAST_DEPTH = 4  # two groups of two
WEIGHTS = {"align": 0.25, "diversify": 0.05, "none": 0.0}


class StructureOptions(MechanismOptions):
    removed: ClassVar[Mapping[str, str]] = {
        "z": "groups have converged when they stay the same; z is reported only",
        "change": "groups have converged when they stay the same; the change is reported only",
        "share": "the term on weights is gone; terms on block outputs have a `weight`",
        "cap": "the term on weights is gone; terms on block outputs have a `weight`",
    }

    action: Literal["none", "align", "diversify"] = "none"
    """Only measure; draw a group's output to the next one's; or make updates in a group differ."""
    weight: Annotated[float, Range(0, 1000)] = 0.0
    """lambda of the action after the ramp; 0: 0.25 to align, 0.05 to diversify."""
    groups: Literal["measured", "shuffled", "random", "thirds"] = "measured"
    """`measured`; controls: those `shuffled` over blocks, a `random` partition, or `thirds`."""
    when: Literal["converged", "always", "step"] = "converged"
    """Begin when groups have converged, as soon as there are groups (`always`), or at a `step`."""
    at: Fraction = 0.5
    """Share of the budget at which the action begins (when = "step")."""
    similarity: Literal["moments", "updates"] = "moments"
    """Compare changes of W^T W or W W^T, or of W itself (blind to permuted units)."""
    r: Fraction = 0.5
    """Least regime variable (when = "converged")."""
    ramp: Fraction = 0.05
    """Share of the budget over which the action comes in, by a half cosine."""
    seed: Seed = 0
    """Seed for the sketches, the null model and the control groupings."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.when != "step" and "at" in self.model_fields_set and self.at != 0.5:
            raise ValueError('at requires when = "step"')
        return self

    def regime_need(self) -> RegimeNeed:
        return RegimeNeed("its probes provide the EMA weights, and the action waits for r")


def check_structure(options: StructureOptions, recipe: Recipe) -> None:
    """Raises StageError for an action without validation, or for too few blocks."""
    # The action ends by the validation loss.
    if options.action != "none" and not recipe.train.validate_every:
        raise StageError(
            f'[stage.structure] with action = "{options.action}" watches the validation loss, '
            "but the recipe never measures it",
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
