"""`[stage.timesteps]`: the density that noise levels t are drawn from while training.

Some kinds follow the regime, by noise level, through `Plan.levels`; the other kinds are baselines
behind the same interface. Formulas and sources: `docs/timesteps.md`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from stagecli.errors import StageError
from stagecli.schema import Recipe
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
from stagecli.stage.densities_measured import (
    by_discrepancy,
    by_loss,
    by_progress,
    is_measured,
)
from stagecli.stage.loss_history import LossHistory, RecentLosses, SquaredLosses
from stagecli.stage.loss_weights import ChangeAware, LossWeight, MinSNR, Weight, effective_share
from stagecli.stage.timesteps_columns import BINS, PREFIX, QUANTILES, SHARES
from stagecli.stage.timesteps_options import BY_LEVEL, TimestepsOptions

KEPT = 1024  # values of t that the reported quantiles are taken from; at least one step's
OBJECTIVE = "objective"  # the stage in which t is drawn from the density of [objective]
REASONS = {
    "progress": "the probes measure progress by noise level: t follows it from here",
    "discrepancy": "the probes show what is missing by noise level: t follows it from here",
    OBJECTIVE: "the probes find nothing missing at any noise level: t is drawn as in [objective]",
}
"""Why t begins to follow something else, by what it follows."""


class TimestepsMechanism(Mechanism):
    """Replaces `Plan.density`, and `Plan.loss_weight` where the options request weights."""

    name = "timesteps"
    Options = TimestepsOptions

    def __init__(self, options: TimestepsOptions, recipe: Recipe) -> None:
        self.options = options
        self.steps = recipe.train.steps
        self.reference = objective_density(recipe.objective)
        self.edges = _bin_edges(options, self.reference)
        self.history = _loss_history(options, self.edges)
        self.reads_losses = self.history is not None
        self.weights = _loss_weights(options)
        self.t_N = torch.zeros(0)  # drawn in the last steps
        self.planned: tuple[int, TimeDensity] | None = None  # the last plan's step and density
        self.followed = OBJECTIVE  # what the last plan's density follows (progress, discrepancy)
        self.reported = OBJECTIVE  # the last of these that an event reported
        self.probed: tuple[float, ...] = ()  # noise levels of the last probe

    def plan(self, step: int, plan: Plan) -> Plan:
        density = self.density(step, plan)
        self.planned = (step, density)
        self.followed = self.follows(plan)
        weight = LossWeight(self.weights, density) if self.weights else plan.loss_weight
        return replace(plan, density=density, loss_weight=weight)

    # -- the density -----------------------------------------------------------------------------

    def density(self, step: int, plan: Plan) -> TimeDensity:
        """Density of t at a step; a function of the step, of the regime in the plan and of the
        losses observed so far.
        """
        if self.options.kind == "curriculum":
            return self._curriculum(step)
        if isinstance(self.history, SquaredLosses):
            return self._by_squared_loss(self.history)
        if isinstance(self.history, RecentLosses):
            return self._weighted(self._by_recent_loss(self.history))
        if self.options.kind in BY_LEVEL:
            return self._weighted(self._by_level(plan))
        return _fixed(self.options)

    def _by_level(self, plan: Plan) -> TimeDensity | None:
        """None until the first probe, and where it finds nothing missing at any noise level."""
        options = self.options
        if not plan.levels:
            return None
        floor = min(1.0, options.floor + options.floor_r * plan.r_now)
        if options.kind == "progress":
            return by_progress(plan.levels, options.missing, floor)
        return by_discrepancy(plan.levels, options.power - options.power_r * plan.r_now, floor)

    def follows(self, plan: Plan) -> str:
        """What the density follows: progress, discrepancy, or the objective."""
        if self.options.kind not in BY_LEVEL or self._by_level(plan) is None:
            return OBJECTIVE
        measured = self.options.kind == "progress" and is_measured(plan.levels)
        return "progress" if measured else "discrepancy"

    def _by_recent_loss(self, history: RecentLosses) -> TimeDensity | None:
        """None until every bin has its history."""
        if not history.ready:
            return None
        middles = (torch.arange(len(self.edges) - 1, dtype=torch.float64) + 0.5) / (
            len(self.edges) - 1
        )
        t = self.reference.quantile(middles).tolist()
        return by_loss(t, history.means(), self.options.floor)

    def _weighted(self, density: TimeDensity | None) -> TimeDensity:
        """A density with the importance weights of the options; that of [objective] for None."""
        kappa = self.options.kappa
        if density is None:
            return self.reference
        if kappa and density != self.reference:
            return Weighted(density, self.reference, kappa)
        return density

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
        if signals.probe is not None:
            self.probed = tuple(signals.probe.D_t)
        if self.history is not None and self._remember(self.history, signals):
            seen = {"least samples or steps per bin": int(self.history.seen.min())}
            reason = "every bin of t has its history"
            return [Event(self.name, "warm-up", "following the loss", reason, seen)]
        if self.options.kind in BY_LEVEL:
            return self._report_following()
        before = self.stage(signals.step - 1)
        after = self.stage(signals.step)
        if after == before or signals.step >= self.steps:
            return []
        reason = f"step {signals.step} of {self.steps}: the curriculum's schedule"
        evidence = {"uniform share": self.uniform_share(signals.step)}
        return [Event(self.name, before, after, reason, evidence)]

    def _report_following(self) -> list[Event]:
        """An event where t begins to follow something else."""
        assert self.planned is not None
        before = self.reported
        self.reported = self.followed
        if self.reported == before:
            return []
        evidence = dict(zip(QUANTILES, _quantiles(self.planned[1]), strict=True))
        return [Event(self.name, before, self.reported, REASONS[self.reported], evidence)]

    def _remember(self, history: LossHistory, signals: Signals) -> bool:
        """Add the step's losses; whether the history became ready by that."""
        ready = history.ready
        history.add(signals.t_B.detach().cpu().float(), signals.loss_B.detach().cpu())
        return history.ready and not ready

    def stage(self, step: int) -> str:
        """The curriculum's density at a step, in a word; for another kind the source of t."""
        if self.options.kind in BY_LEVEL:
            return self.reported
        if self.history is not None and not self.history.ready:
            return OBJECTIVE
        if self.options.kind != "curriculum":
            return self.options.kind
        share = self.uniform_share(step)
        if share == 0:
            return "logit-normal"
        return "uniform" if share == 1 else "mixture"

    def metrics(self) -> dict[str, float]:
        """Quantiles of t over the last steps, and of the last plan the effective sample size of the
        weights as a share (`ess`, 1 without weights).
        """
        values: dict[str, float] = {}
        if len(self.t_N):
            shares = torch.tensor(list(QUANTILES.values()), dtype=torch.float64)
            quantiles = torch.quantile(self.t_N.double(), shares).tolist()
            values = {f"t_{name}": t for name, t in zip(QUANTILES, quantiles, strict=True)}
        if self.planned is not None:
            step, density = self.planned
            values["ess"] = effective_share(density, self.weights)
            if self.options.kind == "curriculum":
                values["uniform_share"] = self.uniform_share(step)
        return values

    def probe_row(self) -> dict[str, Any]:
        """The density that the step before the probe was trained with: its quantiles, its values at
        the probe's noise levels, and its shares in equal bins of t.
        """
        if self.planned is None:
            return {}
        density = self.planned[1]
        heights = density.pdf(torch.tensor(self.probed, dtype=torch.float64)).tolist()
        quantiles = zip(QUANTILES, _quantiles(density), strict=True)
        row: dict[str, Any] = {f"{PREFIX}{name}": t for name, t in quantiles}
        by_t = zip(self.probed, heights, strict=True)
        row |= {f"{PREFIX}t{t:.2f}": height for t, height in by_t}
        return row | {SHARES: _shares(density), f"{PREFIX}state": self.stage(self.planned[0])}

    # -- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        history = None if self.history is None else self.history.state_dict()
        return {"t_N": self.t_N, "history": history, "reported": self.reported}

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
        self.reported = state["reported"]
        if self.history is not None:
            self.history.load_state_dict(state["history"])


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _quantiles(density: TimeDensity) -> list[float]:
    """t at the shares of `QUANTILES`."""
    shares = torch.tensor(list(QUANTILES.values()), dtype=torch.float64)
    return density.quantile(shares).tolist()


def _shares(density: TimeDensity) -> list[float]:
    """Probability of each of `BINS` equal bins of t."""
    edges = torch.arange(1, BINS, dtype=torch.float64) / BINS
    below = [0.0, *density.cdf(edges).tolist(), 1.0]
    return [round(high - low, 6) for low, high in itertools.pairwise(below)]


def _bin_edges(options: TimestepsOptions, reference: TimeDensity) -> tuple[float, ...]:
    """Edges of the bins of t, from 0 to 1: equally likely under the objective, because every bin
    must be seen before the losses take effect.
    """
    shares = torch.arange(1, options.bins, dtype=torch.float64) / options.bins
    return (0.0, *reference.quantile(shares).tolist(), 1.0)


def _loss_history(
    options: TimestepsOptions, edges: tuple[float, ...]
) -> SquaredLosses | RecentLosses | None:
    if options.kind == "loss-second-moment":
        return SquaredLosses(edges, options.history)
    return RecentLosses(edges) if options.kind == "infonoise" else None


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
