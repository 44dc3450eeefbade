"""`[stage.regime]`: measures where training is and passes it on as `Plan.r`, `r_now` and `levels`.
Trains nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

from stagecli.bounds import Range
from stagecli.errors import counted
from stagecli.flow.schedule import total_time
from stagecli.schema import Recipe, Train
from stagecli.schema.section import Natural, NoiseLevel, Some
from stagecli.stage.base import (
    LEVELS_PER_CLIP,
    Event,
    Mechanism,
    Plan,
    ProbeSettings,
    Signals,
)
from stagecli.stage.options import Layer, MechanismOptions, Role
from stagecli.stage.regime_controls import Control, linear, read_replay, replay
from stagecli.stage.regime_progress import SPOKEN
from stagecli.stage.regime_variable import Regime, RegimeSettings

FEWEST_PROBES = 30  # of a run, where the number of steps allows, and the most
MOST_PROBES = 200
FEWEST_CLIPS = 9  # of a probe set, and the most
MOST_CLIPS = 96
# Trained samples that pay for one clip at one noise level, so that probing takes about 3 % of the
# time: it costs 0.6 to 0.8 of a trained sample.
COST = 25
FEW = 12  # probes of a run below which r is not measured before 40 % of the budget


class RegimeOptions(MechanismOptions):
    paths: ClassVar[tuple[str, ...]] = ("monitor", "replay")
    removed: ClassVar[Mapping[str, str]] = {
        "window": "slopes are taken over a third of the probes",
        "start": "progress is counted from the first probes on",
        "failsafe": "r reaches the end of its scale by measurement",
    }

    source: Literal["measured", "replay", "linear"] = "measured"
    """`measured`: from the discrepancy. Controls: `replay` another run, or `linear` in the step."""
    replay: str = ""
    """Run directory whose regime is replayed (source = "replay")."""
    monitor: str = "bundled:teacher"
    """SSL encoder that measures the discrepancy, as kind:model."""
    layer: Layer = -1
    """Layer of the monitor: a number (negative: from the end), a list to average, or "mean"."""
    partial_band: bool = False
    """Accept a monitor whose bandwidth covers only part of the band that sr restores."""
    clips: Annotated[int, Range(0, 1_000_000)] = 0
    """Clips of the valid split in the probe set; 0: as many (9 to 96) as take 3 % of the time."""
    t: Annotated[tuple[NoiseLevel, ...], Some] = (0.15, 0.35, 0.55, 0.75, 0.9, 0.97)
    """Noise levels at which progress is measured, each clip at two of them."""
    every: Natural = 0
    """Steps between probes; 0: a 200th to a 30th of the budget, so that probing takes 3 %."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if (self.source == "replay") != bool(self.replay):
            raise ValueError('source = "replay" and replay = "RUN" belong together')
        names = {f"{t:.2f}" for t in self.t}  # columns of probes.jsonl have two decimals
        if not self.t or len(names) < len(self.t):
            raise ValueError("t must be a list of noise levels that differ by 0.01 or more")
        if list(self.t) != sorted(self.t):
            raise ValueError("t must be in rising order")
        return self

    def encoders(self) -> Mapping[str, Role]:
        return {"monitor": "monitor"} if self.source == "measured" else {}


class RegimeMechanism(Mechanism):
    """The regime from the probes (`regime_variable.Regime`), or from a control."""

    name = "regime"
    Options = RegimeOptions

    def __init__(
        self, options: RegimeOptions, recipe: Recipe, replayed: dict[str, Any] | None = None
    ) -> None:
        """replayed: `read_replay` of the run to replay, for source = "replay"."""
        self.steps = recipe.train.steps
        self.lr = recipe.train.lr
        every, clips = _interval_and_clips(options, recipe.train)
        self.probes: ProbeSettings = ProbeSettings(
            monitor=options.monitor,
            layer=options.layer,
            clips=clips,
            t=options.t,
            every=every,
            partial_band=options.partial_band,
        )
        self.replayed = replayed
        self.tau = 0.0  # optimiser time: sum of lr / lr_max
        count = max(1, self.steps // every)
        self.settings = RegimeSettings(probes=count, tau_end=total_time(recipe.train))
        self.regime = Regime(self.settings, self._control(options.source))

    @classmethod
    def build(cls, options: RegimeOptions, recipe: Recipe) -> Self:
        """Raises StageError where the run to replay cannot be read."""
        replayed = read_replay(Path(options.replay)) if options.source == "replay" else None
        return cls(options, recipe, replayed)

    def _control(self, source: str) -> Control | None:
        if self.replayed is not None:
            replayed = self.replayed
            return replay(replayed["rows"], steps=self.steps, source_steps=replayed["steps"])
        return linear(self.steps) if source == "linear" else None

    def plan(self, step: int, plan: Plan) -> Plan:
        regime = self.regime
        return replace(plan, r=regime.r, r_now=regime.r_now, levels=regime.levels)

    def observe(self, signals: Signals) -> list[Event]:
        self.tau += signals.lr / self.lr
        probe = signals.probe
        if probe is None:
            return []
        first = self.regime.last_step < 0
        transitions = self.regime.observe(signals.step, self.tau, probe.Dn_t)
        events = [Event(self.name, t.before, t.after, t.reason, t.evidence) for t in transitions]
        return [*self._few_probes(), *events] if first else events

    def _few_probes(self) -> list[Event]:
        """A warning at the first probe of a run with so few that r is measured late, or never."""
        count = self.settings.probes
        if count >= FEW or self.regime.source != "measured":
            return []
        effect = f"r is not measured before step {SPOKEN * self.probes.every:,}"
        if count < SPOKEN:
            effect = f"r stays at 0, because it takes {SPOKEN} to measure it"
        reason = (
            f"{counted(count, 'probe')} in {counted(self.steps, 'step')} "
            f"{'is' if count == 1 else 'are'} few: {effect}"
        )
        remedy = "more steps, or a smaller stage.regime.every or clips"
        evidence = {"probes": count, "needed": FEW, "ways out": remedy}
        return [Event(self.name, "waiting", "waiting", reason, evidence)]

    def state_dict(self) -> dict[str, Any]:
        return {"tau": self.tau, "replayed": self.replayed, "regime": self.regime.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A replay continues with the regime it began with, whatever has become of the other run
        since.
        """
        self.tau = state["tau"]
        if state["replayed"] is not None:
            self.replayed = state["replayed"]
            self.regime = Regime(self.settings, self._control("replay"))
        self.regime.load_state_dict(state["regime"])

    def metrics(self) -> dict[str, float]:
        return {"r": self.regime.r, "r_now": self.regime.r_now}

    def probe_row(self) -> dict[str, Any]:
        return self.regime.row()


def _interval_and_clips(options: RegimeOptions, train: Train) -> tuple[int, int]:
    """Steps between probes, and clips of the probe set; what is not set follows from the cost."""
    per_clip = COST * min(LEVELS_PER_CLIP, len(options.t))  # trained samples that pay for a clip
    every = options.every
    if not every:
        affordable = math.ceil(per_clip * (options.clips or MOST_CLIPS) / train.batch_size)
        every = max(1, train.steps // MOST_PROBES, affordable)
        if not options.clips:
            every = min(every, max(1, train.steps // FEWEST_PROBES))
    affordable = every * train.batch_size // per_clip
    return every, options.clips or min(MOST_CLIPS, max(FEWEST_CLIPS, affordable))
