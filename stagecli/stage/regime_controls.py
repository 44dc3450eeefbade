"""The controls of the regime variable: r from the step, or all of the regime from another run."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stagecli.errors import Problem, StageError
from stagecli.files import opened, read_json, read_json_lines
from stagecli.stage.base import NoiseLevel
from stagecli.stage.regime_progress import blend

LEVEL = re.compile(r"G_t(\d+\.\d+)")
DISCREPANCY = re.compile(r"Dn_t(\d+\.\d+)")
REPLAY_HINT = "name the directory of a run that was trained with [stage.regime]"


@dataclass(frozen=True)
class Control:
    """What stands in for the measurement.

    source: its name; values: step -> (r, r_now); levels: step -> progress by noise level, None
    where that is measured all the same.
    """

    source: str
    values: Callable[[int], tuple[float, float]]
    levels: Callable[[int], tuple[NoiseLevel, ...]] | None = None


def linear(steps: int) -> Control:
    """r = share of the budget of `steps` that is done: the control that measures no r."""

    def values(step: int) -> tuple[float, float]:
        share = min(1.0, max(0.0, step / steps))
        return share, share

    return Control("linear", values)


def replay(rows: Sequence[Mapping[str, Any]], *, steps: int, source_steps: int) -> Control:
    """r, r_now and the progress by noise level of another run, whatever is measured.

    r and r_now are linear in the step between the other run's probes, 0 before the first and held
    after the last; the levels are those of its last probe. In the step, not in optimiser time: a
    plan belongs to a step, so two runs with the same probe steps get the same r at every step
    whatever their learning rates.

    rows: the other run's probes, from `read_replay`; source_steps: its budget: where that differs
    from `steps`, the same shares of the two budgets correspond.
    """
    scale = source_steps / steps
    probe_steps = [int(row["step"]) for row in rows]
    values = [(float(row["r"]), float(row["r_now"])) for row in rows]
    levels: list[tuple[NoiseLevel, ...]] = []
    measured: tuple[NoiseLevel, ...] = ()
    for row in rows:
        if row["levels"]:
            measured = blend(measured, [NoiseLevel(**level) for level in row["levels"]])
        early = [NoiseLevel.unmeasured(float(t), Dn) for t, Dn in row.get("Dn_t", {}).items()]
        levels.append(measured or tuple(early) or (levels[-1] if levels else ()))

    def values_at(step: int) -> tuple[float, float]:
        position = step * scale
        i = bisect_right(probe_steps, position)
        if i == 0:
            return 0.0, 0.0
        if i == len(probe_steps):
            return values[-1]
        share = (position - probe_steps[i - 1]) / (probe_steps[i] - probe_steps[i - 1])
        r, r_now = (a + share * (b - a) for a, b in zip(values[i - 1], values[i], strict=True))
        return r, r_now

    def levels_at(step: int) -> tuple[NoiseLevel, ...]:
        i = bisect_right(probe_steps, step * scale)
        return levels[i - 1] if i else ()

    return Control("replay", values_at, levels_at)


def read_replay(run: Path) -> dict[str, Any]:
    """{"steps": budget, "rows": [{"step", "r", "r_now", "levels", "Dn_t"}]} of a run's probes, as
    JSON.

    The later attempt wins where two overlap. A run that is being written may end in half a row.
    Raises StageError where there is no such run, a row before the last is damaged, or no probe
    measured progress by noise level.
    """
    try:
        info, changed = opened(read_json(run / "run.json"))
        if changed:
            raise ValueError(f"run.json {changed}")
        budget = int(info["steps"])
        lines = list(read_json_lines(run / "probes.jsonl"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _cannot_replay("the run to replay cannot be read", f"{run}: {error}") from error
    by_step: dict[int, dict[str, Any]] = {}
    for expected, (number, row) in enumerate(lines, 1):
        if number != expected:
            raise _cannot_replay("the run to replay is damaged", f"probes.jsonl:{expected}")
        try:
            by_step[int(row["step"])] = _replayed(row)
        except (ValueError, KeyError, TypeError) as error:
            place = f"probes.jsonl:{number}: no number {error}"
            raise _cannot_replay("the run to replay is damaged", place) from error
    if not by_step:
        raise _cannot_replay(f"{run} has no probes to replay", str(run))
    if not any(row["levels"] for row in by_step.values()):
        problem = f"{run}: no probe has progress by noise level (G_t...)"
        raise _cannot_replay("the run to replay is too short, or of an earlier version", problem)
    return {"steps": budget, "rows": [row for _, row in sorted(by_step.items())]}


def _replayed(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of probes.jsonl holds of the regime. Raises ValueError, KeyError or TypeError."""
    names = [match[1] for key in row if (match := LEVEL.fullmatch(key))]
    levels = []
    for name in names:
        made = _number(row[f"G_t{name}"])
        to_come = _number(row[f"R_t{name}"])
        Dn = _number(row[f"Dn_t{name}"])
        level = NoiseLevel(t=float(name), Dn=Dn, made=made, to_come=to_come, scope=made + to_come)
        levels.append(asdict(level))
    r = _number(row["r"])
    read = {"step": row["step"], "r": r, "r_now": _number(row.get("r_now", r)), "levels": levels}
    return read | {"Dn_t": _discrepancies(row)}


def _discrepancies(row: Mapping[str, Any]) -> dict[str, float]:
    """Dn by noise level, as text; empty for a probe without a number."""
    values = {match[1]: row[key] for key in row if (match := DISCREPANCY.fullmatch(key))}
    known = all(isinstance(Dn, float | int) and math.isfinite(Dn) for Dn in values.values())
    return {t: float(Dn) for t, Dn in values.items()} if known else {}


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"but {value}")
    return number


def _cannot_replay(message: str, problem: str) -> StageError:
    problems = [Problem("stage.regime.replay", problem)]
    return StageError(message, problems=problems, hint=REPLAY_HINT)
