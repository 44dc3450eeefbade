"""The regime variable r: the share of the semantic progress that a budget allows which has been
made.

It goes from 0, semantic acquisition, to 1, refinement, and never back. The formulas are this
project's own; `docs/regime.md` has the measurements behind them. Plain arithmetic, one probe at a
time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stagecli.stage.base import NoiseLevel
from stagecli.stage.regime_alarm import CALM, NEEDED, RISING, Alarm
from stagecli.stage.regime_controls import Control
from stagecli.stage.regime_progress import SPOKEN, ProbeHistory, measure_levels, share_made
from stagecli.stage.regime_slope import SlopeFit, fit_line

REFINEMENT = 0.5  # r from which the stage is refinement
FASTEST = 5.0  # r needs at least a fifth of the probes to go from 0 to 1


@dataclass(frozen=True)
class RegimeSettings:
    """What r depends on beyond the probes.

    probes: number of probes in the budget; tau_end: optimiser time at the end of the budget.
    """

    probes: int
    tau_end: float


@dataclass(frozen=True)
class Transition:
    """A discrete change of the regime, with its reason and the numbers behind it."""

    before: str
    after: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


class Regime:
    """r in [0, 1] from one probe at a time; it rises or stays.

    From the fifth probe on, r_now = sum G / (sum G + sum R + 0.02), where G is the progress made
    and R the progress still to come at each noise level (`regime_progress`). r rises to r_now by at
    most 5 / N per probe, N probes in the budget. Both stay as they are at a probe without a number,
    and while an alarm says that D is rising.

    control: gives r and r_now instead of the measurement. Progress and alarm are still computed and
    reported then, but do not touch r.
    """

    def __init__(self, settings: RegimeSettings, control: Control | None = None) -> None:
        self.settings = settings
        self.control = control
        self.r = 0.0
        self.r_now = 0.0
        self.refined = False
        self.refined_streak = 0  # consecutive probes with r at the threshold of refinement
        self.last_step = -1
        self.history = ProbeHistory()
        self.measured: tuple[NoiseLevel, ...] = ()
        self.slope: SlopeFit | None = None  # of Dn against tau, over the last probes
        self.phis: list[float] = []  # lag-1 correlation of the noise, as seen by every window
        self.alarm = Alarm()

    @property
    def source(self) -> str:
        """`measured`, or the name of the control."""
        return "measured" if self.control is None else self.control.source

    @property
    def levels(self) -> tuple[NoiseLevel, ...]:
        """Discrepancy and progress by noise level, for the mechanisms; empty until a probe."""
        if self.control is not None and self.control.levels is not None:
            return self.control.levels(self.last_step)
        return self.measured or self.history.last

    @property
    def stage(self) -> str:
        """`waiting` for enough probes, `acquisition` or `refinement`."""
        if self.refined:
            return "refinement"
        return "waiting" if self.control is None and not self.measured else "acquisition"

    def observe(self, step: int, tau: float, Dn_t: Mapping[float, float]) -> list[Transition]:
        """Take in the probe after `step` steps and return the transitions it led to.

        Dn_t: noise level -> Dn, of the same levels every time; NaN and infinity are allowed. Raises
        ValueError where step or tau goes backwards: the rows belong to two different runs.
        """
        backwards = step <= self.last_step or not math.isfinite(tau)
        if backwards or (self.history.taus and tau < self.history.taus[-1]):
            raise ValueError(f"probe at step {step}, tau {tau}, after step {self.last_step}")
        self.last_step = step

        # The measurement.
        transitions: list[Transition] = []
        if all(math.isfinite(Dn) for Dn in Dn_t.values()):
            self.history.add(step, tau, Dn_t)
            transitions += self._measure()
            transitions += self._update_alarm()
            self._move()
        else:
            stage = self.stage
            reason = f"the probe has no value: r stays at {self.r:.3f}"
            evidence = {f"Dn at t {t:.2f}": str(Dn) for t, Dn in Dn_t.items()}
            transitions.append(Transition(stage, stage, reason, evidence))

        # A control, then the stage that follows from r.
        if self.control is not None:
            self.r, self.r_now = self.control.values(step)
        return transitions + self._update_stage()

    def _measure(self) -> list[Transition]:
        before = self.stage
        history = self.history
        self.measured = measure_levels(history, self.settings.tau_end, self.measured)
        if not self.measured:
            return []
        # A single window cannot pin down phi; where it underestimates phi, noise looks like a rise.
        known_phi = statistics.median(self.phis) if self.phis else 0.0
        window = history.window
        self.slope = fit_line(history.taus[window], history.means[window], known_phi)
        self.phis.append(self.slope.phi)
        if before == self.stage:
            return []
        reason = f"{SPOKEN} probes are enough to measure progress by"
        evidence = {"Dn": history.means[-1], "tau": history.taus[-1]}
        return [Transition(before, self.stage, reason, evidence)]

    def _update_alarm(self) -> list[Transition]:
        if self.slope is None or not self.alarm.update(self.slope.p_rise):
            return []
        stage = self.stage
        evidence = {
            "p": self.slope.p_rise,
            "slope": self.slope.slope,
            "slope_se": self.slope.se,
            "r": self.r,
            "Dn": self.history.means[-1],
        }
        if self.alarm.on:
            effect = "r is frozen"
            if self.control is not None:
                effect = f"r is {self.source} and goes on"
            reason = f"D is rising (p < {RISING:g} for {NEEDED} probes in a row): {effect}"
            return [Transition(stage, "frozen", reason, evidence)]
        reason = f"D is no longer rising (p >= {CALM:g} for {NEEDED} probes in a row)"
        return [Transition("frozen", stage, reason, evidence)]

    def _move(self) -> None:
        """Take r_now from the measurement, and let r follow it upwards."""
        rising = self.slope is not None and self.slope.p_rise < CALM
        if self.control is not None or not self.measured or self.alarm.on or rising:
            return
        self.r_now = share_made(self.measured)
        step = FASTEST / self.settings.probes
        self.r = min(1.0, self.r + min(step, max(0.0, self.r_now - self.r)))

    def _update_stage(self) -> list[Transition]:
        self.refined_streak = self.refined_streak + 1 if self.r >= REFINEMENT else 0
        if self.refined or self.refined_streak < NEEDED:
            return []
        before = self.stage
        self.refined = True
        reason = f"r is at least {REFINEMENT} for {NEEDED} probes in a row"
        evidence = {"r": self.r, "r_now": self.r_now}
        if self.history.steps:
            evidence["Dn"] = self.history.means[-1]
        return [Transition(before, self.stage, reason, evidence)]

    def row(self) -> dict[str, Any]:
        """The last probe as flat columns of probes.jsonl; None where not known."""
        history = self.history
        has_number = bool(history.steps) and history.steps[-1] == self.last_step
        slope = self.slope
        row = {
            "Dn": history.means[-1] if has_number else None,
            "tau": history.taus[-1] if history.taus else None,
            "tau_end": self.settings.tau_end,
            "slope": None if slope is None else slope.slope,
            "slope_se": None if slope is None or math.isinf(slope.se) else slope.se,
            "p_rise": None if slope is None else slope.p_rise,
            "r": self.r,
            "r_now": self.r_now,
        }
        for level in self.measured if has_number else ():
            row[f"G_t{level.t:.2f}"] = level.made
            row[f"R_t{level.t:.2f}"] = level.to_come
            row[f"r_t{level.t:.2f}"] = level.r
        return row | {"frozen": self.alarm.on, "stage": self.stage, "source": self.source}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resume needs, as JSON; a resumed Regime continues to the bit."""
        history = self.history
        slope = self.slope
        return {
            "r": self.r,
            "r_now": self.r_now,
            "refined": self.refined,
            "refined_streak": self.refined_streak,
            "last_step": self.last_step,
            "steps": list(history.steps),
            "taus": list(history.taus),
            "Dn_t": [[t, list(values)] for t, values in history.Dn_t.items()],
            "measured": [asdict(level) for level in self.measured],
            "slope": None if slope is None else {k: str(v) for k, v in asdict(slope).items()},
            "phis": list(self.phis),
            "alarm": self.alarm.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError unless the state has exactly the names of `state_dict`."""
        expected = set(self.state_dict())
        if set(state) != expected:
            raise ValueError(
                f"the state of the regime differs in {sorted(set(state) ^ expected)}: "
                "it was written by another version"
            )
        self.r = state["r"]
        self.r_now = state["r_now"]
        self.refined = state["refined"]
        self.refined_streak = state["refined_streak"]
        self.last_step = state["last_step"]
        Dn_t = {t: list(values) for t, values in state["Dn_t"]}
        self.history = ProbeHistory(list(state["steps"]), list(state["taus"]), Dn_t)
        self.measured = tuple(NoiseLevel(**level) for level in state["measured"])
        slope = state["slope"]
        # As text, because JSON cannot hold the infinite error of a slope that cannot be estimated.
        self.slope = None if slope is None else SlopeFit(**{k: float(v) for k, v in slope.items()})
        self.phis = list(state["phis"])
        self.alarm.load_state_dict(state["alarm"])
