"""`[stage.regime]`: measures where training is and passes it on as `Plan.r`. Trains nothing
itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

from stagecli.bounds import Range
from stagecli.errors import Problem, StageError
from stagecli.files import read_json, read_json_lines
from stagecli.schema import Clips, Fraction, Natural, NoiseLevel, Recipe, Some
from stagecli.stage.base import Event, Mechanism, Plan, ProbeSettings, Signals
from stagecli.stage.options import Layer, MechanismOptions, Role
from stagecli.stage.regime_controls import linear, replay
from stagecli.stage.regime_variable import Regime, RegimeSettings

PROBES = 200  # of a run, where the smallest interval allows
# Evaluations of a probe that one trained sample pays for, so that probing takes at most 3 % of the
# time.
COST = 20
FEW = 40  # probes of a run below which slopes carry little information
RATE = 3.0  # r needs at least a third of the probes to go from 0 to 1
REPLAY_HINT = "name the directory of a run that was trained with [stage.regime]"


class RegimeOptions(MechanismOptions):
    paths: ClassVar[tuple[str, ...]] = ("monitor", "replay")

    source: Literal["measured", "replay", "linear"] = "measured"
    """`measured`: from the discrepancy. Controls: `replay` another run, or `linear` in the step."""
    replay: str = ""
    """Run directory whose r is replayed (source = "replay")."""
    monitor: str = "bundled:teacher"
    """SSL encoder that measures the discrepancy, as kind:model."""
    layer: Layer = -1
    """Layer of the monitor: a number (negative: from the end), a list to average, or "mean"."""
    partial_band: bool = False
    """Accept a monitor whose bandwidth covers only part of the band that sr restores."""
    clips: Clips = 192
    """Clips of the valid split in the probe set; 192 keep the repeat noise of D below 1 %."""
    t: Annotated[tuple[NoiseLevel, ...], Some] = (0.3, 0.5, 0.7)
    """Noise levels at which each clip is probed."""
    every: Natural = 0
    """Steps between probes; 0: a 200th of the budget, or more so that it costs at most 3 %."""
    window: Annotated[int, Range(12, 10_000)] = 20
    """Probes that the slope is taken over."""
    start: Fraction = 0.05
    """Share of the budget before which progress is not counted."""
    failsafe: bool = True
    """Raise r with the step from 60 to 90 % of the budget, whatever the measurement."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        if (self.source == "replay") != bool(self.replay):
            raise ValueError('source = "replay" and replay = "RUN" belong together')
        names = {f"{t:.2f}" for t in self.t}  # columns of probes.jsonl have two decimals
        if not self.t or len(names) < len(self.t):
            raise ValueError("t must be a list of noise levels that differ by 0.01 or more")
        return self

    def encoders(self) -> Mapping[str, Role]:
        return {"monitor": "monitor"} if self.source == "measured" else {}


class RegimeMechanism(Mechanism):
    """r from the probes (`regime_variable.Regime`), or from a control."""

    name = "regime"
    Options = RegimeOptions

    def __init__(
        self, options: RegimeOptions, recipe: Recipe, replayed: dict[str, Any] | None = None
    ) -> None:
        """replayed: `read_r` of the run to replay, for source = "replay"."""
        steps = recipe.train.steps
        self.lr = recipe.train.lr
        every = options.every
        if not every:
            evaluations = options.clips * len(options.t)
            affordable = math.ceil(COST * evaluations / recipe.train.batch_size)
            every = max(steps // PROBES, affordable)
        self.probes: ProbeSettings = ProbeSettings(
            monitor=options.monitor,
            layer=options.layer,
            clips=options.clips,
            t=options.t,
            every=every,
            partial_band=options.partial_band,
        )
        self.settings = RegimeSettings(
            steps=steps,
            start=options.start,
            window=options.window,
            rate=min(1.0, RATE * every / steps),
            failsafe=(0.6, 0.3) if options.failsafe else None,
        )
        self.replayed = replayed
        self.tau = 0.0  # optimiser time: sum of lr / lr_max
        self.regime = self._make_regime(options.source)

    @classmethod
    def build(cls, options: RegimeOptions, recipe: Recipe) -> Self:
        """Raises StageError where the run to replay cannot be read."""
        replayed = read_r(Path(options.replay)) if options.source == "replay" else None
        return cls(options, recipe, replayed)

    def _make_regime(self, source: str) -> Regime:
        steps = self.settings.steps
        schedule = None
        if self.replayed is not None:
            schedule = replay(
                self.replayed["rows"], steps=steps, source_steps=self.replayed["steps"]
            )
        elif source == "linear":
            schedule = linear(steps)
        return Regime(self.settings, source=source, schedule=schedule)

    def plan(self, step: int, plan: Plan) -> Plan:
        return replace(plan, r=self.regime.r)

    def observe(self, signals: Signals) -> list[Event]:
        self.tau += signals.lr / self.lr
        if signals.probe is None:
            return []
        first = self.regime.last_step < 0
        Dn = signals.probe.normalised(signals.probe.D)
        transitions = self.regime.observe(signals.step, self.tau, Dn)
        events = [Event(self.name, t.before, t.after, t.reason, t.evidence) for t in transitions]
        return [*self._few_probes(), *events] if first else events

    def _few_probes(self) -> list[Event]:
        """A warning at the first probe of a run that is too short for slopes."""
        count = self.settings.steps // self.probes.every
        if count >= FEW or self.regime.source != "measured":
            return []
        reason = (
            f"{count} probes in {self.settings.steps} steps are few: "
            "r will hardly move before the fail-safe"
        )
        remedy = "more steps, or a smaller stage.regime.every or clips"
        evidence = {"probes": count, "needed": FEW, "ways out": remedy}
        return [Event(self.name, "waiting", "waiting", reason, evidence)]

    def state_dict(self) -> dict[str, Any]:
        return {"tau": self.tau, "replayed": self.replayed, "regime": self.regime.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A replay continues with the r it began with, whatever has become of the other run
        since.
        """
        self.tau = state["tau"]
        if state["replayed"] is not None:
            self.replayed = state["replayed"]
            self.regime = self._make_regime(self.regime.source)
        self.regime.load_state_dict(state["regime"])

    def metrics(self) -> dict[str, float]:
        return {"r": self.regime.r}

    def probe_row(self) -> dict[str, Any]:
        return self.regime.row()


def read_r(run: Path) -> dict[str, Any]:
    """{"steps": budget, "rows": [{"step", "r"}]} of a run's probes; the later attempt wins where
    two overlap.

    A run that is being written may end in half a row. Raises StageError where there is no such run,
    a row before the last is damaged, or no probe has an r.
    """
    try:
        budget = int(read_json(run / "run.json")["steps"])
        lines = list(read_json_lines(run / "probes.jsonl"))
    except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise _cannot_replay("the run to replay cannot be read", f"{run}: {error}") from error
    by_step: dict[int, float] = {}
    for expected, (number, row) in enumerate(lines, 1):
        if number != expected:
            raise _cannot_replay("the run to replay is damaged", f"probes.jsonl:{expected}")
        try:
            by_step[int(row["step"])] = float(row["r"])
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            place = f"probes.jsonl:{number}: no number {error}"
            raise _cannot_replay("the run to replay is damaged", place) from error
    if not by_step:
        raise _cannot_replay(f"{run} has no probes to replay", str(run))
    rows = [{"step": step, "r": r} for step, r in sorted(by_step.items())]
    return {"steps": budget, "rows": rows}


def _cannot_replay(message: str, problem: str) -> StageError:
    problems = [Problem("stage.regime.replay", problem)]
    return StageError(message, problems=problems, hint=REPLAY_HINT)
