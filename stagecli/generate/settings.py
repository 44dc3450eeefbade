"""How the sampler of a run is set: the recipe's `[evaluate]` section, and flags on top."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stagecli.schema import Evaluate


@dataclass(frozen=True)
class SamplerSettings:
    """Sampler options; `of` takes the defaults from the recipe's `[evaluate]` section."""

    sampler: str
    steps: int
    cfg_scale: float
    cfg_interval: tuple[float, float]
    batch_size: int

    @classmethod
    def of(cls, options: Evaluate, **changes: Any) -> SamplerSettings:
        """The settings of `options` with `changes` on top; changes that are None are ignored."""
        defaults = {
            "sampler": options.sampler,
            "steps": options.steps,
            "cfg_scale": options.cfg_scale,
            "cfg_interval": options.cfg_interval,
            "batch_size": options.batch_size,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        return cls(**{**defaults, **given})
