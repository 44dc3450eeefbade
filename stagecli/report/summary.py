"""A run as one JSON document: its numbers, curves and sentences, for `inspect-regime`. No torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache

from stagecli.files import JsonRow, finite
from stagecli.report import mechanisms as report_mechanisms
from stagecli.report.curves import curve_summary, series
from stagecli.report.evaluation import evaluation_names, summarize_evaluations
from stagecli.report.losses import Columns, training_loss, validation_loss
from stagecli.report.mechanisms import probe_summaries
from stagecli.report.noise_bins import summarize_bins
from stagecli.report.pace import seconds_left, seconds_spent, speed
from stagecli.report.regime import absence_note, summarize_regime
from stagecli.report.run_report import RunReport, attempts_of
from stagecli.report.sentences import run_sentences

__all__ = ["summarize_run"]

SERIES_POINTS = 60  # per curve: enough for a sparkline, few enough for JSON
CURVES = ("train/loss", "valid/loss", "train/grad_norm", "optim/lr", "speed/samples_per_s")


def summarize_run(report: RunReport, *, now: float | None = None) -> JsonRow:
    """Everything `inspect-regime` shows of a run, ready for JSON; unknown values are None.

    now: Unix time at which to judge a running run (default: the clock).
    """
    now = time.time() if now is None else now
    columns = cache(lambda key: series(report.metrics, key))

    # Numbers and curves.
    document = _identity(report)
    document |= _training(report, document, columns, now)
    document |= {
        "superseded_rows": report.superseded,
        "events": report.events,
        "attempts": attempts_of(report.info),
        "checkpoints": report.checkpoints,
        "samples": report.samples,
        "evals": report.evals,
        "damage": report.damage,
    }
    document["regime"] = summarize_regime(
        report.probes,
        report.events,
        steps=document["steps"],
        task=report.info.get("task"),
        points=SERIES_POINTS,
    )
    document["regime_note"] = (
        None if report.probes else absence_note(report.wants_probes, document["status"])
    )
    from_probes = probe_summaries(report.probes, report.events, points=SERIES_POINTS)
    document |= from_probes

    # Sentences, from the numbers above.
    sentences = run_sentences(document, columns("speed/samples_per_s"), columns("optim/lr")[1])
    sentences += [line for one in from_probes.values() if one for line in one["reading"]]
    document["reading"] = sentences
    return {key: finite(value) for key, value in document.items()}


def _identity(report: RunReport) -> JsonRow:
    info = report.info
    step = max((row["step"] for row in report.metrics), default=None)
    if step is None:
        saved = (c["step"] for c in report.checkpoints if c["step"] is not None)
        step = max(saved, default=0)
    return {
        "path": str(report.path),
        "name": report.name,
        "id": info.get("id"),
        "task": info.get("task"),
        "status": info.get("status") or "unknown",
        "message": info.get("message"),
        "step": step,
        "steps": info.get("steps") if type(info.get("steps")) is int else None,
        "parameters": info.get("parameters"),
        "created": info.get("created"),
        "version": info.get("version"),
        "signature": info.get("signature"),
        "best_checkpoint": info.get("best"),
    }


def _training(report: RunReport, identity: JsonRow, columns: Columns, now: float) -> JsonRow:
    rows = report.metrics
    last_row = max(report.last_seen.values(), default=None)
    rates = columns("optim/lr")[1]
    running = identity["status"] == "running"
    return {
        "loss": training_loss(rows, columns),
        "validation": validation_loss(rows, columns),
        "bins": summarize_bins(report.bins, SERIES_POINTS),
        "speed": speed(rows, columns),
        "learning_rate": rates[-1] if rates else None,
        "time": {
            "spent_s": seconds_spent(report),
            "last_row_s_ago": None if last_row is None else now - last_row,
            "eta_s": seconds_left(rows, identity["step"], identity["steps"]) if running else None,
        },
        "evaluation": summarize_evaluations(rows, columns, report.chosen_by),
        "series": _curves(columns, [*evaluation_names(rows), *report_mechanisms.names(rows)]),
    }


def _curves(columns: Columns, more: Sequence[str]) -> JsonRow:
    """The curves of the terminal view: name -> `curves.curve_summary`."""
    curves: JsonRow = {}
    for key in (*CURVES, *more):
        steps, values = columns(key)
        if values:
            curves[key] = curve_summary(steps, values, SERIES_POINTS)
    return curves
