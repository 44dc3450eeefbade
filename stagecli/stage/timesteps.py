"""`[stage.timesteps]`: which noise levels are trained. The adaptive kind follows the regime by `Plan.r`; the others are
the baselines it is to be compared with, behind the same interface. Formulas and sources: `docs/timesteps.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stagecli.errors import Problem, StageError
from stagecli.schema import Fraction, Positive, PositiveReal, Recipe, Section
from stagecli.stage import densities
from stagecli.stage.base import Event, Mechanism, Plan, Signals
from stagecli.stage.densities import (
    Binned,
    Floored,
    LogitLogistic,
    LogitNormal,
    TimeDensity,
    Uniform,
    Weighted,
)

KEPT = 1024  # t of the last steps that the quantiles are taken of, at least one step's
# half-lives in samples of the two averages of a bin's loss
FAST = 128
SLOW = 1024
LEAST_FALL = 1e-4  # mean relative fall of the loss under which no bin is preferred

Kind = Literal[
    "adaptive",
    "uniform",
    "logit-normal",
    "truncated-logit-normal",
    "log-snr-normal",
    "shift",
    "speed",
    "curriculum",
    "loss-second-moment",
]
Width = Annotated[float, Field(ge=0.05)]
LOGISTIC = (
    0.61  # scale of the logit-logistic that is nearest to logit-normal(0, 1): total variation 0.033
)


class TimestepsOptions(Section):
    kind: Kind = "adaptive"
    """`adaptive` follows the regime variable r and needs [stage.regime]; the others are baselines."""
    m0: float = 0.4
    """Centre of logit t at r = 0; it goes to `m1` with r (adaptive)."""
    s0: Annotated[float, Field(ge=0.1, le=2)] = 0.56
    """Scale of logit t at r = 0; it goes to `s1` with r (adaptive)."""
    m1: float | None = None
    """Centre of logit t at r = 1; default: that of the density of [objective] (adaptive)."""
    s1: Annotated[float, Field(ge=0.1, le=2)] | None = None
    """Scale of logit t at r = 1; default: that of [objective]: 1 for uniform, 0.61 std for logit-normal (adaptive)."""
    floor: Fraction = 0.05
    """Share of t drawn uniformly (adaptive)."""
    kappa: Fraction = 0.0
    """Power of the importance weights back to the density of [objective]; 1: the objective is kept (adaptive)."""
    follow_loss: bool = False
    """Experimental: also prefer bins whose loss falls faster, the less the higher r (adaptive)."""
    mean: float = 0.0
    """Mean of logit t (logit-normal, truncated-logit-normal, curriculum)."""
    std: Width = 1.0
    """Standard deviation of logit t (logit-normal, truncated-logit-normal, curriculum)."""
    low: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Truncation; what is left is stretched to (0, 1) (truncated-logit-normal)."""
    high: Annotated[float, Field(gt=0, le=1)] = 0.925
    """Truncation (truncated-logit-normal)."""
    snr_mean: float = -2.4
    """Mean of ln SNR, SNR = ((1 - t) / t)^2 (log-snr-normal)."""
    snr_std: Annotated[float, Field(ge=0.1)] = 4.0
    """Standard deviation of ln SNR (log-snr-normal)."""
    shift: PositiveReal = 3.0
    """a in t = a u / (1 + (a - 1) u); above 1: more noise (shift)."""
    tau: Annotated[float, Field(gt=0, lt=1)] = 0.923
    """Noise level above which t is drawn less often (speed)."""
    ratio: Annotated[float, Field(ge=1)] = 3.0
    """How much less often (speed)."""
    lam: Annotated[float, Field(ge=0.5, le=1)] = 0.6
    """Loss weights below tau lie in [1 - lam, lam] before normalisation (speed)."""
    at: Fraction = 0.6
    """Share of the budget at which logit-normal gives way to uniform (curriculum)."""
    mix: Fraction = 0.0
    """Share of the budget over which it does, linearly; 0: at once (curriculum)."""
    bins: Positive = 20
    """Bins of t (loss-second-moment, follow_loss)."""
    history: Positive = 10
    """Steps that each bin remembers; until all bins have them, t is drawn by [objective] (loss-second-moment)."""
    history_floor: Annotated[float, Field(gt=0, le=1)] = 0.001
    """Share of t drawn by [objective] whatever the losses (loss-second-moment)."""
    weighting: Literal["none", "min-snr"] = "none"
    """Weight of the loss by t, with mean 1; `min-snr` in the form for this project's velocity."""
    gamma: PositiveReal = 5.0
    """Cap of the SNR (min-snr)."""

    @model_validator(mode="after")
    def together(self) -> TimestepsOptions:
        if self.kind != "adaptive" and (self.kappa or self.follow_loss):
            raise ValueError(f'kappa and follow_loss are for kind = "adaptive", not {self.kind!r}')
        if self.kappa and not self.floor:
            raise ValueError(
                "kappa needs a floor above 0: without one the importance weights have no bound"
            )
        if self.low >= self.high:
            raise ValueError("low must be below high")
        low, high = LogitNormal(self.mean, self.std, self.low, self.high).mass
        if self.kind == "truncated-logit-normal" and high - low < 1e-4:
            raise ValueError(
                f"hardly anything of the logit-normal density ({high - low:.1g}) is between low and high"
            )
        return self


class SquaredLosses:
    """Mean squared loss per bin over its last `history` steps; what loss-second-moment draws t by.

    After `LossSecondMomentResampler` of Improved DDPM (arXiv 2102.09672). A step counts once per bin, with the mean
    over its samples there, so that neither the batch size nor the order of the batch decides what is remembered.
    """

    def __init__(self, edges: tuple[float, ...], history: int) -> None:
        self.inner = torch.tensor(edges[1:-1], dtype=torch.float64)
        self.rows = torch.zeros(len(edges) - 1, history, dtype=torch.float64)  # ring per bin
        self.seen = torch.zeros(len(edges) - 1, dtype=torch.int64)

    def add(self, t_B: Tensor, loss_B: Tensor) -> None:
        """t and unweighted loss of the global batch."""
        count, mean = _by_bin(self.inner, t_B, loss_B, power=2)
        here = count > 0
        self.rows[here, self.seen[here] % self.rows.shape[1]] = mean[here]
        self.seen += here

    @property
    def ready(self) -> bool:
        return bool((self.seen >= self.rows.shape[1]).all())

    def factors(self, floor: float) -> tuple[float, ...]:
        """Of bins that are equally likely: sqrt(E[loss^2]) over its mean, mixed with 1."""
        root = self.rows.mean(dim=1).sqrt()
        relative = root / root.mean() if float(root.mean()) > 0 else torch.ones_like(root)
        return tuple(((1 - floor) * relative + floor).tolist())

    def state_dict(self) -> dict[str, Tensor]:
        return {"rows": self.rows, "seen": self.seen}


class LossFall:
    """Relative fall of the loss per bin, from a fast and a slow average; both count in samples."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.inner = torch.tensor(edges[1:-1], dtype=torch.float64)
        self.sums = torch.zeros(2, len(edges) - 1, dtype=torch.float64)  # fast and slow
        self.norms = torch.zeros_like(self.sums)
        self.seen = torch.zeros(len(edges) - 1, dtype=torch.int64)

    def add(self, t_B: Tensor, loss_B: Tensor) -> None:
        """t and unweighted loss of the global batch."""
        count, mean = _by_bin(self.inner, t_B, loss_B)
        keep = 0.5 ** (
            count / torch.tensor([[FAST], [SLOW]], dtype=torch.float64)
        )  # 1 where a bin has no sample
        self.sums = keep * self.sums + (1 - keep) * mean
        self.norms = keep * self.norms + (1 - keep)
        self.seen += count

    @property
    def ready(self) -> bool:
        return bool((self.seen >= FAST).all())

    def factors(self, power: float) -> tuple[float, ...]:
        """(fall / mean fall)^power, between 1/2 and 2; all 1 where the loss hardly falls."""
        fast, slow = self.sums / self.norms
        fall = ((slow - fast) / slow.clamp_min(1e-12)).clamp_min(0)
        mean = float(fall.mean())
        relative = fall / mean if mean > LEAST_FALL else torch.ones_like(fall)
        return tuple(relative.pow(power).clamp(0.5, 2.0).tolist())

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums, "norms": self.norms, "seen": self.seen}


def _by_bin(inner: Tensor, t_B: Tensor, loss_B: Tensor, power: int = 1) -> tuple[Tensor, Tensor]:
    """Per bin the number of samples and the mean of loss^power, summed in the order of t whichever process trained
    a sample. A loss that is no number is left out."""
    t, order = densities.per_sample(t_B, "t").double().sort(stable=True)
    loss = densities.per_sample(loss_B, "loss").double()[order]
    fine = loss.isfinite()
    bins = len(inner) + 1
    of = torch.searchsorted(inner, t[fine].contiguous(), right=True)
    count = torch.bincount(of, minlength=bins)
    total = torch.bincount(of, weights=loss[fine].pow(power), minlength=bins)
    return count, total / count.clamp_min(1)


class TimestepsMechanism(Mechanism):
    """Replaces `Plan.density`, and `Plan.loss_weight` where the options ask for weights."""

    name = "timesteps"
    Options = TimestepsOptions

    def __init__(self, options: TimestepsOptions, recipe: Recipe) -> None:
        """Raises StageError for the adaptive kind in a recipe without [stage.regime]."""
        if options.kind == "adaptive" and "regime" not in recipe.stage:
            raise StageError(
                'timesteps of kind "adaptive" follow the regime, and nothing gives one',
                problems=[Problem("stage.timesteps.kind", "adaptive, without [stage.regime]")],
                hint='add [stage.regime] (its source = "linear" takes r from the step), or choose another kind',
            )
        self.options = options
        self.steps = recipe.train.steps
        objective = recipe.objective
        self.reference = densities.plain(objective)
        normal = objective.density == "logit-normal"
        m1, s1 = (objective.mean, LOGISTIC * objective.std) if normal else (0.0, 1.0)
        self.end = (
            m1 if options.m1 is None else options.m1,
            s1 if options.s1 is None else options.s1,
        )  # at r = 1
        self.edges = self._edges()
        self.tracker: SquaredLosses | LossFall | None = None
        if options.kind == "loss-second-moment":
            self.tracker = SquaredLosses(self.edges, options.history)
        elif options.follow_loss:
            self.tracker = LossFall(self.edges)
        self.weights: tuple[densities.Weight, ...] = ()
        if options.weighting == "min-snr":
            self.weights += (densities.MinSNR(options.gamma),)
        if options.kind == "speed":
            self.weights += (densities.ChangeAware(options.tau, options.lam),)
        self.t_N = torch.zeros(0)  # of the last steps
        self.last: tuple[TimeDensity, int, float] | None = (
            None  # density, step and r of the last plan: for metrics
        )

    def _edges(self) -> tuple[float, ...]:
        """Of the bins: equally wide in t, but equally likely under the objective for loss-second-moment, where every
        bin has to be seen before it begins."""
        u = torch.arange(1, self.options.bins, dtype=torch.float64) / self.options.bins
        inner = self.reference.quantile(u) if self.options.kind == "loss-second-moment" else u
        return (0.0, *inner.tolist(), 1.0)

    def plan(self, step: int, plan: Plan) -> Plan:
        density = self.density(step, plan.r)
        self.last = (density, step, plan.r)
        weight = densities.LossWeight(self.weights, density) if self.weights else plan.loss_weight
        return replace(plan, density=density, loss_weight=weight)

    def density(self, step: int, r: float) -> TimeDensity:
        """What t is drawn from at a step; a function of the step, of r and of the losses observed so far."""
        o = self.options
        if o.kind == "adaptive":
            return self._adaptive(r)
        if o.kind == "curriculum":
            return self._curriculum(step)
        if o.kind == "loss-second-moment":
            assert isinstance(self.tracker, SquaredLosses)
            if not self.tracker.ready:
                return self.reference
            drawn = Binned(self.reference, self.edges, self.tracker.factors(o.history_floor))
            return Weighted(drawn, self.reference)
        return self._fixed()

    def _adaptive(self, r: float) -> TimeDensity:
        """(1 - floor) LL(m(r), s(r)) + floor U, times the bins' factors if asked for; U alone where LL is uniform."""
        o = self.options
        m, s = self.centre_and_scale(r)
        density: TimeDensity = Uniform() if (m, s) == (0.0, 1.0) else LogitLogistic(m, s)
        if isinstance(self.tracker, LossFall) and self.tracker.ready and r < 1:
            density = Binned(density, self.edges, self.tracker.factors(0.5 * (1 - r)))
        if o.floor == 1:
            density = Uniform()
        elif o.floor and density != Uniform():
            density = Floored(density, o.floor)
        return (
            Weighted(density, self.reference, o.kappa)
            if o.kappa and density != self.reference
            else density
        )

    def centre_and_scale(self, r: float) -> tuple[float, float]:
        """m(r) and s(r) of logit t (adaptive)."""
        o = self.options
        left = 1 - min(1.0, max(0.0, r))
        m1, s1 = self.end
        return m1 - (m1 - o.m0) * left, s1 - (s1 - o.s0) * left

    def uniform_share(self, step: int) -> float:
        """Share of the uniform density at a step (curriculum)."""
        past = step - self.options.at * self.steps
        length = self.options.mix * self.steps
        return min(1.0, max(0.0, past / length)) if length > 0 else float(past >= 0)

    def _curriculum(self, step: int) -> TimeDensity:
        share = self.uniform_share(step)
        early = LogitNormal(self.options.mean, self.options.std)
        return early if share == 0 else Uniform() if share == 1 else Floored(early, share)

    def _fixed(self) -> TimeDensity:
        o = self.options
        if o.kind == "logit-normal":
            return LogitNormal(o.mean, o.std)
        if o.kind == "truncated-logit-normal":
            return LogitNormal(o.mean, o.std, o.low, o.high)
        if o.kind == "log-snr-normal":
            return densities.log_snr_normal(o.snr_mean, o.snr_std)
        if o.kind == "shift":
            return LogitLogistic(math.log(o.shift), 1.0)
        if o.kind == "speed":
            return Binned(Uniform(), (0.0, o.tau, 1.0), (o.ratio, 1.0))
        return Uniform()

    def observe(self, signals: Signals) -> list[Event]:
        t_B = densities.per_sample(signals.t_B.detach().cpu(), "t").float()
        keep = max(1, KEPT // len(t_B)) * len(t_B)
        self.t_N = torch.cat([self.t_N, t_B.sort().values])[-keep:]
        before = self.stage(signals.step - 1)
        ready = self.tracker is not None and self.tracker.ready
        if self.tracker is not None:
            self.tracker.add(t_B, signals.loss_B.detach().cpu())
            if self.tracker.ready and not ready:
                seen = {"least samples or steps per bin": int(self.tracker.seen.min())}
                return [
                    Event(
                        self.name,
                        "warm-up",
                        "following the loss",
                        "every bin of t has its history",
                        seen,
                    )
                ]
        after = self.stage(signals.step)
        if after == before or signals.step >= self.steps:
            return []
        reason = f"step {signals.step} of {self.steps}: the curriculum's schedule"
        return [
            Event(
                self.name,
                before,
                after,
                reason,
                {"uniform share": self.uniform_share(signals.step)},
            )
        ]

    def stage(self, step: int) -> str:
        """What the curriculum draws from at a step; of another kind its name."""
        if self.options.kind != "curriculum":
            return self.options.kind
        share = self.uniform_share(step)
        return "logit-normal" if share == 0 else "uniform" if share == 1 else "mixture"

    def metrics(self) -> dict[str, float]:
        """Quantiles of the last steps' t; ess: effective sample size of the weights as a share, 1: none lost."""
        values: dict[str, float] = {}
        if len(self.t_N):
            at = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
            found = torch.quantile(self.t_N.double(), at).tolist()
            values = dict(zip(("t_q10", "t_q50", "t_q90"), found, strict=True))
        if self.last is not None:
            density, step, r = self.last
            values["ess"] = densities.effective_share(density, self.weights)
            if self.options.kind == "adaptive":
                values["m"], values["s"] = self.centre_and_scale(r)
            elif self.options.kind == "curriculum":
                values["uniform_share"] = self.uniform_share(step)
        return values

    def state_dict(self) -> dict[str, Any]:
        return {
            "t_N": self.t_N,
            "tracker": None if self.tracker is None else self.tracker.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises StageError for the state of another kind or number of bins."""
        own = None if self.tracker is None else self.tracker.state_dict()
        tracked = state["tracker"]
        shapes = [
            {k: tuple(v.shape) for k, v in s.items()} if s is not None else None
            for s in (own, tracked)
        ]
        if shapes[0] != shapes[1]:
            raise StageError(
                f"the checkpoint's timesteps remember {shapes[1]}, the recipe's {shapes[0]}",
                hint="train the changed recipe under another name with --name",
            )
        self.t_N = state["t_N"].clone()
        for name, value in (tracked or {}).items():
            setattr(self.tracker, name, value.clone())
