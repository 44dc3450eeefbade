"""The stage interface: what the next step will do (Plan), what was seen (Signals), who decides (Mechanism).

The trainer knows this file and the controller, and no mechanism by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # a recipe is checked by this file's users, and that needs no torch
    from torch import Tensor, nn

    from stagecli.flow.objective import Result
    from stagecli.stage.densities import TimeDensity


def _uniform() -> TimeDensity:
    from stagecli.stage.densities import Uniform

    return Uniform()


@dataclass(frozen=True, slots=True)
class Plan:
    """What the next step does; the defaults are plain training."""

    density: TimeDensity = field(default_factory=_uniform)
    loss_weight: Callable[[Tensor], Tensor] | None = None  # t [B] -> [B]
    r: float = 0.0  # regime variable; 0 where no mechanism measures it
    hidden: tuple[int, ...] = ()  # blocks whose output the network returns
    active: tuple[str, ...] = ()  # names of the mechanisms that add a loss


@dataclass(frozen=True)
class Event:
    """A stage changed: never without a reason."""

    mechanism: str
    before: str
    after: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def row(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "mechanism": self.mechanism,
            "from": self.before,
            "to": self.after,
            "reason": self.reason,
            "evidence": dict(self.evidence),
        }


@dataclass(frozen=True)
class ProbeSettings:
    """What a mechanism wants measured.

    monitor: "kind:model" of an SSL encoder; layer: as in `ssl.make_encoder`; clips: of the valid split; t: noise
    levels of each clip; every: steps from probe to probe; partial_band: a monitor that hears a part of what the task
    restores will do.
    """

    monitor: str
    layer: int | tuple[int, ...] | Literal["mean"]
    clips: int
    t: tuple[float, ...]
    every: int
    partial_band: bool = False


@dataclass(frozen=True)
class FeatureSettings:
    """Features of the clean target that a mechanism wants with every crop: by `encoder` ("kind:model") at `layer`."""

    encoder: str
    layer: int | tuple[int, ...] | Literal["mean"]


@dataclass(frozen=True)
class Probe:
    """One measurement of the discrepancy on the fixed probe set (design section 5).

    D_t: {t: mean over clips of 1 - mean over frames of cos(features of the prediction, of the target)}; ceiling: the
    same of the codec's round trip; reference: of what holds no information beyond the condition; monitor: its label.
    """

    D_t: Mapping[float, float]
    ceiling: float
    reference: float
    monitor: str = ""

    @property
    def D(self) -> float:
        """Mean over t."""
        return math.fsum(self.D_t.values()) / len(self.D_t)

    def normalised(self, D: float) -> float:
        """1: no meaning beyond the condition; 0: as good as the codec allows."""
        return (D - self.ceiling) / (self.reference - self.ceiling)

    def row(self) -> dict[str, Any]:
        """Flat numbers for the row of a probe; a D that is no number is None there."""
        by_t = {f"_t{t:.2f}": D for t, D in self.D_t.items()}
        return {
            "D": self.D,
            **{f"D{name}": D for name, D in by_t.items()},
            "Dn": self.normalised(self.D),
            **{f"Dn{name}": self.normalised(D) for name, D in by_t.items()},
            "d_ceiling": self.ceiling,
            "d_ref": self.reference,
            "monitor": self.monitor,
        }


@dataclass(frozen=True)
class Signals:
    """What one step showed, gathered over all processes, so that all of them decide alike.

    step: steps done; t_B, loss_B: of the global batch, unweighted; grad_norm before clipping;
    lr: the step's learning rate; probe: the measurement after this step, where one was due, and ema_weights: the
    weights it was made with, by name; valid: (step, loss) of the newest validation on the fixed grid of t.
    """

    step: int
    t_B: Tensor
    loss_B: Tensor
    grad_norm: float
    lr: float
    probe: Probe | None = None
    ema_weights: Mapping[str, Tensor] | None = None
    valid: tuple[int, float] | None = None


class Mechanism:
    """One thing that acts on training. Every method has a default that does nothing."""

    name = "mechanism"
    probes: ProbeSettings | None = None  # what it wants measured
    features: FeatureSettings | None = (
        None  # what it wants with every crop; None again when it needs them no more
    )

    def attach(self, network: nn.Module, feature_width: int | None) -> None:
        """Get to know the network that is trained and D of the features, once, before the first step."""

    def plan(self, step: int, plan: Plan) -> Plan:
        """The plan with this mechanism's part replaced; pure."""
        return plan

    def loss(self, result: Result) -> Tensor | None:
        """A term to add to the loss, or None."""
        return None

    def step(self, lr: float, all_reduce_mean: Callable[[Tensor], Tensor], scale: float) -> None:
        """After the backward pass: update what it trains besides the network.

        all_reduce_mean: over processes; scale: what the loss was multiplied by (fp16).
        """

    def observe(self, signals: Signals) -> list[Event]:
        """Take in what a step showed; the events it led to."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs: numbers, strings, lists, dicts and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def metrics(self) -> dict[str, float]:
        """Flat numbers for the next row of metrics, without prefix."""
        return {}

    def probe_row(self) -> dict[str, Any]:
        """What it adds to the row of the probe that it just observed."""
        return {}
