"""`[stage.timesteps]`: the density that noise levels t are drawn from while training.

The adaptive kind follows the regime through `Plan.r`; the other kinds are baselines behind the same
interface. Formulas and sources: `docs/timesteps.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import model_validator

from stagecli.bounds import Range
from stagecli.errors import StageError
from stagecli.schema import Bins, Fraction, NoiseLevel, PositiveFraction, PositiveReal, Real, Recipe
from stagecli.stage.base import Event, Mechanism, Plan, Signals
from stagecli.stage.densities import (
    LogitLogistic,
    LogitNormal,
    TimeDensity,
    Uniform,
    log_snr_normal,
    per_sample,
)
from stagecli.stage.densities_composed import Binned, Floored, Weighted, objective_density
from stagecli.stage.loss_history import LossFall, LossHistory, SquaredLosses
from stagecli.stage.loss_weights import ChangeAware, LossWeight, MinSNR, Weight, effective_share
from stagecli.stage.options import MechanismOptions, RegimeNeed

KEPT = 1024  # values of t that the reported quantiles are taken from; at least one step's

DensityKind = Literal[
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
Width = Annotated[float, Range(0.05, 100)]
# Scale of the logit-logistic density nearest to logit-normal(0, 1); their total variation distance
# is 0.033.
LOGISTIC = 0.61


class TimestepsOptions(MechanismOptions):
    kind: DensityKind = "adaptive"
    """`adaptive` follows r and needs [stage.regime]; the others are baselines."""
    m0: Real = 0.4
    """Centre of logit t at r = 0; it moves to `m1` with r (adaptive)."""
    s0: Annotated[float, Range(0.1, 2)] = 0.56
    """Scale of logit t at r = 0; it moves to `s1` with r (adaptive)."""
    m1: Real | None = None
    """Centre of logit t at r = 1; default: that of [objective] (adaptive)."""
    s1: Annotated[float, Range(0.1, 2)] | None = None
    """Scale of logit t at r = 1; default: that of [objective], which is 1 if uniform (adaptive)."""
    floor: Fraction = 0.05
    """Share of t drawn uniformly (adaptive)."""
    kappa: Fraction = 0.0
    """Power of the importance weights back to [objective]; 1: keeps the objective (adaptive)."""
    follow_loss: bool = False
    """Experimental: also prefer bins whose loss falls faster, less so as r rises (adaptive)."""
    mean: Real = 0.0
    """Mean of logit t (logit-normal, truncated-logit-normal, curriculum)."""
    std: Width = 1.0
    """Standard deviation of logit t (logit-normal, truncated-logit-normal, curriculum)."""
    low: Annotated[float, Range(0, 1, open_high=True)] = 0.0
    """Lower end of the truncation; the rest is stretched to (0, 1) (truncated-logit-normal)."""
    high: PositiveFraction = 0.925
    """Upper end of the truncation (truncated-logit-normal)."""
    snr_mean: Real = -2.4
    """Mean of ln SNR, SNR = ((1 - t) / t)^2 (log-snr-normal)."""
    snr_std: Annotated[float, Range(0.1, 100)] = 4.0
    """Standard deviation of ln SNR (log-snr-normal)."""
    shift: PositiveReal = 3.0
    """a in t = a u / (1 + (a - 1) u); above 1: more noise (shift)."""
    tau: NoiseLevel = 0.923
    """Noise level above which t is drawn less often (speed)."""
    ratio: Annotated[float, Range(1, 1e6)] = 3.0
    """Density below tau over the density above it (speed)."""
    lam: Annotated[float, Range(0.5, 1)] = 0.6
    """Loss weights below tau lie in [1 - lam, lam] before normalisation (speed)."""
    at: Fraction = 0.6
    """Share of the budget at which logit-normal gives way to uniform (curriculum)."""
    mix: Fraction = 0.0
    """Share of the budget that a linear transition takes; 0: a switch (curriculum)."""
    bins: Bins = 20
    """Bins of t (loss-second-moment, follow_loss)."""
    history: Annotated[int, Range(1, 10_000)] = 10
    """Steps that each bin remembers; before that, [objective] applies (loss-second-moment)."""
    history_floor: PositiveFraction = 0.001
    """Share of t drawn from [objective] whatever the losses (loss-second-moment)."""
    weighting: Literal["none", "min-snr"] = "none"
    """Weight of the loss by t, with mean 1; `min-snr` in the form for this project's velocity."""
    gamma: PositiveReal = 5.0
    """Cap of the SNR (min-snr)."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if self.kind != "adaptive" and (self.kappa or self.follow_loss):
            raise ValueError(f'kappa and follow_loss require kind = "adaptive", not {self.kind!r}')
        if self.kappa and not self.floor:
            raise ValueError(
                "kappa requires a floor above 0: without one the importance weights have no bound"
            )
        if self.low >= self.high:
            raise ValueError("low must be below high")
        below_low, below_high = LogitNormal(self.mean, self.std, self.low, self.high).mass
        mass = below_high - below_low
        if self.kind == "truncated-logit-normal" and mass < 1e-4:
            raise ValueError(
                f"[low, high] contains hardly anything ({mass:.1g}) of the logit-normal mass"
            )
        return self

    def regime_need(self) -> RegimeNeed | None:
        if self.kind != "adaptive":
            return None
        return RegimeNeed(
            'kind = "adaptive" follows r', "kind", "choose another stage.timesteps.kind"
        )


class TimestepsMechanism(Mechanism):
    """Replaces `Plan.density`, and `Plan.loss_weight` where the options request weights."""

    name = "timesteps"
    Options = TimestepsOptions

    def __init__(self, options: TimestepsOptions, recipe: Recipe) -> None:
        self.options = options
        self.steps = recipe.train.steps
        self.reference = objective_density(recipe.objective)
        self.end = _end(options, recipe)
        self.edges = _bin_edges(options, self.reference)
        self.history = _loss_history(options, self.edges)
        self.weights = _loss_weights(options)
        self.t_N = torch.zeros(0)  # drawn in the last steps
        # Density, step and r of the last plan, for metrics.
        self.last: tuple[TimeDensity, int, float] | None = None

    def plan(self, step: int, plan: Plan) -> Plan:
        density = self.density(step, plan.r)
        self.last = (density, step, plan.r)
        weight = LossWeight(self.weights, density) if self.weights else plan.loss_weight
        return replace(plan, density=density, loss_weight=weight)

    # -- the density -----------------------------------------------------------------------------

    def density(self, step: int, r: float) -> TimeDensity:
        """Density of t at a step; a function of the step, of r and of the losses observed so
        far.
        """
        if self.options.kind == "adaptive":
            return self._adaptive(r)
        if self.options.kind == "curriculum":
            return self._curriculum(step)
        if isinstance(self.history, SquaredLosses):
            return self._by_squared_loss(self.history)
        return _fixed(self.options)

    def _adaptive(self, r: float) -> TimeDensity:
        """(1 - floor) LL(m(r), s(r)) + floor U, times the factors of the bins where the options
        request them.

        The uniform density alone where LL is uniform.
        """
        m, s = self.centre_and_scale(r)
        density: TimeDensity = Uniform() if (m, s) == (0.0, 1.0) else LogitLogistic(m, s)
        if isinstance(self.history, LossFall) and self.history.ready and r < 1:
            density = Binned(density, self.edges, self.history.factors(0.5 * (1 - r)))
        floor = self.options.floor
        if floor == 1:
            density = Uniform()
        elif floor and density != Uniform():
            density = Floored(density, floor)
        kappa = self.options.kappa
        if kappa and density != self.reference:
            return Weighted(density, self.reference, kappa)
        return density

    def centre_and_scale(self, r: float) -> tuple[float, float]:
        """m(r) and s(r) of logit t (adaptive)."""
        options = self.options
        left = 1 - min(1.0, max(0.0, r))
        m1, s1 = self.end
        return m1 - (m1 - options.m0) * left, s1 - (s1 - options.s0) * left

    def _by_squared_loss(self, history: SquaredLosses) -> TimeDensity:
        if not history.ready:
            return self.reference
        factors = history.factors(self.options.history_floor)
        return Weighted(Binned(self.reference, self.edges, factors), self.reference)

    def uniform_share(self, step: int) -> float:
        """Share of the uniform density at a step (curriculum)."""
        past = step - self.options.at * self.steps
        length = self.options.mix * self.steps
        if length > 0:
            return min(1.0, max(0.0, past / length))
        return float(past >= 0)

    def _curriculum(self, step: int) -> TimeDensity:
        share = self.uniform_share(step)
        early = LogitNormal(self.options.mean, self.options.std)
        if share == 0:
            return early
        return Uniform() if share == 1 else Floored(early, share)

    # -- observation -----------------------------------------------------------------------------

    def observe(self, signals: Signals) -> list[Event]:
        t_B = per_sample(signals.t_B.detach().cpu(), "t").float()
        keep = max(1, KEPT // len(t_B)) * len(t_B)
        self.t_N = torch.cat([self.t_N, t_B.sort().values])[-keep:]
        if self.history is not None and self._remember(self.history, signals):
            seen = {"least samples or steps per bin": int(self.history.seen.min())}
            reason = "every bin of t has its history"
            return [Event(self.name, "warm-up", "following the loss", reason, seen)]
        before = self.stage(signals.step - 1)
        after = self.stage(signals.step)
        if after == before or signals.step >= self.steps:
            return []
        reason = f"step {signals.step} of {self.steps}: the curriculum's schedule"
        evidence = {"uniform share": self.uniform_share(signals.step)}
        return [Event(self.name, before, after, reason, evidence)]

    def _remember(self, history: LossHistory, signals: Signals) -> bool:
        """Add the step's losses; whether the history became ready by that."""
        ready = history.ready
        history.add(signals.t_B.detach().cpu().float(), signals.loss_B.detach().cpu())
        return history.ready and not ready

    def stage(self, step: int) -> str:
        """The curriculum's density at a step, in a word; for another kind its name."""
        if self.options.kind != "curriculum":
            return self.options.kind
        share = self.uniform_share(step)
        if share == 0:
            return "logit-normal"
        return "uniform" if share == 1 else "mixture"

    def metrics(self) -> dict[str, float]:
        """Quantiles of t over the last steps, and what the last plan's density was made with.

        ess: effective sample size of the weights as a share, 1 without weights.
        """
        values: dict[str, float] = {}
        if len(self.t_N):
            shares = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
            quantiles = torch.quantile(self.t_N.double(), shares).tolist()
            values = dict(zip(("t_q10", "t_q50", "t_q90"), quantiles, strict=True))
        if self.last is not None:
            density, step, r = self.last
            values["ess"] = effective_share(density, self.weights)
            if self.options.kind == "adaptive":
                values["m"], values["s"] = self.centre_and_scale(r)
            elif self.options.kind == "curriculum":
                values["uniform_share"] = self.uniform_share(step)
        return values

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        history = None if self.history is None else self.history.state_dict()
        return {"t_N": self.t_N, "history": history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises StageError for the state of another kind or number of bins."""
        own = None if self.history is None else _shapes(self.history.state_dict())
        theirs = None if state["history"] is None else _shapes(state["history"])
        if own != theirs:
            raise StageError(
                f"the checkpoint's loss history has the shapes {theirs}, the recipe's {own}",
                hint="train the changed recipe under another name with --name",
            )
        self.t_N = state["t_N"].clone()
        if self.history is not None:
            self.history.load_state_dict(state["history"])


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _end(options: TimestepsOptions, recipe: Recipe) -> tuple[float, float]:
    """m and s at r = 1: by the options, else those of the logit-logistic nearest to the
    objective's density.
    """
    m1 = options.m1
    s1 = options.s1
    normal = recipe.objective.density == "logit-normal"
    if m1 is None:
        m1 = recipe.objective.mean if normal else 0.0
    if s1 is None:
        s1 = LOGISTIC * recipe.objective.std if normal else 1.0
    return m1, s1


def _bin_edges(options: TimestepsOptions, reference: TimeDensity) -> tuple[float, ...]:
    """Edges of the bins of t, from 0 to 1.

    Equally wide in t; for loss-second-moment equally likely under the objective, because every bin
    must be seen before it takes effect.
    """
    inner = torch.arange(1, options.bins, dtype=torch.float64) / options.bins
    if options.kind == "loss-second-moment":
        inner = reference.quantile(inner)
    return (0.0, *inner.tolist(), 1.0)


def _loss_history(
    options: TimestepsOptions, edges: tuple[float, ...]
) -> SquaredLosses | LossFall | None:
    if options.kind == "loss-second-moment":
        return SquaredLosses(edges, options.history)
    return LossFall(edges) if options.follow_loss else None


def _loss_weights(options: TimestepsOptions) -> tuple[Weight, ...]:
    weights: tuple[Weight, ...] = ()
    if options.weighting == "min-snr":
        weights += (MinSNR(options.gamma),)
    if options.kind == "speed":
        weights += (ChangeAware(options.tau, options.lam),)
    return weights


def _fixed(options: TimestepsOptions) -> TimeDensity:
    """The density of a kind that does not change while training."""
    if options.kind == "logit-normal":
        return LogitNormal(options.mean, options.std)
    if options.kind == "truncated-logit-normal":
        return LogitNormal(options.mean, options.std, options.low, options.high)
    if options.kind == "log-snr-normal":
        return log_snr_normal(options.snr_mean, options.snr_std)
    if options.kind == "shift":
        return LogitLogistic(math.log(options.shift), 1.0)
    if options.kind == "speed":
        return Binned(Uniform(), (0.0, options.tau, 1.0), (options.ratio, 1.0))
    return Uniform()
