"""r on synthetic curves of Dn, as Markdown: `python docs/experiments/regime_curves.py`.

60 probes, 20 seeds, multiplicative AR(1) noise of lag-1 correlation 0.5.
"""

from __future__ import annotations

import math
import statistics

import numpy as np

from stagecli.stage.regime_variable import Regime, RegimeSettings

PROBES = 60
SEEDS = 20
NOISES = (0.0, 0.01, 0.03)
SHARE = np.arange(1, PROBES + 1) / PROBES  # of the budget
CURVES = {
    "steady: 0.9 to 0.3 on a line": 0.9 - 0.6 * SHARE,
    "from noise (1.7) to sound, then steady": 0.95 * np.exp(-0.8 * SHARE)
    + 0.9 * np.exp(-SHARE / 0.03),
    "exponential, time constant 12 %": 0.3 + 0.9 * np.exp(-SHARE / 0.12),
    "power law": 0.9 * (SHARE / 0.05 + 1) ** -0.6,
    "two stages, the second an eighth as fast from 35 %": np.exp(
        -0.05 - np.where(SHARE < 0.35, SHARE / 0.35, 1 + 0.12 * (SHARE - 0.35))
    ),
    "plateau until 30 %, then a fall": np.where(
        SHARE < 0.3, 0.95, 0.3 + 0.65 * np.exp(-(SHARE - 0.3) / 0.15)
    ),
    "rise from 30 %": np.where(
        SHARE < 0.3, 0.9 * np.exp(-3 * SHARE), 0.9 * np.exp(-0.9 + 0.8 * (SHARE - 0.3))
    ),
    "noise only, at 0.9": np.full(PROBES, 0.9),
}


def noisy(curve: np.ndarray, seed: int, deviation: float) -> np.ndarray:
    """The curve times AR(1) noise."""
    white = np.random.default_rng(seed).standard_normal(PROBES + 50)
    noise = np.zeros(PROBES + 50)
    for i in range(1, PROBES + 50):
        noise[i] = 0.5 * noise[i - 1] + math.sqrt(0.75) * white[i]
    return curve * np.exp(deviation * noise[50:])


def follow(values: np.ndarray) -> tuple[list[float], bool]:
    """r after every probe, and whether there was an alarm."""
    regime = Regime(RegimeSettings(probes=PROBES, tau_end=float(PROBES)))
    trace = []
    alarm = False
    for i, value in enumerate(values, 1):
        transitions = regime.observe(i, float(i), {0.5: float(value)})
        alarm = alarm or any(transition.after == "frozen" for transition in transitions)
        trace.append(regime.r)
    return trace, alarm


def main() -> None:
    columns = ("curve", "noise", "r at 25 %", "50 %", "75 %", "100 %", "alarms")
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for name, curve in CURVES.items():
        for deviation in NOISES:
            seeds = range(SEEDS if deviation else 1)
            runs = [follow(noisy(curve, seed, deviation)) for seed in seeds]
            cells = []
            for share in (0.25, 0.5, 0.75, 1.0):
                values = [trace[round(share * PROBES) - 1] for trace, _ in runs]
                cells.append(f"{statistics.median(values):.2f}")
                if deviation:
                    cells[-1] += f" ({min(values):.2f} to {max(values):.2f})"
            alarms = sum(alarm for _, alarm in runs)
            label = f"{100 * deviation:.0f} %" if deviation else "none"
            print(f"| {name} | {label} | {' | '.join(cells)} | {alarms} of {len(runs)} |")


if __name__ == "__main__":
    main()
