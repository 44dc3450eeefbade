"""The probes of a run so far, and the pace of the progress they show. Plain arithmetic."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from stagecli.stage.regime_settings import RegimeSettings
from stagecli.stage.regime_slope import fit_line

OFFSET = 0.01  # in L = ln(Dn + OFFSET): keeps the logarithm finite at the codec's ceiling
LEAST_FALL = 0.02  # of L since the start; under 2 % there is no average rate to compare with
ENDS = 5  # probes whose median is "L at the start" and "L now"; also the median over targets
STEADY = 0.9  # r's target is 1 where progress is at 1 - STEADY of its average


@dataclass
class ProbeHistory:
    """The probes with a finite Dn so far: step, optimiser time, Dn, and L = ln(Dn + OFFSET)."""

    steps: list[int] = field(default_factory=list)
    taus: list[float] = field(default_factory=list)
    discrepancies: list[float] = field(default_factory=list)
    logs: list[float] = field(default_factory=list)

    def add(self, step: int, tau: float, Dn: float) -> None:
        self.steps.append(step)
        self.taus.append(tau)
        self.discrepancies.append(Dn)
        self.logs.append(math.log(max(Dn, 0.0) + OFFSET))


@dataclass(frozen=True)
class Progress:
    """Pace of the progress at the newest probe; None until there are enough probes for a slope.

    beta: slope of L per unit of tau; q: present rate over the average rate since the clock's start;
    beta_se, q_se: their standard errors; target: value that r moves towards; p_rise: one-sided p of
    "not rising".
    """

    beta: float | None = None
    beta_se: float | None = None
    q: float | None = None
    q_se: float | None = None
    target: float | None = None
    p_rise: float | None = None


def measure_progress(
    history: ProbeHistory, clock: int, settings: RegimeSettings, known_phi: float
) -> tuple[Progress, float]:
    """The pace at the newest probe, and the lag-1 correlation of the noise around the slope.

    clock: index of the probe at which the clock started, at least MIN_POINTS ago; known_phi: that
    correlation as seen by earlier windows.
    """
    taus = history.taus
    logs = history.logs

    # The present slope.
    first = max(clock, len(logs) - settings.window)
    line = fit_line(taus[first:], logs[first:], known_phi)

    # The average rate. Medians of both ends: one stray probe at the start would shift every later
    # average.
    head = slice(clock, clock + ENDS)
    elapsed = statistics.median(taus[-ENDS:]) - statistics.median(taus[head])
    fall = statistics.median(logs[head]) - statistics.median(logs[-ENDS:])
    scale = elapsed / max(fall, LEAST_FALL)
    q = -line.slope * scale
    q_se = line.se * scale if scale > 0 else math.inf

    # The margin: without it, noise around a steady line turns into targets, and the latch keeps
    # every one.
    sure = q + settings.margin * q_se
    target = min(1.0, max(0.0, (1 - sure) / STEADY))
    return Progress(line.slope, line.se, q, q_se, target, line.p_rise), line.phi
