"""`[stage.guidance]`: aligns hidden states with a teacher's features of the clean target, while
that helps.

    L += lambda mean_k mean_B h(t) [1 - cos(g_k(h_k), y)]

y: the teacher's features, centred, every `stride`-th frame at each step; h_k: the output of block
k, interpolated to those frames; g_k: a 2-layer MLP; h(t) = 1 inside `window`, else 0. REPA (arXiv
2410.06940) is the constant schedule, HASTE (arXiv 2505.16792) the one-shot ends; the schedule by r
is this project's own. When guidance ends, projectors, their optimiser state and the features are
released.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self

from pydantic import model_validator
from torch import Tensor, nn

from stagecli.bounds import Length, Range
from stagecli.errors import Problem, StageError
from stagecli.flow.objective import Result
from stagecli.schema import Depth, Fraction, Natural, Positive, PositiveFraction, Recipe, Two, Width
from stagecli.ssl import same_checkpoint
from stagecli.stage.base import Event, FeatureSettings, Mechanism, Plan, Signals
from stagecli.stage.guidance_ablation import GateAblation
from stagecli.stage.guidance_conflict import ConflictMeter
from stagecli.stage.guidance_projection import Projection, build_projection
from stagecli.stage.guidance_schedule import GuidanceSchedule, ScheduleKind
from stagecli.stage.options import Layer, MechanismOptions, RegimeNeed, Role


class GuidanceOptions(MechanismOptions):
    paths: ClassVar[tuple[str, ...]] = ("teacher",)

    teacher: str = "bundled:teacher"
    """SSL encoder that provides the features, as kind:model."""
    layer: Layer = -1
    """Layer of the teacher: a number (negative: from the end), a list to average, or "mean"."""
    schedule: ScheduleKind = "regime"
    """By r (`regime`), never less (`constant`, REPA), by the step, or until a conflict (HASTE)."""
    weight: Annotated[float, Range(0, 1000, open_low=True)] = 0.5
    """lambda at the start."""
    end: PositiveFraction = 0.7
    """Where lambda reaches 0: r (regime), or the share of the budget (schedules by the step)."""
    layers: Annotated[tuple[Depth, ...], Length(0, 1000)] = ()
    """Blocks to guide, from 1; default: blocks 1 to 3 and the one at a third of the depth."""
    ablation: Annotated[int, Range(0, 1000)] = 0
    """Guide this many blocks, chosen by gate ablation (AG-REPA); 0: `layers`."""
    ablation_start: Fraction = 0.02
    """Share of the budget at which the ablation chooses; nothing is guided before."""
    window: Annotated[tuple[Fraction, Fraction], Two] = (0.15, 0.9)
    """Range of t in which samples are guided."""
    hidden: Width = 512
    """Width of the projectors' hidden layer."""
    stride: Positive = 4
    """Compare every n-th frame of the teacher, shifted by one at each step; 1: all frames."""
    conflict_every: Natural = 0
    """Steps between measurements of the gradient conflict; 0: a 50th of the budget."""
    threshold: Annotated[float, Range(-1, 1)] = -0.05
    """Mean cosine of the two gradients below which guidance ends (conflict)."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.layers and self.ablation:
            raise ValueError("layers and ablation are two ways to choose the blocks: give one")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError("layers names a block twice")
        if self.window[0] >= self.window[1]:
            raise ValueError("window must rise")
        return self

    def encoders(self) -> Mapping[str, Role]:
        return {"teacher": "teacher"}

    def regime_need(self) -> RegimeNeed | None:
        if self.schedule != "regime":
            return None
        reason = 'schedule = "regime" follows r'
        return RegimeNeed(reason, "schedule", "choose another stage.guidance.schedule")


@dataclass
class PlannedStep:
    """The step being trained.

    number: steps done before it; weight: lambda; r: regime variable; cosine_K, guided: sums of the
    cosines by block over the guided samples of its micro-batches so far, and how many those are.
    """

    number: int = 0
    weight: float = 0.0
    r: float = 0.0
    cosine_K: Tensor | None = None
    guided: Tensor | None = None

    def add(self, cosine_KB: Tensor, inside_B: Tensor) -> None:
        """Take in one micro-batch. inside_B: 1 for guided samples, else 0."""
        cosine_K = (inside_B * cosine_KB).sum(1)
        guided = inside_B.sum()
        self.cosine_K = cosine_K if self.cosine_K is None else self.cosine_K + cosine_K
        self.guided = guided if self.guided is None else self.guided + guided


@dataclass
class CosineSums:
    """Mean cosines of steps by guided block, summed since the last row of metrics.

    sums_K stays on the device and is converted only when a row is written, to avoid a sync per
    step.
    """

    sums_K: Tensor | None = None
    count: int = 0

    def add(self, planned: PlannedStep) -> None:
        """Take in a step that is done, if it was guided."""
        if planned.cosine_K is None or planned.guided is None:
            return
        cosine_K = planned.cosine_K / planned.guided.clamp_min(1)
        self.sums_K = cosine_K if self.sums_K is None else self.sums_K + cosine_K
        self.count += 1

    def means(self) -> list[float]:
        """Mean by block; empty if nothing was added."""
        if self.sums_K is None:
            return []
        return [total / self.count for total in self.sums_K.tolist()]


class GuidanceMechanism(Mechanism):
    """Connects the schedule, the projectors and the measurements of conflict and ablation."""

    name = "guidance"
    Options = GuidanceOptions

    def __init__(self, options: GuidanceOptions, recipe: Recipe) -> None:
        self.options = options
        self.recipe = recipe
        self.features: FeatureSettings | None = FeatureSettings(options.teacher, options.layer)
        self.layers = _guided_blocks(options, recipe.model.resolved()[1])
        steps = recipe.train.steps
        self.schedule = GuidanceSchedule(
            kind=options.schedule,
            weight=options.weight,
            end=options.end,
            threshold=options.threshold,
            steps=steps,
        )
        self.conflict = ConflictMeter(options.conflict_every or max(1, steps // 50))
        self.ablation = GateAblation(options.ablation)
        self.projection: Projection | None = None
        self.planned = PlannedStep()
        self.cosines = CosineSums()
        self.pending: list[Event] = []  # events to report after this step

    @classmethod
    def build(cls, options: GuidanceOptions, recipe: Recipe) -> Self:
        """Raises StageError for a teacher that is also the judge, or a block that does not
        exist.
        """
        if same_checkpoint(options.teacher, recipe.evaluate.judge):
            raise StageError(
                f"teacher {options.teacher} is also the judge, and would score what it taught",
                problems=[Problem("stage.guidance.teacher", "is evaluate.judge")],
                hint="choose another encoder for one of the two",
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
        return cls(options, recipe)

    def attach(self, network: nn.Module, feature_width: int | None) -> None:
        assert feature_width is not None, "guidance without features"
        self.network = network
        self.feature_width = feature_width
        if self.layers:
            self.projection = self._build_projection()

    def _build_projection(self) -> Projection:
        return build_projection(
            blocks=len(self.layers),
            width=self.recipe.model.resolved()[0],
            hidden=self.options.hidden,
            features=self.feature_width,
            seed=self.recipe.train.seed,
            device=next(self.network.parameters()).device,
            precision=self.recipe.train.precision,
        )

    # -- the step --------------------------------------------------------------------------------

    def strength(self, step: int, r: float) -> float:
        """lambda at a step: 0 before the ablation chooses and after the end."""
        options = self.options
        waiting = options.ablation and step < options.ablation_start * self.recipe.train.steps
        if self.features is None or waiting:
            return 0.0
        return self.schedule.strength(step, r)

    def plan(self, step: int, plan: Plan) -> Plan:
        self.planned = PlannedStep(step, self.strength(step, plan.r), plan.r)
        if self.planned.weight == 0:
            return plan
        self.conflict.plan(step)
        hidden = tuple(sorted({*plan.hidden, *self.layers}))
        return replace(plan, hidden=hidden, active=(*plan.active, self.name))

    def loss(self, result: Result) -> Tensor | None:
        if self.projection is None:
            # The blocks are chosen after this step; its forward pass kept no hidden states.
            self.ablation.measure(self.network, result)
            return None
        low, high = self.options.window
        inside_B = ((result.t_B >= low) & (result.t_B <= high)).float()
        hidden = [result.hidden[k] for k in self.layers]
        target_BLD = result.condition["features"].float()

        # Neighbouring frames carry much the same information, so a stride loses little. Gradients
        # are compared over all frames, or most of guidance's would be 0.
        stride = min(self.options.stride, target_BLD.shape[1])
        if self.conflict.due:
            stride = 1
            deepest = self.layers.index(max(self.layers))
            hidden[deepest] = self.conflict.watch(hidden[deepest], result.t_B)
        frames = slice(self.planned.number % stride, None, stride)

        cosine_KB = self.projection.cosines(hidden, target_BLD, frames)
        self.planned.add(cosine_KB.detach(), inside_B)
        return self.planned.weight * (inside_B * (1 - cosine_KB)).mean()

    def step(self, lr: float, all_reduce_mean: Callable[[Tensor], Tensor], scale: float) -> None:
        self.cosines.add(self.planned)
        choice = self.ablation.choose(all_reduce_mean)
        if choice is not None:
            self.layers = choice.blocks
            self.projection = self._build_projection()
            chosen = ", ".join(map(str, choice.blocks))
            reason = f"gate ablation chooses the blocks {chosen}"
            evidence = {f"change without block {k}": v for k, v in choice.changes.items()}
            self.pending.append(Event(self.name, "choosing", "guiding", reason, evidence))
        self.conflict.gather(all_reduce_mean)
        if self.projection is not None:
            self.projection.step(lr, all_reduce_mean, scale)

    def observe(self, signals: Signals) -> list[Event]:
        events = self.pending
        self.pending = []
        if self.features is None:
            return events
        reason = self.schedule.reason_to_end(
            step=signals.step,
            r=self.planned.r,
            probed=signals.probe is not None,
            gradient_cosine=self.conflict.fresh_cosine,
        )
        self.conflict.fresh = False
        if reason is None:
            return events
        evidence = {"lambda": self.planned.weight, "r": self.planned.r, **self.conflict.values}
        self._release()
        return [*events, Event(self.name, "guiding", "ended", reason, evidence)]

    def _release(self) -> None:
        """End guidance: nothing of it stays in memory or in the loader."""
        self.features = None
        self.projection = None
        self.planned.weight = 0.0
        self.conflict.clear()
        self.cosines = CosineSums()

    # -- state and rows --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        sums_K = self.cosines.sums_K
        return {
            "ended": self.features is None,
            "layers": list(self.layers),
            "projection": None if self.projection is None else self.projection.state_dict(),
            "schedule": self.schedule.state_dict(),
            "conflict": self.conflict.state_dict(),
            "r": self.planned.r,
            "cosine_sums": None if sums_K is None else sums_K.cpu(),
            "cosine_count": self.cosines.count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.layers = tuple(state["layers"])
        self.schedule.load_state_dict(state["schedule"])
        self.planned.r = state["r"]
        if state["ended"]:
            self._release()
            return
        if state["projection"] is not None:
            self.projection = self._build_projection()
            self.projection.load_state_dict(state["projection"])
        self.conflict.load_state_dict(state["conflict"])
        sums_K = state["cosine_sums"]
        if sums_K is not None:
            sums_K = sums_K.clone().to(next(self.network.parameters()).device)
        self.cosines = CosineSums(sums_K, state["cosine_count"])

    def metrics(self) -> dict[str, float]:
        """lambda, the mean cosine of each guided block since the last row, and the newest
        conflict.
        """
        values = {"lambda": self.planned.weight}
        means = self.cosines.means()
        self.cosines = CosineSums()
        if means:
            named = zip(self.layers, means, strict=True)
            values |= {f"cosine_block{k}": mean for k, mean in named}
        return values | self.conflict.values


def _guided_blocks(options: GuidanceOptions, depth: int) -> tuple[int, ...]:
    """Blocks to guide, from 1; empty where the ablation chooses them later."""
    if options.ablation:
        return ()
    default = {k for k in (1, 2, 3, round(depth / 3)) if 1 <= k <= depth}
    return options.layers or tuple(sorted(default))
