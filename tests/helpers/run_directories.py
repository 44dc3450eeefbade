"""Run directories as a run writes them, made from formulas instead of training."""

from __future__ import annotations

import html.parser
import json
import math
import random
from pathlib import Path
from typing import Any

from stagecli.stage.regime_variable import Regime, RegimeSettings

EDGES = [0.0, 0.25, 0.5, 0.75, 1.0]  # of the noise bins
T0 = 1_760_000_000.0  # when training began, in seconds since the epoch


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics_row(step: int, attempt: int = 1, /, **extra: Any) -> dict[str, Any]:
    """A row of metrics.jsonl whose loss falls exponentially with a little deterministic noise."""
    loss = 0.1 + math.exp(-step / 200) + 0.002 * ((step * 7919) % 13 - 6)
    return {
        "step": step,
        "time": T0 + 0.5 * step,
        "attempt": attempt,
        "samples": 32 * step,
        "train/loss": loss,
        "train/grad_norm": 1.0,
        "optim/lr": 1e-4,
        "speed/samples_per_s": 64.0,
        "speed/step_s": 0.5,
        **extra,
    }


def make_run(path: Path, *, steps: int = 1000, status: str = "finished", **info: Any) -> Path:
    """A run of `steps` steps with a row every 10, a validation every 50 and bins every 20."""
    path.mkdir(parents=True)
    rows = []
    for step in range(10, steps + 1, 10):
        loss = 0.1 + math.exp(-step / 200)
        rows.append(
            metrics_row(
                step,
                **({"valid/loss": loss, "valid/loss_t0.30": loss / 2} if step % 50 == 0 else {}),
            )
        )
    bins = [
        {
            "step": s,
            "time": T0,
            "attempt": 1,
            "edges": EDGES,
            "count": [10, 20, 20, 0],
            "loss": [0.1 + math.exp(-s / 100), 0.2, 0.9, None],
        }
        for s in range(20, steps + 1, 20)
    ]
    events = [
        {
            "step": 0,
            "time": T0,
            "attempt": 1,
            "mechanism": "trainer",
            "from": None,
            "to": "running",
            "reason": "begun <b>here</b>",
            "evidence": {},
        }
    ]
    write_rows(path / "metrics.jsonl", rows)
    write_rows(path / "bins.jsonl", bins)
    write_rows(path / "events.jsonl", events)
    attempt = {
        "attempt": 1,
        "from_step": 0,
        "started": "2025-10-09T08:53:20+00:00",
        "ended": None,
        "status": status,
    }
    document = {
        "schema": 1,
        "id": "a1",
        "name": path.name,
        "task": "t2a",
        "status": status,
        "steps": steps,
        "parameters": 4_000_000,
        "version": "0.1.0",
        "signature": "s",
        "created": "2025-10-09T08:53:20+00:00",
        "attempts": [attempt],
        "best": None,
        "message": None,
        **info,
    }
    (path / "run.json").write_text(json.dumps(document))
    return path


class Page(html.parser.HTMLParser):
    """Checks that tags close in order and collects attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


LEVELS = {"0.30": 0.70, "0.50": 1.05, "0.70": 1.25}  # Dn at t over the mean Dn
MONITOR = "stagecli/bundled-judge, layer 4"


def two_stages(share: float) -> float:
    """Dn at a share of the budget: noise becomes sound, a steady fall, almost none from 0.35 on."""
    fall = share / 0.35 if share < 0.35 else 1 + 0.12 * (share - 0.35)
    return 0.9 * math.exp(-share / 0.012) + math.exp(-0.05 - 1.2 * fall)


def probe_rows(
    steps: int, count: int, seed: int = 0, noise: float = 0.01
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Rows of probes.jsonl and of events.jsonl; Dn carries AR(1) noise of correlation 0.5."""
    draw = random.Random(seed)
    regime = Regime(RegimeSettings(probes=count, tau_end=0.9 * steps))
    rows = []
    events = []
    error = 0.0
    spent = 0.0
    for k in range(1, count + 1):
        step = k * steps // count
        error = 0.5 * error + math.sqrt(0.75) * draw.gauss(0, noise)
        Dn = two_stages(step / steps) * math.exp(error)
        spent = spent + 1.2
        stamp = {"step": step, "time": T0 + 0.5 * step, "attempt": 1}
        Dn_t = {float(t): factor * Dn for t, factor in LEVELS.items()}
        for event in regime.observe(step, 0.9 * step, Dn_t):
            row = {
                "mechanism": "regime",
                "from": event.before,
                "to": event.after,
                "reason": event.reason,
            }
            events.append({**stamp, **row, "evidence": dict(event.evidence)})
        by_level = {f"Dn_t{t}": factor * Dn for t, factor in LEVELS.items()}
        by_level |= {f"D_t{t}": 0.07 + 0.64 * factor * Dn for t, factor in LEVELS.items()}
        rows.append(
            {
                **stamp,
                "D": 0.07 + 0.64 * Dn,
                **by_level,
                "d_ceiling": 0.07,
                "d_ref": 0.71,
                **regime.row(),
                "seconds": 1.2,
                "seconds_total": spent,
                "share": spent / (0.5 * step),
                "monitor": MONITOR,
            }
        )
    return rows, events


def regime_run(
    path: Path, *, steps: int = 20_000, count: int = 200, seed: int = 0, **info: Any
) -> Path:
    """A run with `count` probes, and 500 rows of metrics and of bins."""
    make_run(path, steps=steps, **info)
    rows, events = probe_rows(steps, count, seed)
    write_rows(path / "probes.jsonl", rows)
    began = json.loads((path / "events.jsonl").read_text())
    write_rows(path / "events.jsonl", [began, *events])
    return path
