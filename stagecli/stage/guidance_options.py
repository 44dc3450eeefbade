"""Options of `[stage.guidance]`, and the recipes in which it can act."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

from stagecli.bounds import Length, Range
from stagecli.errors import Problem, StageError
from stagecli.schema import Depth, Fraction, Natural, Positive, PositiveFraction, Recipe, Two, Width
from stagecli.ssl import same_checkpoint
from stagecli.stage.guidance_schedule import BY_STEP, ScheduleKind
from stagecli.stage.options import Layer, MechanismOptions, RegimeNeed, Role

TargetKind = Literal["teacher", "codec"]
HEAD_LAYERS: Mapping[TargetKind, int] = {"teacher": 2, "codec": 4}  # by default
END_BY_STEP = 0.7  # default of `end` for schedules by the step
WINDOW = (0.15, 0.9)


class GuidanceOptions(MechanismOptions):
    paths: ClassVar[tuple[str, ...]] = ("teacher",)
    earlier: ClassVar[Mapping[str, Any]] = {"fade": 0.0}

    target: Literal["teacher", "codec", "both"] = "both"
    """Predict the teacher's features, the codec's clean frames (no teacher), or half and half."""
    teacher: str = "bundled:teacher"
    """SSL encoder that provides the features, as kind:model (target = "teacher" or "both")."""
    layer: Layer = -1
    """Layer of the teacher: a number (negative: from the end), a list to average, or "mean"."""
    normalise: Literal["set", "clip"] = "set"
    """Centre features on the training set, or standardise each channel over the crop's frames."""
    schedule: ScheduleKind = "regime"
    """By r, `constant` (REPA), by the step, until a `conflict` (HASTE), or while it is `paying`."""
    weight: Annotated[float, Range(0, 1000, open_low=True)] = 1.0
    """lambda at the start."""
    fade: Fraction = 0.9
    """r at which lambda begins to fall (regime); before, it is the weight. 0: falls from r = 0."""
    end: PositiveFraction = 0.98
    """r at which lambda reaches 0 (regime), or share of the budget (by the step; there 0.7)."""
    layers: Annotated[tuple[Depth, ...], Length(0, 1000)] = ()
    """Blocks to guide, from 1; default: the one at a third of the depth."""
    ablation: Annotated[int, Range(0, 1000)] = 0
    """Guide this many blocks, chosen by gate ablation (AG-REPA); 0: `layers`."""
    ablation_start: Fraction = 0.02
    """Share of the budget at which the ablation chooses; nothing is guided before."""
    gate: Literal["window", "smooth"] = "window"
    """h(t), the weight of a sample: 1 inside `window`, or sigmoid(20 (0.75 - t))."""
    window: Annotated[tuple[Fraction, Fraction], Two] = WINDOW
    """Range of t in which samples are guided (gate = "window")."""
    hidden: Width = 512
    """Width of the projectors' hidden layers."""
    head_layers: Literal[0, 2, 3, 4] = 0
    """Linear layers of the projectors; 0: 2 for the teacher's features, 4 for codec frames."""
    stride: Positive = 4
    """Compare every n-th frame of the target, shifted by one at each step; 1: all frames."""
    conflict_every: Natural = 0
    """Steps between measurements of the two gradients; 0: a 50th of the budget."""
    threshold: Annotated[float, Range(-1, 1)] = -0.05
    """Mean cosine of the two gradients below which guidance ends (conflict)."""

    shuffled: bool = False
    """Control: predict the target of the next clip of the batch, which says nothing about this."""

    @model_validator(mode="before")
    @classmethod
    def end_by_step(cls, values: Any) -> Any:
        """Schedules by the step have another default for their end."""
        if isinstance(values, Mapping) and values.get("schedule") in BY_STEP:
            return {"end": END_BY_STEP, **values}
        return values

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.layers and self.ablation:
            raise ValueError("layers and ablation are two ways to choose the blocks: give one")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError("layers names a block twice")
        if self.window[0] >= self.window[1]:
            raise ValueError("window must rise")
        if self.gate == "smooth" and self.window != WINDOW:
            raise ValueError('window requires gate = "window"')
        if self.schedule == "regime" and self.fade >= self.end:
            raise ValueError(
                f"fade ({self.fade:g}) must be below end ({self.end:g}): "
                "set both, or fade = 0 to fall from the start"
            )
        return self

    def targets(self) -> tuple[TargetKind, ...]:
        """What the heads predict; they share the weight equally."""
        return ("teacher", "codec") if self.target == "both" else (self.target,)

    def depth_of_head(self, target: TargetKind) -> int:
        """Linear layers of the projectors of one target."""
        return self.head_layers or HEAD_LAYERS[target]

    def encoders(self) -> Mapping[str, Role]:
        return {"teacher": "teacher"} if "teacher" in self.targets() else {}

    def regime_need(self) -> RegimeNeed | None:
        if self.schedule != "regime":
            return None
        reason = 'schedule = "regime" follows r'
        return RegimeNeed(reason, "schedule", "choose another stage.guidance.schedule")


def check_guidance(options: GuidanceOptions, recipe: Recipe) -> None:
    """Raises StageError for a teacher that is also the judge, or a block that does not exist."""
    if options.encoders() and same_checkpoint(options.teacher, recipe.evaluate.judge):
        raise StageError(
            f"teacher {options.teacher} is also the judge, and would score what it taught",
            problems=[Problem("stage.guidance.teacher", "is evaluate.judge")],
            hint="choose another encoder for one of the two",
        )
    if options.shuffled and recipe.train.batch_size < 2 * recipe.train.accumulate:
        raise StageError(
            "a batch of one clip has no other clip whose target could be predicted",
            problems=[Problem("stage.guidance.shuffled", "requires two clips per micro-batch")],
            hint="raise train.batch_size, or lower train.accumulate",
        )
    depth = recipe.model.resolved()[1]
    absent = [k for k in (*options.layers, options.ablation) if k > depth]
    if absent:
        key = "ablation" if options.ablation else "layers"
        raise StageError(
            f"the model has {depth} blocks",
            problems=[Problem(f"stage.guidance.{key}", f"there is no block {absent[0]}")],
            hint=f"choose from 1 to {depth}",
        )


def guided_blocks(options: GuidanceOptions, depth: int) -> tuple[int, ...]:
    """Blocks to guide, from 1; empty where the ablation chooses them later."""
    if options.ablation:
        return ()
    return options.layers or (max(1, round(depth / 3)),)
