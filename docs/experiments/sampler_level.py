"""How much level a sampler loses where the data cannot be predicted: exact velocities, no network.

    python docs/experiments/sampler_level.py

A channel of frames is Gaussian with mean 0 and standard deviation sigma, 1 for what nothing is
known of. Its exact velocity is solved with a few steps; what arrives should have sigma again. The
frames are companded with the exponent 0.3, so that a factor g of a frame is g^(1 / 0.3) of the
amplitude: the table shows that in dB.
"""

from __future__ import annotations

import math

import torch

from stagecli.flow import sampler

ALPHA = 0.3


def level_db(name: str, steps: int, sigma: float) -> float:
    """Level in dB of what a sampler makes, over the right one."""

    def velocity(x_BTC: torch.Tensor, t: float) -> torch.Tensor:
        variance = (1 - t) ** 2 * sigma**2 + t**2
        return (t - (1 - t) * sigma**2) / variance * x_BTC

    start_BTC = torch.ones(1, 1, 1, dtype=torch.float64)
    end = float(sampler.SAMPLERS[name](velocity, start_BTC, sampler.times(steps)))
    return 20 * math.log10(end / sigma) / ALPHA


def main() -> None:
    sigmas = (1.0, 0.7, 0.5, 0.3)
    print("| sampler | steps | calls | " + " | ".join(f"sigma {sigma}" for sigma in sigmas) + " |")
    print("|---|---|---|" + "---|" * len(sigmas))
    for name, all_steps in (("euler", (4, 8, 16, 50)), ("ab2", (4, 6, 8)), ("heun", (3, 4))):
        for steps in all_steps:
            levels = " | ".join(f"{level_db(name, steps, sigma):+.1f}" for sigma in sigmas)
            calls = sampler.velocity_calls(name, steps)
            print(f"| {name} | {steps} | {calls} | {levels} |")


if __name__ == "__main__":
    main()
