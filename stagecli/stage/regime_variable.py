"""The regime variable: where training is, from the slope of the discrepancy. Plain arithmetic, one probe at a time.

Fed with Dn (1: as far from the target as another clip; 0: as good as the codec allows) and optimiser time tau
(the sum of lr / lr_max). r goes from 0, semantic acquisition, to 1, refinement, and never back.
The formulas are this project's own; `docs/regime.md` says how they were measured.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stagecli.errors import StageError

SOURCES = ("measured", "replay", "linear")
OFFSET = 0.01  # in L = ln(Dn + OFFSET): at the codec's ceiling the logarithm stays finite
LEAST_FALL = 0.02  # of L since the start; under 2 % there is no average rate to compare with
ENDS = 5  # probes whose median is "L at the start" and "L now"; also the median over targets
MIN_POINTS = 12  # for a slope, counted from the clock's start
STEADY = 0.9  # r's target is 1 where progress is at 1 - STEADY of its average
REFINEMENT = 0.5  # r from which the stage is refinement


@dataclass(frozen=True)
class RegimeSettings:
    """What the regime variable is computed with; steps is the budget S.

    start: share of the budget before which the clock never starts; level: Dn under which it starts;
    window: probes of the slope; rate: largest rise of r per probe; margin: standard errors added to q before r
    believes it; alarm_p, hold_p: one-sided p below which D counts as rising (alarm) or r waits;
    needed: probes in a row for anything discrete; failsafe: (begin, length) as shares of the budget, None: off.
    """

    steps: int
    start: float = 0.05
    level: float = 0.9
    window: int = 20
    rate: float = 0.015
    margin: float = 2.0
    alarm_p: float = 0.01
    hold_p: float = 0.1
    needed: int = 3
    failsafe: tuple[float, float] | None = (0.6, 0.3)


@dataclass(frozen=True)
class RegimeEvent:
    """Something discrete happened, with the reason and the numbers behind it."""

    before: str
    after: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """slope per unit of x; se: its standard error for AR(1) noise of lag-1 correlation phi;
    p_rise: one-sided p of "not rising"; noise: standard deviation of y around the line."""

    slope: float
    se: float
    p_rise: float
    noise: float
    phi: float


def theil_sen(x: Sequence[float], y: Sequence[float]) -> float:
    """Median slope of all pairs with different x (Theil 1950, Sen 1968); 0 if there is none. x ascends."""
    slopes = []
    for i, (x0, y0) in enumerate(zip(x, y, strict=True), 1):
        slopes += [(b - y0) / (a - x0) for a, b in zip(x[i:], y[i:], strict=True) if a > x0]
    return statistics.median(slopes) if slopes else 0.0


def fit_line(x: Sequence[float], y: Sequence[float], least_phi: float = 0.0) -> Line:
    """Theil-Sen line with an error that knows about AR(1) noise and is not ruled by outliers.

    Residuals are cut at 3 robust standard deviations. Their lag-1 correlation, which a fit of n points
    biases by -(2 + 4 phi) / n, is corrected for that; it inflates the variance by (1 + phi) / (1 - phi)
    and shrinks the degrees of freedom alike. At least 6 points. least_phi: what is known of phi from elsewhere.
    """
    n = len(x)
    slope = theil_sen(x, y)
    raw = [b - slope * a for a, b in zip(x, y, strict=True)]
    middle = statistics.median(raw)
    raw = [v - middle for v in raw]
    limit = 3 * 1.4826 * statistics.median(map(abs, raw))
    rest = [min(limit, max(-limit, v)) for v in raw]
    mean = math.fsum(rest) / n
    rest = [v - mean for v in rest]
    squares = math.fsum(v * v for v in rest)
    x_mean = math.fsum(x) / n
    spread = math.fsum((v - x_mean) ** 2 for v in x)
    if spread == 0:  # the optimiser stood still: nothing is known about a slope
        return Line(0.0, math.inf, 0.5, math.sqrt(squares / n), 0.0)
    phi = (
        math.fsum(a * b for a, b in zip(rest[1:], rest, strict=False)) / squares
        if squares > 0
        else 0.0
    )
    phi = min(0.9, max(0.0, (n * phi + 2) / (n - 4)))
    inflation = (1 + max(phi, least_phi)) / (1 - max(phi, least_phi))
    se = math.sqrt(squares / (n - 2) / spread * inflation)
    # Rounding leaves residuals of 1e-16 on an exact line; they are no evidence.
    se = max(se, 1e-9 / math.sqrt(spread))
    p_rise = _upper_tail(slope / se, max(2.0, n / inflation - 2))
    return Line(slope, se, p_rise, math.sqrt(squares / (n - 2)), phi)


def _upper_tail(t: float, freedom: float) -> float:
    """P(T > t) of Student's distribution."""
    from scipy.special import stdtr  # reading a run's rows needs the names above, not SciPy

    return float(stdtr(freedom, -t))


class Regime:
    """r in [0, 1] from one probe at a time; it rises or stays.

    With Dn measured: beta is the slope of L = ln(Dn + 0.01) against tau over the last probes, q the present rate
    over the average rate since the clock's start, target = clip((1 - q - margin se(q)) / 0.9, 0, 1), and r moves
    towards the median of the last five targets by at most `rate`.

    The clock starts at the first probe after `start` of the budget with Dn under `level` for three probes: an
    untrained network gives noise, which is further from the target than another clip is (Dn > 1), and the fall
    from noise to sound is no progress in meaning. Until then r is 0, and if it never comes, only the fail-safe acts.

    r waits while D may be rising (p < hold_p) and at a probe without a number. Three probes in a row with
    p < alarm_p raise an alarm, three with p >= hold_p end it. The fail-safe lifts r whatever the measurement
    says, because the measurement is what may have failed.

    schedule: step -> r, instead of the measurement: the controls `replayed` and `linear`. Slope, clock and
    alarm are still computed and reported then, but do not touch r.
    """

    _STATE = (
        *(
            "r",
            "beta",
            "beta_se",
            "q",
            "q_se",
            "target",
            "p_rise",
            "frozen",
            "failsafe",
            "clock",
            "last_step",
        ),
        *("_steps", "_taus", "_logs", "_dns", "_targets", "_phis", "_recent"),
        *("_rising", "_calm", "_warned", "_refined"),
    )

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
        self.beta: float | None = None  # slope of L per unit of tau, and its standard error
        self.beta_se: float | None = None
        self.q: float | None = (
            None  # rate now / average rate since the clock's start, and its standard error
        )
        self.q_se: float | None = None
        self.target: float | None = None
        self.p_rise: float | None = None
        self.frozen = False  # the alarm is on
        self.failsafe = False  # at the last probe, r stood on the fail-safe's floor
        self.clock: int | None = None  # index among the finite probes of the clock's start
        self.last_step = -1
        self._steps: list[int] = []  # of the finite probes, as are the next three
        self._taus: list[float] = []
        self._logs: list[float] = []
        self._dns: list[float] = []
        self._targets: list[float] = []
        self._phis: list[float] = []  # lag-1 correlation of the noise, as every window saw it
        self._recent: list[float] = []  # r after the last probes
        self._rising = self._calm = 0  # probes in a row
        self._warned = self._refined = False

    @property
    def clock_step(self) -> int | None:
        """The step at which the clock started."""
        return None if self.clock is None else self._steps[self.clock]

    @property
    def stage(self) -> str:
        """`waiting` for the clock, `acquisition` or `refinement`."""
        if self._refined:
            return "refinement"
        return "waiting" if self.clock is None and self.source == "measured" else "acquisition"

    def reached(self, level: float) -> bool:
        """r was at least `level` at the last three probes (`needed`): what a discrete decision asks for."""
        return len(self._recent) == self.settings.needed and self._recent[0] >= level

    def observe(self, step: int, tau: float, Dn: float) -> list[RegimeEvent]:
        """Take in the probe after `step` steps; the events it led to. Dn may be NaN or infinite.

        Raises ValueError where step or tau goes backwards: the rows belong to two different runs.
        """
        if (
            step <= self.last_step
            or not math.isfinite(tau)
            or (self._taus and tau < self._taus[-1])
        ):
            raise ValueError(f"probe at step {step}, tau {tau}, after step {self.last_step}")
        self.last_step = step
        events: list[RegimeEvent] = []
        if math.isfinite(Dn):
            self._keep(step, tau, Dn)
            events += self._start_clock(step, Dn)
            self._measure()
            events += self._alarm()
            self._move()
        else:
            stage = self.stage
            events.append(
                RegimeEvent(
                    stage, stage, f"the probe is {Dn}: r stays at {self.r:.3f}", {"Dn": str(Dn)}
                )
            )
        events += self._lift(step)
        self._recent = [*self._recent, self.r][-self.settings.needed :]
        if not self._refined and self.reached(REFINEMENT):
            before = self.stage
            self._refined = True
            reason = f"r is at least {REFINEMENT} for {self.settings.needed} probes in a row"
            events.append(RegimeEvent(before, self.stage, reason, self.row()))
        return events

    def _keep(self, step: int, tau: float, Dn: float) -> None:
        self._steps.append(step)
        self._taus.append(tau)
        self._dns.append(Dn)
        self._logs.append(math.log(max(Dn, 0.0) + OFFSET))

    def _start_clock(self, step: int, Dn: float) -> list[RegimeEvent]:
        s = self.settings
        recent = self._dns[-s.needed :]
        if (
            self.clock is not None
            or step < s.start * s.steps
            or len(recent) < s.needed
            or max(recent) >= s.level
        ):
            return []
        before = self.stage
        self.clock = len(self._dns) - 1
        reason = (
            f"Dn is under {s.level:g} for {s.needed} probes in a row: progress is counted from here"
        )
        evidence = {"Dn": Dn, "tau": self._taus[-1], "earliest": math.ceil(s.start * s.steps)}
        return [RegimeEvent(before, self.stage, reason, evidence)]

    def _measure(self) -> None:
        """beta, q and target, once the clock has run long enough."""
        if self.clock is None or len(self._logs) - self.clock < MIN_POINTS:
            return
        first = max(self.clock, len(self._logs) - self.settings.window)
        # One window says little about phi, and where it says too little, noise looks like a rise.
        known = statistics.median(self._phis) if self._phis else 0.0
        line = fit_line(self._taus[first:], self._logs[first:], known)
        self._phis.append(line.phi)
        # Medians of both ends: one stray probe at the start would shift every later average.
        head = slice(self.clock, self.clock + ENDS)
        elapsed = statistics.median(self._taus[-ENDS:]) - statistics.median(self._taus[head])
        fall = statistics.median(self._logs[head]) - statistics.median(self._logs[-ENDS:])
        scale = elapsed / max(fall, LEAST_FALL)
        self.beta = line.slope
        self.beta_se = line.se
        self.p_rise = line.p_rise
        self.q = -line.slope * scale
        self.q_se = line.se * scale if scale > 0 else math.inf
        # The margin: without it, noise around a steady line turns into targets, and the latch keeps every one.
        sure = self.q + self.settings.margin * self.q_se
        self.target = min(1.0, max(0.0, (1 - sure) / STEADY))
        self._targets = [*self._targets, self.target][-ENDS:]

    def _alarm(self) -> list[RegimeEvent]:
        s = self.settings
        stage = self.stage
        if self.p_rise is None:
            return []
        self._rising = self._rising + 1 if self.p_rise < s.alarm_p else 0
        self._calm = self._calm + 1 if self.p_rise >= s.hold_p else 0
        evidence = {
            "p": self.p_rise,
            "slope": self.beta,
            "slope_se": self.beta_se,
            "r": self.r,
            "Dn": self._dns[-1],
        }
        if not self.frozen and self._rising >= s.needed:
            self.frozen = True
            what = "r is frozen" if self.schedule is None else f"r is {self.source} and goes on"
            reason = f"D is rising (p < {s.alarm_p:g} for {s.needed} probes in a row): {what}"
            return [RegimeEvent(stage, "frozen", reason, evidence)]
        if self.frozen and self._calm >= s.needed:
            self.frozen = False
            reason = f"D is no longer rising (p >= {s.hold_p:g} for {s.needed} probes in a row)"
            return [RegimeEvent("frozen", stage, reason, evidence)]
        return []

    def _move(self) -> None:
        held = self.frozen or self.p_rise is None or self.p_rise < self.settings.hold_p
        if self.schedule is None and not held:
            rise = statistics.median(self._targets) - self.r
            self.r = min(1.0, self.r + min(self.settings.rate, max(0.0, rise)))

    def _lift(self, step: int) -> list[RegimeEvent]:
        """The fail-safe's floor, or the r of a control."""
        s = self.settings
        if self.schedule is not None:
            self.r = max(self.r, min(1.0, max(0.0, self.schedule(step))))
            return []
        if s.failsafe is None:
            return []
        begin, length = s.failsafe
        floor = min(1.0, max(0.0, (step - begin * s.steps) / (length * s.steps)))
        before = self.r
        self.failsafe = floor > self.r or (self.failsafe and floor >= self.r)
        self.r = max(self.r, floor)
        if not self.failsafe or self._warned:
            return []
        self._warned = True
        reason = f"the measured r is {before:.3f} at step {step}: from here the fail-safe lifts it with the step"
        return [
            RegimeEvent("measured", "fail-safe", reason, {"r": before, "floor": floor, "q": self.q})
        ]

    def row(self) -> dict[str, Any]:
        """The last probe as flat JSON: what `stage.reading` reads. Numbers that do not exist yet are None."""
        return {
            "Dn": self._dns[-1] if self._steps and self._steps[-1] == self.last_step else None,
            "tau": self._taus[-1] if self._taus else None,
            "slope": self.beta,
            "slope_se": _finite(self.beta_se),
            "q": self.q,
            "q_se": _finite(self.q_se),
            "target": self.target,
            "r": self.r,
            "p_rise": self.p_rise,
            "frozen": self.frozen,
            "failsafe": self.failsafe,
            "stage": self.stage,
            "clock_step": self.clock_step,
            "source": self.source,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything a resume needs, as JSON; a resumed Regime goes on to the bit."""
        state = {name.lstrip("_"): getattr(self, name) for name in self._STATE}
        return {k: list(v) if isinstance(v, list) else _text_infinity(v) for k, v in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError unless the state has exactly the names of `state_dict`."""
        names = {name.lstrip("_"): name for name in self._STATE}
        if set(state) != set(names):
            raise ValueError(
                f"the state of the regime differs in {sorted(set(state) ^ set(names))}"
            )
        for key, name in names.items():
            value = state[key]
            setattr(
                self,
                name,
                list(value) if isinstance(value, list) else math.inf if value == "inf" else value,
            )


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def _text_infinity(value: Any) -> Any:
    return (
        "inf" if isinstance(value, float) and math.isinf(value) else value
    )  # JSON has no infinity


# -- the controls ----------------------------------------------------------------------------------


def linear(steps: int) -> Callable[[int], float]:
    """r = share of the budget that is done: the control that measures nothing."""
    return lambda step: min(1.0, max(0.0, step / steps))


def replay(
    rows: Sequence[Mapping[str, Any]], *, steps: int, source_steps: int | None = None
) -> Callable[[int], float]:
    """r of another run's probe rows ("step", "r"), linear between its probes; 0 before the first, held after the last.

    Interpolated in the step, not in tau: a plan belongs to a step, so that two runs with the same probe steps get
    the same r at every step whatever their learning rates. source_steps: the other run's budget, if it differs;
    r is then replayed at the same share of the budget. Raises StageError if no row has both numbers.
    """
    known = sorted({int(row["step"]): float(row["r"]) for row in rows if _has_r(row)}.items())
    if not known:
        raise StageError(
            "the run to replay has no probe with an r",
            hint='name a run that was trained with [stage.regime], or choose source = "linear"',
        )
    scale = (source_steps or steps) / steps
    at = [step for step, _ in known]
    highest = 0.0
    values = [highest := max(highest, min(1.0, r)) for _, r in known]

    def schedule(step: int) -> float:
        where = step * scale
        i = bisect_right(at, where)
        if i == 0 or i == len(at):
            return 0.0 if i == 0 else values[-1]
        share = (where - at[i - 1]) / (at[i] - at[i - 1])
        return values[i - 1] + share * (values[i] - values[i - 1])

    return schedule


def _has_r(row: Mapping[str, Any]) -> bool:
    return all(type(row.get(k)) in (int, float) and math.isfinite(row[k]) for k in ("step", "r"))
