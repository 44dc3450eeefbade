"""The regime variable: where training is, from the slope of the discrepancy. Plain arithmetic, one
probe at a time.

Its inputs are Dn (1: as far from the target as another clip; 0: as good as the codec allows) and
optimiser time tau (the sum of lr / lr_max). r goes from 0, semantic acquisition, to 1, refinement,
and never back. The formulas are this project's own; `docs/regime.md` has the measurements behind
them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stagecli.stage.regime_guards import Alarm, Failsafe
from stagecli.stage.regime_progress import ENDS, ProbeHistory, Progress, measure_progress
from stagecli.stage.regime_settings import RegimeSettings

SOURCES = ("measured", "replay", "linear")
MIN_POINTS = 12  # for a slope, counted from the clock's start
REFINEMENT = 0.5  # r from which the stage is refinement


@dataclass(frozen=True)
class Transition:
    """A discrete change of the regime, with its reason and the numbers behind it."""

    before: str
    after: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


class Regime:
    """r in [0, 1] from one probe at a time; it rises or stays.

    With Dn measured: beta is the slope of L = ln(Dn + 0.01) against tau over the last probes, q the
    present rate over the average rate since the clock's start, target = clip((1 - q - margin se(q))
    / 0.9, 0, 1), and r moves towards the median of the last five targets by at most `rate`.

    The clock starts at the first probe after `start` of the budget with Dn below `level` for three
    probes: an untrained network gives noise, which is further from the target than another clip is
    (Dn > 1), and the fall from noise to sound is no progress in meaning. Until then r is 0; if the
    clock never starts, only the fail-safe acts.

    r waits while Dn may be rising (p < hold_p) and at a probe without a number. Three consecutive
    probes with p < alarm_p raise an alarm, three with p >= hold_p clear it. The fail-safe lifts r
    whatever the measurement.

    schedule: step -> r, instead of the measurement: the controls `replay` and `linear`. Slope,
    clock and alarm are still computed and reported then, but do not touch r.
    """

    def __init__(
        self,
        settings: RegimeSettings,
        *,
        source: str = "measured",
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        if source not in SOURCES or (schedule is None) != (source == "measured"):
            raise ValueError(
                f"source {source!r} with{'out' if schedule is None else ''} a schedule"
            )
        self.settings = settings
        self.source = source
        self.schedule = schedule
        self.r = 0.0
        self.refined = False
        self.clock: int | None = None  # index of the finite probe at which the clock started
        self.last_step = -1
        self.history = ProbeHistory()
        self.progress = Progress()
        self.targets: list[float] = []  # the newest ENDS of them
        self.phis: list[float] = []  # lag-1 correlation of the noise, as seen by every window
        self.recent: list[float] = []  # r after the last `needed` probes
        self.alarm = Alarm(settings)
        self.failsafe = Failsafe(settings)

    @property
    def clock_step(self) -> int | None:
        """The step at which the clock started."""
        return None if self.clock is None else self.history.steps[self.clock]

    @property
    def stage(self) -> str:
        """`waiting` for the clock, `acquisition` or `refinement`."""
        if self.refined:
            return "refinement"
        return "waiting" if self.clock is None and self.source == "measured" else "acquisition"

    def reached(self, level: float) -> bool:
        """Whether r was at least `level` at the last `needed` probes, as discrete decisions
        require.
        """
        return len(self.recent) == self.settings.needed and self.recent[0] >= level

    def observe(self, step: int, tau: float, Dn: float) -> list[Transition]:
        """Take in the probe after `step` steps and return the transitions it led to. Dn may be NaN
        or infinite.

        Raises ValueError where step or tau goes backwards: the rows belong to two different runs.
        """
        backwards = step <= self.last_step or not math.isfinite(tau)
        if backwards or (self.history.taus and tau < self.history.taus[-1]):
            raise ValueError(f"probe at step {step}, tau {tau}, after step {self.last_step}")
        self.last_step = step

        # The measurement.
        transitions: list[Transition] = []
        if math.isfinite(Dn):
            self.history.add(step, tau, Dn)
            transitions += self._start_clock(step, Dn)
            self._measure()
            transitions += self._update_alarm()
            self._move()
        else:
            stage = self.stage
            reason = f"the probe is {Dn}: r stays at {self.r:.3f}"
            transitions.append(Transition(stage, stage, reason, {"Dn": str(Dn)}))

        # What acts on r whatever was measured, then the stage that follows from r.
        transitions += self._lift(step)
        self.recent = [*self.recent, self.r][-self.settings.needed :]
        if not self.refined and self.reached(REFINEMENT):
            before = self.stage
            self.refined = True
            reason = f"r is at least {REFINEMENT} for {self.settings.needed} probes in a row"
            transitions.append(Transition(before, self.stage, reason, self.row()))
        return transitions

    def _start_clock(self, step: int, Dn: float) -> list[Transition]:
        s = self.settings
        recent = self.history.discrepancies[-s.needed :]
        if self.clock is not None or step < s.start * s.steps:
            return []
        if len(recent) < s.needed or max(recent) >= s.level:
            return []
        before = self.stage
        self.clock = len(self.history.discrepancies) - 1
        reason = (
            f"Dn is under {s.level:g} for {s.needed} probes in a row: progress is counted from here"
        )
        evidence = {
            "Dn": Dn,
            "tau": self.history.taus[-1],
            "earliest": math.ceil(s.start * s.steps),
        }
        return [Transition(before, self.stage, reason, evidence)]

    def _measure(self) -> None:
        """Update `progress`, once the clock has run long enough."""
        if self.clock is None or len(self.history.logs) - self.clock < MIN_POINTS:
            return
        # A single window cannot pin down phi; where it underestimates phi, noise looks like a rise.
        known_phi = statistics.median(self.phis) if self.phis else 0.0
        self.progress, phi = measure_progress(self.history, self.clock, self.settings, known_phi)
        self.phis.append(phi)
        assert self.progress.target is not None
        self.targets = [*self.targets, self.progress.target][-ENDS:]

    def _update_alarm(self) -> list[Transition]:
        s = self.settings
        stage = self.stage
        progress = self.progress
        if progress.p_rise is None or not self.alarm.update(progress.p_rise):
            return []
        evidence = {
            "p": progress.p_rise,
            "slope": progress.beta,
            "slope_se": progress.beta_se,
            "r": self.r,
            "Dn": self.history.discrepancies[-1],
        }
        if self.alarm.on:
            effect = "r is frozen"
            if self.schedule is not None:
                effect = f"r is {self.source} and goes on"
            reason = f"D is rising (p < {s.alarm_p:g} for {s.needed} probes in a row): {effect}"
            return [Transition(stage, "frozen", reason, evidence)]
        reason = f"D is no longer rising (p >= {s.hold_p:g} for {s.needed} probes in a row)"
        return [Transition("frozen", stage, reason, evidence)]

    def _move(self) -> None:
        """Move r towards the target, unless Dn may be rising or a control sets r."""
        p_rise = self.progress.p_rise
        held = self.alarm.on or p_rise is None or p_rise < self.settings.hold_p
        if self.schedule is None and not held:
            rise = statistics.median(self.targets) - self.r
            self.r = min(1.0, self.r + min(self.settings.rate, max(0.0, rise)))

    def _lift(self, step: int) -> list[Transition]:
        """Apply the fail-safe's floor, or the r of a control."""
        if self.schedule is not None:
            self.r = max(self.r, min(1.0, max(0.0, self.schedule(step))))
            return []
        before = self.r
        self.r = self.failsafe.lift(step, self.r)
        if not self.failsafe.lifting or self.failsafe.reported:
            return []
        self.failsafe.reported = True
        reason = (
            f"the measured r is {before:.3f} at step {step}: "
            "from here the fail-safe lifts it with the step"
        )
        evidence = {"r": before, "floor": self.failsafe.floor(step), "q": self.progress.q}
        return [Transition("measured", "fail-safe", reason, evidence)]

    def row(self) -> dict[str, Any]:
        """The last probe as flat columns of probes.jsonl; None where a value is not known yet.

        `report/regime_sentences.py` reads them.
        """
        history = self.history
        has_number = bool(history.steps) and history.steps[-1] == self.last_step
        progress = self.progress
        return {
            "Dn": history.discrepancies[-1] if has_number else None,
            "tau": history.taus[-1] if history.taus else None,
            "slope": progress.beta,
            "slope_se": _finite(progress.beta_se),
            "q": progress.q,
            "q_se": _finite(progress.q_se),
            "target": progress.target,
            "r": self.r,
            "p_rise": progress.p_rise,
            "frozen": self.alarm.on,
            "failsafe": self.failsafe.lifting,
            "stage": self.stage,
            "clock_step": self.clock_step,
            "source": self.source,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything a resume needs, as JSON; a resumed Regime continues to the bit."""
        return {
            "r": self.r,
            "refined": self.refined,
            "clock": self.clock,
            "last_step": self.last_step,
            "history": {name: list(values) for name, values in asdict(self.history).items()},
            "progress": {k: _text_infinity(v) for k, v in asdict(self.progress).items()},
            "targets": list(self.targets),
            "phis": list(self.phis),
            "recent": list(self.recent),
            "alarm": self.alarm.state_dict(),
            "failsafe": self.failsafe.state_dict(),
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
        self.refined = state["refined"]
        self.clock = state["clock"]
        self.last_step = state["last_step"]
        self.history = ProbeHistory(**{name: list(v) for name, v in state["history"].items()})
        values = {name: _number(value) for name, value in state["progress"].items()}
        self.progress = Progress(**values)
        self.targets = list(state["targets"])
        self.phis = list(state["phis"])
        self.recent = list(state["recent"])
        self.alarm.load_state_dict(state["alarm"])
        self.failsafe.load_state_dict(state["failsafe"])


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def _text_infinity(value: float | None) -> float | str | None:
    """`value` with infinity, which JSON cannot hold, as text."""
    return "inf" if value is not None and math.isinf(value) else value


def _number(value: float | str | None) -> float | None:
    """The inverse of `_text_infinity`."""
    return math.inf if value == "inf" else value  # type: ignore[return-value]
