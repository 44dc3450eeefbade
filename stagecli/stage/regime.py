"""`[stage.regime]`: measures where training is, and tells the other mechanisms by `Plan.r`. Trains nothing itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from stagecli.errors import Problem, StageError
from stagecli.schema import Fraction, Natural, Positive, Recipe, Section
from stagecli.stage.base import Event, Mechanism, Plan, ProbeSettings, Signals
from stagecli.stage.regime_variable import Regime, RegimeSettings, linear, replay

PROBES = 200  # of a run, where the least interval allows
# Evaluations of a probe that one trained sample pays for, so that probing takes at most 3 % of the time.
COST = 20
FEW = 40  # probes of a run under which slopes hardly say anything
RATE = 3.0  # r needs at least a third of the probes to go from 0 to 1


class RegimeOptions(Section):
    source: Literal["measured", "replay", "linear"] = "measured"
    """`measured`: r from the discrepancy. Controls: `replay` another run's r, or `linear` in the step."""
    replay: str = ""
    """Run directory whose r is replayed (source = "replay")."""
    monitor: str = "bundled:teacher"
    """SSL encoder that measures the discrepancy, as kind:model (bundled, transformers or torchaudio)."""
    layer: int | tuple[int, ...] | Literal["mean"] = -1
    """Layer of the monitor: a number (negative from the end), a list to average, or "mean" of all."""
    partial_band: bool = False
    """Measure sr with a monitor that does not hear all of what is restored; otherwise it is refused."""
    clips: Positive = 192
    """Clips of the valid split in the probe set. 192 keep the repeat noise of D under 1 % (docs/regime.md)."""
    t: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.3, 0.5, 0.7)
    """Noise levels at which each clip is probed."""
    every: Natural = 0
    """Steps from probe to probe; 0: a 200th of `train.steps`, or more where that would cost over 3 % of the time."""
    window: Annotated[int, Field(ge=12)] = 20
    """Probes that the slope is taken over."""
    start: Fraction = 0.05
    """Share of the budget before which progress is not counted."""
    failsafe: bool = True
    """Lift r with the step from 60 to 90 % of the budget, whatever the measurement says."""

    @model_validator(mode="after")
    def together(self) -> RegimeOptions:
        if (self.source == "replay") != bool(self.replay):
            raise ValueError('source = "replay" and replay = "RUN" belong together')
        if not self.t or len({f"{t:.2f}" for t in self.t}) < len(
            self.t
        ):  # rows name them with two decimals
            raise ValueError("t must be a list of noise levels that differ by 0.01 or more")
        return self


class RegimeMechanism(Mechanism):
    """r from the probes (`slope.Regime`), or from a control."""

    name = "regime"
    Options = RegimeOptions

    def __init__(self, options: RegimeOptions, recipe: Recipe) -> None:
        """Raises StageError where the run to replay cannot be read."""
        steps = recipe.train.steps
        self.lr = recipe.train.lr
        evaluations = options.clips * len(options.t)
        every = options.every or max(
            steps // PROBES, math.ceil(COST * evaluations / recipe.train.batch_size)
        )
        self.probes = ProbeSettings(
            options.monitor, options.layer, options.clips, options.t, every, options.partial_band
        )
        self.settings = RegimeSettings(
            steps=steps,
            start=options.start,
            window=options.window,
            rate=min(1.0, RATE * every / steps),
            failsafe=(0.6, 0.3) if options.failsafe else None,
        )
        self.replayed = read_r(Path(options.replay)) if options.source == "replay" else None
        self.tau = 0.0
        self.regime = self._make(options.source)

    def _make(self, source: str) -> Regime:
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
        found = self.regime.observe(
            signals.step, self.tau, signals.probe.normalised(signals.probe.D)
        )
        events = [Event(self.name, e.before, e.after, e.reason, e.evidence) for e in found]
        return [*self._few(), *events] if first else events

    def _few(self) -> list[Event]:
        """What a run too short for slopes is told at its first probe."""
        assert self.probes is not None
        count = self.settings.steps // self.probes.every
        if count >= FEW or self.regime.source != "measured":
            return []
        reason = f"{count} probes in {self.settings.steps} steps are few: r will hardly move before the fail-safe"
        ways = "more steps, or a smaller stage.regime.every or clips"
        return [
            Event(
                self.name,
                "waiting",
                "waiting",
                reason,
                {"probes": count, "needed": FEW, "ways out": ways},
            )
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"tau": self.tau, "replayed": self.replayed, "regime": self.regime.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tau = state["tau"]
        if (
            state["replayed"] is not None
        ):  # what the run began with, whatever became of the other run since
            self.replayed = state["replayed"]
            self.regime = self._make(self.regime.source)
        self.regime.load_state_dict(state["regime"])

    def metrics(self) -> dict[str, float]:
        return {"r": self.regime.r}

    def probe_row(self) -> dict[str, Any]:
        return self.regime.row()


def read_r(run: Path) -> dict[str, Any]:
    """{"steps": budget, "rows": [{"step", "r"}]} of a run's probes; the later attempt wins where two overlap.

    Raises StageError where there is no such run or no probe in it.
    """
    hint = "name the directory of a run that was trained with [stage.regime]"
    try:
        budget = int(json.loads((run / "run.json").read_text(encoding="utf-8"))["steps"])
        lines = (run / "probes.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems = [Problem("stage.regime.replay", f"{run}: {error}")]
        raise StageError(
            "the run to replay cannot be read", problems=problems, hint=hint
        ) from error
    by_step: dict[int, float] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            by_step[int(row["step"])] = float(row["r"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                continue  # a run that is being written ends in half a row
            problems = [Problem(f"{run / 'probes.jsonl'}:{number}", str(error))]
            raise StageError(
                "the run to replay is damaged", problems=problems, hint=hint
            ) from error
    if not by_step:
        raise StageError(
            f"{run} has no probes to replay",
            problems=[Problem("stage.regime.replay", str(run))],
            hint=hint,
        )
    return {
        "steps": budget,
        "rows": [{"step": step, "r": r} for step, r in sorted(by_step.items())],
    }
