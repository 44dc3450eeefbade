"""The options of `[stage.timesteps]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import model_validator

from stagecli.bounds import Range
from stagecli.schema.section import Bins, Fraction, NoiseLevel, PositiveFraction, PositiveReal, Real
from stagecli.stage.densities import LogitNormal
from stagecli.stage.options import MechanismOptions, RegimeNeed

DensityKind = Literal[
    "progress",
    "discrepancy",
    "infonoise",
    "uniform",
    "logit-normal",
    "truncated-logit-normal",
    "log-snr-normal",
    "shift",
    "speed",
    "curriculum",
    "loss-second-moment",
]
BY_LEVEL = ("progress", "discrepancy")  # kinds that follow the noise levels of the regime
FOLLOWING = (*BY_LEVEL, "infonoise")  # kinds that follow a measurement, above a uniform floor
Width = Annotated[float, Range(0.05, 100)]
ENDED = "the density follows the measured progress and has no ends to set"


class TimestepsOptions(MechanismOptions):
    removed: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("m0", "s0", "m1", "s1"), ENDED),
        "follow_loss": 'kind = "infonoise" follows the loss',
    }
    removed_values: ClassVar[Mapping[tuple[str, str], str]] = {
        ("kind", "adaptive"): "`progress`, the default, follows the measured progress",
    }

    kind: DensityKind = "progress"
    """`progress` and `discrepancy` follow [stage.regime]; the others are baselines."""
    floor: Fraction = 0.1
    """Share of t drawn uniformly (progress, discrepancy, infonoise)."""
    floor_r: Fraction = 0.0
    """Added to `floor`, times r (progress, discrepancy)."""
    missing: Fraction = 0.5
    """Share of the rest by Dn^2, what is missing, instead of by what can be had (progress)."""
    power: Annotated[float, Range(0, 8)] = 2.0
    """Power of Dn in t (1 - t) Dn^power at r = 0 (discrepancy)."""
    power_r: Annotated[float, Range(0, 8)] = 0.0
    """Subtracted from `power`, times r (discrepancy)."""
    kappa: Fraction = 0.0
    """Power of the importance weights back to [objective]; 1: keeps the objective (as floor)."""
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
    """Bins of t (loss-second-moment, infonoise)."""
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
        if self.kind not in FOLLOWING and self.kappa:
            raise ValueError(f"kappa requires a kind of {', '.join(FOLLOWING)}, not {self.kind!r}")
        if self.kind not in BY_LEVEL and self.floor_r:
            raise ValueError(f"floor_r requires a kind of {', '.join(BY_LEVEL)}, not {self.kind!r}")
        if self.kappa and not self.floor:
            raise ValueError(
                "kappa requires a floor above 0: without one the importance weights have no bound"
            )
        if self.power_r > self.power:
            raise ValueError("power_r must not exceed power: the power of Dn would be negative")
        if self.low >= self.high:
            raise ValueError("low must be below high")
        below_low, below_high = LogitNormal(self.mean, self.std, self.low, self.high).mass
        mass = below_high - below_low
        if self.kind == "truncated-logit-normal" and mass < 1e-4:
            raise ValueError(
                f"[low, high] contains hardly anything ({mass:.1g}) of the logit-normal mass"
            )
        return self

    def adapts_density(self) -> bool:
        return self.kind in (*FOLLOWING, "loss-second-moment")

    def regime_need(self) -> RegimeNeed | None:
        if self.kind not in BY_LEVEL:
            return None
        reason = f'kind = "{self.kind}" follows the progress that it measures'
        return RegimeNeed(reason, "kind", "choose another stage.timesteps.kind")
