"""The stage interface: the plan of a step, the signals it produced, and the mechanisms that act on
training.

The trainer depends on this file and on the controller; it never names a mechanism.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast, runtime_checkable

from stagecli.errors import StageError

if TYPE_CHECKING:  # reading a recipe imports this file and needs no torch
    from torch import Tensor, nn

    from stagecli.flow.objective import Result
    from stagecli.model.dit import Block
    from stagecli.schema import Recipe
    from stagecli.stage.densities import TimeDensity

LEAST_PROGRESS = 0.02  # of Dn, summed over the noise levels: anything smaller counts as noise


def _uniform() -> TimeDensity:
    from stagecli.stage.densities import Uniform

    return Uniform()


@dataclass(frozen=True, slots=True)
class NoiseLevel:
    """Semantic progress at one noise level t, in units of Dn.

    Dn: of the last probe; made: fall so far; to_come: fall still expected within the budget; scope:
    moving average of made + to_come over the probes. All but Dn are 0 until progress is measured.
    """

    t: float
    Dn: float
    made: float
    to_come: float
    scope: float

    @classmethod
    def unmeasured(cls, t: float, Dn: float) -> NoiseLevel:
        """A noise level with a single Dn so far, which holds no progress."""
        return cls(t=t, Dn=Dn, made=0.0, to_come=0.0, scope=0.0)

    @property
    def r(self) -> float:
        """Share of this level's progress that has been made; 0 where there is none."""
        total = self.made + self.to_come
        return self.made / total if total > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Instructions for the next step. The defaults are plain training.

    density: density that t is drawn from; loss_weight: maps t [B] to weights of the loss [B]; r:
    regime variable, which never falls, for decisions that are final; r_now: its present estimate,
    for what can be taken back; both are 0 where no mechanism measures them; levels: discrepancy and
    progress by noise level, empty until the first probe; hidden: blocks, counted from 1, whose
    output the network returns (0: the input of the first); active: names of the mechanisms that add
    a term to the loss; inspected: whether a mechanism reads gradients inside the network in this
    step, which a recorded one does not show.
    """

    density: TimeDensity = field(default_factory=_uniform)
    loss_weight: Callable[[Tensor], Tensor] | None = None
    r: float = 0.0
    r_now: float = 0.0
    levels: tuple[NoiseLevel, ...] = ()
    hidden: tuple[int, ...] = ()
    active: tuple[str, ...] = ()
    inspected: bool = False


@dataclass(frozen=True)
class Event:
    """A stage transition; `reason` is mandatory."""

    mechanism: str
    before: str
    after: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def row(self, step: int) -> dict[str, Any]:
        """The event as a row of events.jsonl."""
        return {
            "step": step,
            "mechanism": self.mechanism,
            "from": self.before,
            "to": self.after,
            "reason": self.reason,
            "evidence": dict(self.evidence),
        }


LEVELS_PER_CLIP = 2  # noise levels at which a clip of the probe set is measured


@dataclass(frozen=True)
class ProbeSettings:
    """The measurement of the discrepancy that a mechanism requests.

    monitor: SSL encoder, as "kind:model"; layer: as in `ssl.make_encoder`; clips: number of clips
    of the valid split; t: noise levels, of which each clip is measured at LEVELS_PER_CLIP; every:
    steps between probes; partial_band: accept a monitor whose bandwidth covers only part of the
    restored band.
    """

    monitor: str
    layer: int | tuple[int, ...] | Literal["mean"]
    clips: int
    t: tuple[float, ...]
    every: int
    partial_band: bool = False


@dataclass(frozen=True)
class FeatureSettings:
    """Features of the clean target that a mechanism requests with every training crop.

    encoder: SSL encoder, as "kind:model"; layer: as in `ssl.make_encoder`.
    """

    encoder: str
    layer: int | tuple[int, ...] | Literal["mean"]


def _mean(values: Mapping[float, float]) -> float:
    return math.fsum(values.values()) / len(values)


@dataclass(frozen=True)
class Probe:
    """One measurement of the discrepancy on the fixed probe set.

    D_t: noise level t -> mean over its clips of 1 - mean over frames of the cosine between the
    features of the prediction and of the target; ceiling_t: the same for the codec's round trip of
    these clips; reference_t: the same for a signal without information beyond the condition;
    monitor: label of the encoder.
    """

    D_t: Mapping[float, float]
    ceiling_t: Mapping[float, float]
    reference_t: Mapping[float, float]
    monitor: str = ""

    @property
    def D(self) -> float:
        """Mean over the noise levels."""
        return _mean(self.D_t)

    @property
    def Dn_t(self) -> dict[float, float]:
        """D_t on a scale where 1 is no meaning beyond the condition and 0 is the codec's round
        trip, each of the clips that the noise level was measured on.
        """
        return {
            t: (D - self.ceiling_t[t]) / (self.reference_t[t] - self.ceiling_t[t])
            for t, D in self.D_t.items()
        }

    @property
    def Dn(self) -> float:
        """Mean of Dn_t."""
        return _mean(self.Dn_t)

    def row(self) -> dict[str, Any]:
        """The measurement as flat columns of probes.jsonl."""
        return {
            "D": self.D,
            **{f"D_t{t:.2f}": D for t, D in self.D_t.items()},
            "Dn": self.Dn,
            **{f"Dn_t{t:.2f}": Dn for t, Dn in self.Dn_t.items()},
            "d_ceiling": _mean(self.ceiling_t),
            "d_ref": _mean(self.reference_t),
            "monitor": self.monitor,
        }


@dataclass(frozen=True)
class Signals:
    """Measurements of one step, gathered over all processes so that every process decides alike.

    step: steps done; t_B, loss_B: noise levels and unweighted losses of the global batch;
    grad_norm: before clipping, a scalar; loss_B and grad_norm may still be on the device, where
    reading them waits for it; lr: learning rate of the step; probe: the probe after this step,
    where one was due, and ema_weights: the weights it was made with, by parameter name; valid:
    (step, loss) of the newest validation on the fixed grid of t.
    """

    step: int
    t_B: Tensor
    loss_B: Tensor
    grad_norm: Tensor | float
    lr: float
    probe: Probe | None = None
    ema_weights: Mapping[str, Tensor] | None = None
    valid: tuple[int, float] | None = None


@runtime_checkable
class NetworkWithBlocks(Protocol):
    """The part of `model.network.Network` that mechanisms use beyond `nn.Module`."""

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks from input to output."""
        ...


@runtime_checkable
class NetworkOfFrames(Protocol):
    """A network that reports the size of the frames it is trained on."""

    @property
    def channels(self) -> int:
        """Channels C of the frames x [B, T, C]."""
        ...


def channels_of(network: nn.Module) -> int:
    """Channels of a network's frames. Raises StageError for a network that has none."""
    if not isinstance(network, NetworkOfFrames):
        raise StageError(f"a network of class {type(network).__name__} has no channels of frames")
    return network.channels


def blocks_of(network: nn.Module) -> list[Block]:
    """The transformer blocks of a network. Raises StageError for a network that does not offer
    them.
    """
    if not isinstance(network, NetworkWithBlocks):
        raise StageError(f"a network of class {type(network).__name__} has no transformer blocks")
    return [cast("Block", block) for block in network.blocks]


class Mechanism:
    """One thing that acts on training. Every method has a default that does nothing.

    A subclass has a class attribute `Options` (a subclass of `options.MechanismOptions`: the keys
    of its section and its declarations). `probes` and `features` declare the measurements it
    requests; equal requests of several mechanisms are served once, different ones are refused by
    the controller. `features` becomes None once they are no longer needed. `reads_losses`: whether
    `observe` reads the losses of every step, for which the whole run then waits on a GPU.
    """

    name = "mechanism"
    probes: ProbeSettings | None = None
    features: FeatureSettings | None = None
    reads_losses = False

    def __init__(self, options: Any, recipe: Recipe) -> None:
        """Hold the options; without I/O or long computation."""

    @classmethod
    def build(cls, options: Any, recipe: Recipe) -> Self:
        """Check the options against the recipe, read what they name, and make the mechanism.

        Raises StageError where the mechanism cannot work in this recipe.
        """
        return cls(options, recipe)

    def attach(self, network: nn.Module, feature_width: int | None) -> None:
        """Bind to the network being trained, once, before the first step.

        feature_width: dimension of the requested features, None where no mechanism requests any.
        """

    def plan(self, step: int, plan: Plan) -> Plan:
        """`plan` with this mechanism's part replaced."""
        return plan

    def begin_step(self, t_B: Tensor) -> None:
        """Take in the noise levels of the step to come, if the plan names this mechanism active.

        t_B: of all examples of all micro-batches and processes, [B] on the CPU; `loss` is then
        called for one micro-batch after the other.
        """

    def loss(self, result: Result) -> Tensor | None:
        """A term to add to the loss, or None."""
        return None

    def step(
        self,
        lr: float,
        all_reduce_mean: Callable[[Tensor], Tensor],
        scale: float,
        skip: Tensor | None = None,
    ) -> None:
        """Update parameters other than the network's, after the backward pass.

        lr: learning rate of the step; all_reduce_mean: mean over processes; scale: factor that the
        loss was multiplied by (fp16); skip: a number on the device, at 1 nothing may change.
        """

    def observe(self, signals: Signals) -> list[Event]:
        """Take in the measurements of a step and return the events they led to."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Everything that an exact resume needs, as numbers, strings, lists, dicts and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def metrics(self) -> dict[str, float]:
        """Flat numbers for the next row of metrics.jsonl, named without prefix."""
        return {}

    def probe_row(self) -> dict[str, Any]:
        """Columns to add to the row of the probe just observed."""
        return {}
