"""`[stage.guidance]`: aligns hidden states with a target of the clean crop, while that helps.

    L += lambda mean_k sum_B h(t) l_k / sum_B h(t)

over all samples B of a step. l_k: 1 - cos(g_k(h_k), y) with a teacher's features y, or the smooth
L1 distance of g_k(h_k) and the codec's frames x0, every `stride`-th frame at each step; h_k: the
output of block k; g_k: an MLP; h(t): 1 inside `window`, else 0, or a smooth gate. REPA (arXiv
2410.06940) is the constant schedule, HASTE (arXiv 2505.16792) the one-shot ends, SRA 2 (arXiv
2601.17830) the codec's frames; the schedules by r and by the gain are this project's own. When
guidance ends, projectors, their optimiser state and the features are released.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from stagecli.errors import Problem, StageError
from stagecli.flow.objective import Result
from stagecli.schema import Recipe
from stagecli.stage.base import Event, FeatureSettings, Mechanism, Plan, Signals, channels_of
from stagecli.stage.guidance_ablation import GateAblation
from stagecli.stage.guidance_conflict import BOUND, MEAN, ConflictMeter
from stagecli.stage.guidance_figures import BlockMeans, PlannedStep
from stagecli.stage.guidance_gate import Gate
from stagecli.stage.guidance_heads import CodecHead, FrameChoice, Head, TeacherHead
from stagecli.stage.guidance_options import (
    GuidanceOptions,
    TargetKind,
    check_guidance,
    guided_blocks,
)
from stagecli.stage.guidance_projection import ProjectorShape, build_projections
from stagecli.stage.guidance_schedule import GuidanceSchedule, StepEvidence


class GuidanceMechanism(Mechanism):
    """Connects the schedule, the heads and the measurements of conflict and ablation."""

    name = "guidance"
    Options = GuidanceOptions

    def __init__(self, options: GuidanceOptions, recipe: Recipe) -> None:
        self.options = options
        self.recipe = recipe
        self.features: FeatureSettings | None = None
        if "teacher" in options.targets():
            self.features = FeatureSettings(options.teacher, options.layer)
        self.layers = guided_blocks(options, recipe.model.resolved()[1])
        steps = recipe.train.steps
        self.schedule = GuidanceSchedule(
            kind=options.schedule,
            weight=options.weight,
            fade=options.fade,
            end=options.end,
            threshold=options.threshold,
            steps=steps,
        )
        self.gate = Gate(options.gate, options.window)
        self.conflict = ConflictMeter(options.conflict_every or max(1, steps // 50))
        self.ablation = GateAblation(options.ablation)
        self.heads: dict[TargetKind, Head] = {}  # empty until the blocks are chosen
        self.ended = False
        self.planned = PlannedStep()
        self.means = BlockMeans()
        self.pending: list[Event] = []  # events to report after this step

    @classmethod
    def build(cls, options: GuidanceOptions, recipe: Recipe) -> Self:
        """Raises StageError for a teacher that is also the judge, or a block that does not
        exist.
        """
        check_guidance(options, recipe)
        return cls(options, recipe)

    def attach(self, network: nn.Module, feature_width: int | None) -> None:
        assert feature_width is not None or self.features is None, "guidance without features"
        self.network = network
        self.feature_width = feature_width
        if self.layers:
            self.heads = self._build_heads()

    @property
    def device(self) -> torch.device:
        """Of the network."""
        return next(self.network.parameters()).device

    def _build_heads(self) -> dict[TargetKind, Head]:
        options = self.options
        targets = options.targets()
        projections = build_projections(
            [self._shape(target) for target in targets],
            seed=self.recipe.train.seed,
            device=self.device,
            precision=self.recipe.train.precision,
        )
        heads: dict[TargetKind, Head] = {}
        for target, projection in zip(targets, projections, strict=True):
            if target == "teacher":
                heads[target] = TeacherHead(projection, by_clip=options.normalise == "clip")
            else:
                heads[target] = CodecHead(projection, patch=self.recipe.model.patch)
        return heads

    def _shape(self, target: TargetKind) -> ProjectorShape:
        """Sizes of the projectors of one target."""
        if target == "teacher":
            assert self.feature_width is not None
            output = self.feature_width
        else:
            output = self.recipe.model.patch * channels_of(self.network)
        return ProjectorShape(
            blocks=len(self.layers),
            layers=self.options.depth_of_head(target),
            width=self.recipe.model.resolved()[0],
            hidden=self.options.hidden,
            output=output,
        )

    # -- the step --------------------------------------------------------------------------------

    def strength(self, step: int, r: float) -> float:
        """lambda at a step: 0 before the ablation chooses and after the end."""
        options = self.options
        waiting = options.ablation and step < options.ablation_start * self.recipe.train.steps
        if self.ended or waiting:
            return 0.0
        return self.schedule.strength(step, r)

    def plan(self, step: int, plan: Plan) -> Plan:
        self.planned = PlannedStep(step, self.strength(step, plan.r), plan.r)
        if self.planned.weight == 0:
            return plan
        self.conflict.plan(step)
        hidden = tuple(sorted({*plan.hidden, *self.layers}))
        inspected = plan.inspected or self.conflict.due or not self.heads
        active = (*plan.active, self.name)
        return replace(plan, hidden=hidden, active=active, inspected=inspected)

    def begin_step(self, t_B: Tensor) -> None:
        self.planned.gate_mean = self.gate.mean(t_B)

    def loss(self, result: Result) -> Tensor | None:
        if not self.heads:
            # The blocks are chosen after this step; its forward pass kept no hidden states.
            self.ablation.measure(self.network, result)
            return None
        h_B = self.gate(result.t_B)
        hidden = [result.hidden[k] for k in self.layers]
        refuse_out_of_reach(self.layers, hidden)

        # Neighbouring frames carry much the same information, so a stride loses little. Gradients
        # are compared over all frames, or most of guidance's would be 0.
        stride = self.options.stride
        if self.conflict.due:
            stride = 1
            deepest = self.layers.index(max(self.layers))
            hidden[deepest] = self.conflict.watch(hidden[deepest], result.t_B, h_B)
        frames = FrameChoice(self.planned.number, stride)

        # The heads share the weight. The mean of h is that of the whole step: the mean over its
        # micro-batches and processes is then sum_B h l / sum_B h.
        hidden_KBPW = torch.stack(hidden).float()
        batch = dict(result.condition)
        if self.options.shuffled:
            targets = {"features", "x0", "weight"} & batch.keys()
            batch |= {name: batch[name].roll(1, 0) for name in targets}
        terms = []
        figures_KB = {}
        for head in self.heads.values():
            loss_KB = head.losses(hidden_KBPW, batch, frames)
            terms.append((h_B * loss_KB).mean())
            figures_KB[head.figure] = head.reported(loss_KB.detach())
        self.planned.add(figures_KB, h_B)
        share = self.planned.weight / (len(terms) * self.planned.gate_mean)
        return share * torch.stack(terms).sum()

    def step(
        self,
        lr: float,
        all_reduce_mean: Callable[[Tensor], Tensor],
        scale: float,
        skip: Tensor | None = None,
    ) -> None:
        self.means.add(self.planned)
        choice = self.ablation.choose(all_reduce_mean)
        if choice is not None:
            self.layers = choice.blocks
            self.heads = self._build_heads()
            chosen = ", ".join(map(str, choice.blocks))
            reason = f"gate ablation chooses the blocks {chosen}"
            evidence = {f"change without block {k}": v for k, v in choice.changes.items()}
            self.pending.append(Event(self.name, "choosing", "guiding", reason, evidence))
        self.conflict.gather(all_reduce_mean)
        for head in self.heads.values():
            head.projection.step(lr, all_reduce_mean, scale, skip)

    def observe(self, signals: Signals) -> list[Event]:
        events = self.pending
        self.pending = []
        if self.ended:
            return events
        reason = self.schedule.reason_to_end(
            StepEvidence(
                step=signals.step,
                r=self.planned.r,
                probed=signals.probe is not None,
                gradient_cosine=self.conflict.newest(MEAN),
                gain_bound=self.conflict.newest(BOUND),
            )
        )
        self.conflict.fresh = False
        if reason is None:
            return events
        evidence = {"lambda": self.planned.weight, "r": self.planned.r, **self.conflict.values}
        self._release()
        return [*events, Event(self.name, "guiding", "ended", reason, evidence)]

    def _release(self) -> None:
        """End guidance: nothing of it stays in memory or in the loader."""
        self.ended = True
        self.features = None
        self.heads = {}
        self.planned.weight = 0.0
        self.conflict.clear()
        self.means = BlockMeans()

    # -- state and rows --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "ended": self.ended,
            "layers": list(self.layers),
            "heads": {name: head.projection.state_dict() for name, head in self.heads.items()},
            "schedule": self.schedule.state_dict(),
            "conflict": self.conflict.state_dict(),
            "r": self.planned.r,
            "means": self.means.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.layers = tuple(state["layers"])
        self.schedule.load_state_dict(state["schedule"])
        self.planned.r = state["r"]
        if state["ended"]:
            self._release()
            return
        if state["heads"]:
            self.heads = self._build_heads()
            for name, head in self.heads.items():
                head.projection.load_state_dict(state["heads"][name])
        self.conflict.load_state_dict(state["conflict"])
        self.means.load_state_dict(state["means"], self.device)

    def metrics(self) -> dict[str, float]:
        """lambda, the mean figures of each guided block since the last row (the cosine with the
        teacher, the error of codec frames), and the newest comparison of the gradients.
        """
        values = {"lambda": self.planned.weight}
        for figure, means in self.means.means().items():
            values |= {
                f"{figure}_block{k}": mean for k, mean in zip(self.layers, means, strict=True)
            }
        self.means = BlockMeans()
        return values | self.conflict.values


def refuse_out_of_reach(blocks: Sequence[int], hidden: Sequence[Tensor]) -> None:
    """Raise StageError for hidden states of blocks that depend on nothing that is trained."""
    numbers = [
        str(block) for block, state in zip(blocks, hidden, strict=True) if not state.requires_grad
    ]
    if numbers:
        raise StageError(
            f"[stage.guidance] cannot change block {', '.join(numbers)}",
            problems=[Problem("train.freeze", "keeps every parameter up to its output")],
            hint="freeze less, or guide a later block with stage.guidance.layers",
        )
