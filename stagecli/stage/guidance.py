"""`[stage.guidance]`: hidden states are drawn to a teacher's features of the clean target, as long as that helps.

    L += lambda mean_k mean_B h(t) [1 - cos(g_k(h_k), y)]

y: the teacher's features, centred, a `stride`-th of their frames at each step; h_k: the output of block k, interpolated
to them; g_k: a 2-layer MLP; h(t) = 1 on `window`, else 0. REPA (arXiv 2410.06940) is
the constant schedule, HASTE (arXiv 2505.16792) the one-shot ends; the schedule by r is this project's own. At the end
projectors, their optimiser state and the features are gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from stagecli.errors import Problem, StageError
from stagecli.flow.objective import Result
from stagecli.schema import Fraction, Natural, Positive, PositiveReal, Recipe, Section
from stagecli.ssl import same_checkpoint
from stagecli.stage.base import Event, FeatureSettings, Mechanism, Plan, Signals

NEEDED = 3  # probes, or measurements of the conflict, in a row for the end
QUARTERS = 4  # of t, that the conflict is reported by
DECAYS = 5.0  # the exponential schedule ends where it has come down to exp(-5), 0.7 %
BETAS = (0.9, 0.99)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class GuidanceOptions(Section):
    teacher: str = "bundled:teacher"
    """SSL encoder whose features guide, as kind:model."""
    layer: int | tuple[int, ...] | Literal["mean"] = -1
    """Layer of the teacher: a number (negative from the end), a list to average, or "mean" of all."""
    schedule: Literal[
        "regime", "constant", "linear", "cosine", "exponential", "stop", "conflict"
    ] = "regime"
    """By r (`regime`), never less (`constant`, REPA), by the step, or until a step or a conflict (HASTE)."""
    weight: PositiveReal = 0.5
    """lambda at the start."""
    end: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Where lambda is 0: r (regime), or the share of the budget (linear, cosine, exponential, stop)."""
    layers: tuple[Positive, ...] = ()
    """Blocks that are guided, from 1; none given: blocks 1 to 3 and a third of the depth."""
    ablation: Natural = 0
    """Guide this many blocks, those that the velocity depends on most (gate ablation, AG-REPA); 0: `layers`."""
    ablation_start: Fraction = 0.02
    """Share of the budget at which the ablation chooses; until then nothing is guided."""
    window: tuple[Fraction, Fraction] = (0.15, 0.9)
    """Range of t in which samples are guided."""
    hidden: Positive = 512
    """Width of the projectors' hidden layer."""
    stride: Positive = 4
    """Compare every n-th of the teacher's frames, the next ones at the next step; 1: all of them."""
    conflict_every: Natural = 0
    """Steps between measurements of the gradient conflict; 0: a 50th of the budget."""
    threshold: float = -0.05
    """Mean cosine of the two gradients under which guidance ends (conflict)."""

    @model_validator(mode="after")
    def together(self) -> GuidanceOptions:
        if self.layers and self.ablation:
            raise ValueError("layers and ablation are two ways to choose the blocks: give one")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError("layers names a block twice")
        if self.window[0] >= self.window[1]:
            raise ValueError("window must rise")
        return self


class GuidanceMechanism(Mechanism):
    """Projectors, their optimiser and the schedule of lambda."""

    name = "guidance"
    Options = GuidanceOptions

    def __init__(self, options: GuidanceOptions, recipe: Recipe) -> None:
        """Raises StageError: a schedule by r without [stage.regime], or a block that the model does not have."""
        self.options = options
        self.steps = recipe.train.steps
        self.seed = recipe.train.seed
        self.width, self.depth, _ = recipe.model.resolved()
        if options.schedule == "regime" and "regime" not in recipe.stage:
            raise StageError(
                "guidance that follows r needs [stage.regime], which measures it",
                problems=[
                    Problem("stage.guidance.schedule", '"regime" without a table [stage.regime]')
                ],
                hint='add [stage.regime] (source = "linear" costs least), or choose another schedule',
            )
        if same_checkpoint(options.teacher, recipe.evaluate.judge):
            raise StageError(
                f"teacher {options.teacher} is also the judge, which would then score what it has taught",
                problems=[Problem("stage.guidance.teacher", "is evaluate.judge")],
                hint="choose another encoder for one of the two",
            )
        wrong = [k for k in (*options.layers, options.ablation) if k > self.depth]
        if wrong:
            raise StageError(
                f"the model has {self.depth} blocks",
                problems=[Problem("stage.guidance.layers", f"there is no block {wrong[0]}")],
                hint=f"choose from 1 to {self.depth}",
            )
        default = {k for k in (1, 2, 3, round(self.depth / 3)) if 1 <= k <= self.depth}
        self.layers = () if options.ablation else options.layers or tuple(sorted(default))
        self.features: FeatureSettings | None = FeatureSettings(options.teacher, options.layer)
        self.interval = options.conflict_every or max(1, self.steps // 50)
        self.precision = PRECISIONS[recipe.train.precision]
        self.projectors: Projectors | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        # of the step that is planned
        self.weight = 0.0
        self.r = 0.0
        self.at = 0
        self.row = 0
        self.count = 0
        self.cosine_K: Tensor | None = None  # sums since the last row of metrics
        self.conflict: dict[str, float] = {}  # as last measured
        self.measuring = False
        self.fresh = False
        self.sums: Tensor | None = (
            None  # of this process's gradient cosines, over all samples and by quarter of t
        )
        self.changes: Tensor | None = None  # of the velocity without each block, on this process
        self.chosen: Event | None = None

    # -- what is trained besides the network -----------------------------------------------------

    def attach(self, network: nn.Module, feature_width: int | None) -> None:
        assert feature_width is not None, "guidance without features"
        self.network = network
        self.feature_width = feature_width
        if self.layers:
            self._make_projectors()

    def _make_projectors(self) -> None:
        device = next(self.network.parameters()).device
        with torch.random.fork_rng(
            devices=[]
        ):  # the run's own draws stay what they are without guidance
            torch.manual_seed(self.seed)
            made = Projectors(len(self.layers), self.width, self.options.hidden, self.feature_width)
        self.projectors = made.to(device)
        fused = device.type in ("cuda", "cpu")
        self.optimizer = torch.optim.AdamW(self.projectors.parameters(), betas=BETAS, fused=fused)

    def step(self, lr: float, all_reduce_mean: Callable[[Tensor], Tensor], scale: float) -> None:
        if self.changes is not None:
            self._choose(all_reduce_mean(self.changes))
        if self.sums is not None:
            self._note_conflict(all_reduce_mean(self.sums))
        if self.optimizer is None or self.projectors is None:
            return
        weights = [p for p in self.projectors.parameters() if p.grad is not None]
        if not weights:
            return
        gradients = [all_reduce_mean(p.grad) / scale for p in weights if p.grad is not None]
        norm = torch.stack([g.norm() for g in gradients]).norm()
        factor = (1 / norm.clamp_min(1e-6)).clamp_max(1.0)  # clips at a norm of 1
        for p, g in zip(
            weights, gradients, strict=True
        ):  # one that overflowed in fp16 is 0, and no GPU has to wait
            p.grad = torch.where(norm.isfinite(), g * factor, 0.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    # -- the schedule ----------------------------------------------------------------------------

    def strength(self, step: int, r: float) -> float:
        """lambda at a step; exactly 0 from the end on."""
        o = self.options
        share = step / (self.options.end * self.steps)
        if self.features is None or (o.ablation and step < o.ablation_start * self.steps):
            return 0.0
        if o.schedule == "regime":
            share = r / o.end
        if o.schedule in ("constant", "conflict"):
            return o.weight
        if share >= 1:
            return 0.0
        by = {
            "regime": (1 + math.cos(math.pi * share)) / 2,
            "cosine": (1 + math.cos(math.pi * share)) / 2,
            "linear": 1 - share,
            "exponential": math.exp(-DECAYS * share),
            "stop": 1.0,
        }
        return o.weight * by[o.schedule]

    def plan(self, step: int, plan: Plan) -> Plan:
        self.weight = self.strength(step, plan.r)
        self.r = plan.r
        self.at = step
        if self.weight == 0:
            return plan
        self.measuring = (step + 1) % self.interval == 0
        hidden = tuple(sorted({*plan.hidden, *self.layers}))
        return replace(plan, hidden=hidden, active=(*plan.active, self.name))

    # -- the loss --------------------------------------------------------------------------------

    def loss(self, result: Result) -> Tensor | None:
        if self.projectors is None:
            # The blocks are chosen after this step: its forward pass has kept no hidden states.
            self.changes = self._changes(result) if self.changes is None else self.changes
            return None
        low, high = self.options.window
        inside_B = ((result.t_B >= low) & (result.t_B <= high)).float()
        hidden = [result.hidden[k] for k in self.layers]
        # Neighbouring frames say much the same. The gradients are compared over all, or most of ours would be 0.
        target_BLD = result.condition["features"].float()
        stride = 1 if self.measuring else min(self.options.stride, target_BLD.shape[1])
        if self.measuring:
            deepest = self.layers.index(max(self.layers))
            hidden[deepest] = self._watched(hidden[deepest], result.t_B)
            self.measuring = False
        cosine_KB = self._cosines(hidden, target_BLD, slice(self.at % stride, None, stride))
        seen_K = (inside_B * cosine_KB.detach()).sum(1) / inside_B.sum().clamp_min(1)
        self.cosine_K = seen_K if self.cosine_K is None else self.cosine_K + seen_K
        self.count += 1
        return self.weight * (inside_B * (1 - cosine_KB)).mean()

    def _cosines(self, hidden: Sequence[Tensor], target_BLD: Tensor, frames: slice) -> Tensor:
        """Mean cosines [K, B] of the projected hidden states, K of [B, P, W], with the teacher's features at `frames`.

        The projectors run in the precision of training, the cosines in fp32: normalising in fp16 gives NaN late in
        training (REPA, issue 46).
        """
        assert self.projectors is not None
        x_NWP = torch.stack(list(hidden)).float().flatten(0, 1).transpose(1, 2)
        x_NWL = F.interpolate(x_NWP, size=target_BLD.shape[1], mode="linear")[..., frames]
        x_KBLW = x_NWL.transpose(1, 2).unflatten(0, (len(hidden), -1))
        device = target_BLD.device.type
        dtype = self.precision
        with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
            made_KND = self.projectors(x_KBLW.flatten(1, 2))
        made_KBLD = made_KND.float().unflatten(1, x_KBLW.shape[1:3])
        return F.cosine_similarity(made_KBLD, target_BLD[:, frames], dim=-1, eps=1e-6).mean(-1)

    def _watched(self, at_BPW: Tensor, t_B: Tensor) -> Tensor:
        """The same hidden states for guidance to read; the backward pass then leaves the gradients' cosines in `sums`.

        What arrives here is guidance's gradient, and at the block's output the sum of both: no pass of its own. What a
        sample's loss is multiplied by does not change its cosine.
        """
        ours: list[Tensor] = []
        alias_BPW = at_BPW.view_as(at_BPW)
        alias_BPW.register_hook(lambda g: ours.append(g.float().flatten(1)))

        def both(g: Tensor) -> None:
            self.sums = _gradient_cosines(ours[0], g.float().flatten(1) - ours[0], t_B)

        at_BPW.register_hook(both)
        return alias_BPW

    def _note_conflict(self, sums_2Q: Tensor) -> None:
        """Of all processes, so that all of them decide alike."""
        self.sums = None
        names = [
            "gradient_cosine",
            *(f"gradient_cosine_t{(q + 0.5) / QUARTERS:.3f}" for q in range(QUARTERS)),
        ]
        rows = zip(names, *sums_2Q.tolist(), strict=True)
        self.conflict = {name: total / count for name, total, count in rows if count > 0}
        self.fresh = "gradient_cosine" in self.conflict

    @torch.no_grad()
    def _changes(self, result: Result) -> Tensor:
        """How much the velocity changes without each block, |v without k - v| / |v| (AG-REPA, arXiv 2603.01006)."""
        blocks: Any = self.network.get_submodule("dit.blocks")
        found = []
        for block in blocks:
            handle = block.register_forward_hook(lambda module, args, out: args[0])
            try:
                without_BTC = self.network(
                    result.x_BTC, result.t_B, result.condition
                ).velocity_BTC.float()
            finally:
                handle.remove()
            found.append((without_BTC - result.velocity_BTC).norm() / result.velocity_BTC.norm())
        return torch.stack(found)

    def _choose(self, changes: Tensor) -> None:
        self.changes = None
        by_block = dict(enumerate(changes.tolist(), 1))
        self.layers = tuple(
            sorted(sorted(by_block, key=lambda k: -by_block[k])[: self.options.ablation])
        )
        self._make_projectors()
        evidence = {f"change without block {k}": v for k, v in by_block.items()}
        reason = f"gate ablation chooses the blocks {', '.join(map(str, self.layers))}"
        self.chosen = Event(self.name, "choosing", "guiding", reason, evidence)

    # -- the end ---------------------------------------------------------------------------------

    def observe(self, signals: Signals) -> list[Event]:
        events = [self.chosen] if self.chosen else []
        self.chosen = None
        if self.features is None:
            return events
        o = self.options
        share = signals.step / self.steps
        reason = None
        if o.schedule == "regime" and signals.probe is not None:
            self.row = self.row + 1 if self.r >= o.end else 0
            reason = (
                f"r is at least {o.end:g} for {NEEDED} probes in a row"
                if self.row >= NEEDED
                else None
            )
        elif o.schedule == "conflict" and self.fresh:
            self.row = self.row + 1 if self.conflict["gradient_cosine"] < o.threshold else 0
            what = f"its gradient has a cosine below {o.threshold:g} with the diffusion gradient"
            reason = f"{what}, {NEEDED} times in a row" if self.row >= NEEDED else None
        elif o.schedule in ("linear", "cosine", "exponential", "stop") and share >= o.end:
            reason = f"{100 * o.end:g} % of the steps are done"
        self.fresh = False
        if reason is None:
            return events
        evidence = {"lambda": self.weight, "r": self.r, **self.conflict}
        self._free()
        return [*events, Event(self.name, "guiding", "ended", reason, evidence)]

    def _free(self) -> None:
        """Nothing of guidance is left in memory or in the loader."""
        self.features = self.projectors = self.optimizer = None
        self.weight = 0.0
        self.conflict = {}
        self.cosine_K = None
        self.count = 0

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "ended": self.features is None,
            "layers": list(self.layers),
            "projectors": self.projectors.state_dict() if self.projectors is not None else None,
            "optimizer": self.optimizer.state_dict() if self.optimizer is not None else None,
            "row": self.row,
            "r": self.r,
            "count": self.count,
            "cosines": None if self.cosine_K is None else self.cosine_K.cpu(),
            "conflict": dict(self.conflict),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.layers = tuple(state["layers"])
        self.row = state["row"]
        self.r = state["r"]
        if state["ended"]:
            self._free()
            return
        if state["projectors"] is not None:
            self._make_projectors()
            assert self.projectors is not None and self.optimizer is not None
            self.projectors.load_state_dict(state["projectors"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.count = state["count"]
        self.conflict = dict(state["conflict"])
        device = next(self.network.parameters()).device
        self.cosine_K = None if state["cosines"] is None else state["cosines"].clone().to(device)

    def metrics(self) -> dict[str, float]:
        found = {"lambda": self.weight}
        if self.cosine_K is not None:
            sums = zip(self.layers, self.cosine_K.tolist(), strict=True)
            found |= {f"cosine_block{k}": total / self.count for k, total in sums}
        found |= self.conflict
        self.cosine_K = None
        self.count = 0
        return found


class Projectors(nn.Module):
    """A linear, SiLU, linear map for each of K blocks, all at once: [K, N, W] -> [K, N, D]."""

    def __init__(self, blocks: int, width: int, hidden: int, out: int) -> None:
        super().__init__()
        made = [(nn.Linear(width, hidden), nn.Linear(hidden, out)) for _ in range(blocks)]
        self.first_KWH, self.first_K1H = _stacked([first for first, _ in made])
        self.second_KHD, self.second_K1D = _stacked([second for _, second in made])

    def forward(self, h_KNW: Tensor) -> Tensor:
        inner_KNH = F.silu(torch.baddbmm(self.first_K1H, h_KNW, self.first_KWH))
        return torch.baddbmm(self.second_K1D, inner_KNH, self.second_KHD)


def _stacked(linears: Sequence[nn.Linear]) -> tuple[nn.Parameter, nn.Parameter]:
    """Weights [K, in, out] and biases [K, 1, out]."""
    weight_KIO = torch.stack([linear.weight.detach().T for linear in linears])
    return nn.Parameter(weight_KIO), nn.Parameter(
        torch.stack([linear.bias.detach()[None] for linear in linears])
    )


def _gradient_cosines(ours_BN: Tensor, theirs_BN: Tensor, t_B: Tensor) -> Tensor:
    """Cosines per sample between two losses' gradients: sums and counts [2, 5], over all samples that are guided and by
    quarter of t."""
    guided_B = (ours_BN.norm(dim=1) > 0).double()
    quarter_BQ = F.one_hot((t_B * QUARTERS).long().clamp(0, QUARTERS - 1), QUARTERS).double()
    which_BQ = guided_B[:, None] * F.pad(quarter_BQ, (1, 0), value=1.0)
    return torch.stack(
        [F.cosine_similarity(ours_BN, theirs_BN, dim=1).double() @ which_BQ, which_BQ.sum(0)]
    )
