"""What `inspect-regime` prints: one run in full, several side by side. Draws through the console only."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from stagecli.files import JsonRow
from stagecli.report import evaluation as report_evaluation
from stagecli.report import mechanisms as report_mechanisms
from stagecli.report import regime as report_regime
from stagecli.report.curves import duration, number, sparkline
from stagecli.report.matrix_text import matrix_lines
from stagecli.report.words import best_text
from stagecli.stage import registry
from stagecli.terminal.console import Console, cell, percent

__all__ = ["inspect", "sections"]

Section = tuple[str, Callable[[], None]]

CURVES = {
    "train/loss": "train loss",
    "valid/loss": "valid loss",
    "train/grad_norm": "gradient norm",
    "optim/lr": "learning rate",
    "speed/samples_per_s": "samples/s",
}
SPARK = 40  # characters of a curve at most
FIXED = "\N{NO-BREAK SPACE}"
ENDS = 20  # regime events listed of the first and of the last ones


def inspect(summaries: Sequence[JsonRow], out: Console) -> None:
    """The terminal view of `inspect-regime`; summaries: from `summary.summary`."""
    if out.as_json:
        out.result(summaries[0] if len(summaries) == 1 else list(summaries))
        return
    for _, draw in sections(summaries, out):
        draw()


def sections(summaries: Sequence[JsonRow], out: Console) -> list[Section]:
    """The parts of the view as (name, what draws it), from top to bottom."""
    parts: list[tuple[str, Callable[[Sequence[JsonRow], Console], None]]] = [
        ("head", _head),
        ("regime", _regime),
        ("regime curves", _regime_curves),
        ("regime events", _regime_events),
        ("probe columns", _probe_columns),
        ("mechanisms", _mechanisms),
        ("bins", _bins),
        ("curves", _curves),
        ("events", _events),
        ("reading", _reading),
    ]
    return [(name, lambda draw=draw: draw(summaries, out)) for name, draw in parts]  # type: ignore[misc]


def _probe_columns(summaries: Sequence[JsonRow], out: Console) -> None:
    """Facts and matrix of what a mechanism added to the probes, where a run has any."""
    for mechanism, columns in registry.probe_columns().items():
        shown = [s for s in summaries if s[mechanism]]
        if not shown:
            continue
        facts = [columns.facts(s[mechanism]) for s in shown]
        _pairs(columns.title, [s["name"] for s in shown], facts, out)
        for s in shown:
            for line in matrix_lines(columns.matrix(s[mechanism]), out.width, out.ascii_only):
                out.text(line)
            out.text()


def _mechanisms(summaries: Sequence[JsonRow], out: Console) -> None:
    """What each mechanism did over time: lambda, cosines, quantiles of t, whatever it reports."""
    found = [s["series"] for s in summaries]
    keys = dict.fromkeys(
        key for series in found for key in series if key.startswith(report_mechanisms.PREFIX)
    )
    if keys:
        labels = {key: report_mechanisms.label(key) for key in keys}
        _table_of_curves("Mechanisms", summaries, found, labels, set(), out)


def _pairs(title: str, names: Sequence[str], facts: Sequence[dict[str, str]], out: Console) -> None:
    """Facts of one run line by line, of several in columns."""
    if len(facts) > 1:
        out.table(title, ["", *names], [[key, *(f[key] for f in facts)] for key in facts[0]])
    else:
        out.text(title, style="bold")
        for key, value in facts[0].items():
            out.text(f"  {key:<12} {value}")
    out.text()


def _spark(out: Console, columns: int, taken: int) -> int:
    """Characters for one of `columns` curves beside `taken` characters; 0 where it would not be readable."""
    room = (out.width - taken) // columns
    return min(SPARK, room) if room >= 6 else 0


def _head(summaries: Sequence[JsonRow], out: Console) -> None:
    names = [s["name"] for s in summaries]
    _pairs("Runs" if len(names) > 1 else names[0], names, [_header(s) for s in summaries], out)


def _header(s: JsonRow) -> dict[str, str]:
    steps = f"{s['step']:,}" + (f" of {s['steps']:,}" if s["steps"] else "")
    parameters = number(s["parameters"])
    attempts = len(s["attempts"])
    speed = s["speed"]["samples_per_s"]
    return {
        "task": cell(s["task"]),
        "status": s["status"],
        "step": steps,
        "parameters": "-" if parameters is None else f"{parameters / 1e6:.3g} M",
        "trained for": duration(s["time"]["spent_s"])
        + (f" in {attempts} attempts" if attempts > 1 else ""),
        "speed": "-" if speed is None else f"{speed:.4g} samples/s",
        "checkpoints": str(len(s["checkpoints"])),
        "best": best_text(s["best_checkpoint"]),
        "directory": s["path"],
    }


# -- the regime ------------------------------------------------------------------------------------


def _regime(summaries: Sequence[JsonRow], out: Console) -> None:
    if any(s["regime"] for s in summaries):
        facts = [report_regime.facts(s["regime"], out.ascii_only) for s in summaries]
        facts = [
            {key: report_regime.spell(value, out.ascii_only) for key, value in f.items()}
            for f in facts
        ]
        _pairs("Regime", [s["name"] for s in summaries], facts, out)
    for s in summaries:
        if s["regime_note"]:
            out.text(f"{s['name']}: {s['regime_note']}" if len(summaries) > 1 else s["regime_note"])
    if any(s["regime_note"] for s in summaries):
        out.text()


def _regime_curves(summaries: Sequence[JsonRow], out: Console) -> None:
    found = [s["regime"]["series"] if s["regime"] else {} for s in summaries]
    keys = list(dict.fromkeys(key for series in found for key in series))
    if not keys:
        return
    keys.sort(key=lambda key: (key == "r", key == "D", key))  # Dn, Dn by t, D, r
    labels = {key: key.replace("_t", " at t ") for key in keys}
    ends = [
        step
        for s in summaries
        if s["regime"]
        for step in (s["regime"]["first_step"], s["regime"]["last_step"])
    ]
    title = f"Discrepancy and r over steps {min(ends):,} to {max(ends):,}"
    _table_of_curves(title, summaries, found, labels, {key for key in keys if key != "r"}, out)


def _table_of_curves(
    title: str,
    summaries: Sequence[JsonRow],
    found: Sequence[JsonRow],
    labels: dict[str, str],
    logs: set[str],
    out: Console,
) -> None:
    several = len(summaries) > 1
    width = _spark(out, len(summaries), 16 + 12 * len(summaries)) if several else _spark(out, 1, 56)
    rows = []
    for key, label in labels.items():
        cells: list[str] = []
        for series in found:
            curve = series.get(key)
            if curve is None:
                cells += ["-"] * (1 if several else 5)
                continue
            bounds = (0.0, 1.0) if key == "r" else None
            line = sparkline(
                curve["value"], width, ascii_only=out.ascii_only, log=key in logs, bounds=bounds
            )
            if several:
                cells.append(f"{curve['last']:<8.4g} {line}".rstrip())
            else:
                cells += [
                    *(f"{curve[k]:.4g}" for k in ("first", "lowest", "highest", "last")),
                    line,
                ]
        rows.append([label, *cells])
    columns = (
        [s["name"] for s in summaries]
        if several
        else ["first", "lowest", "highest", "last", "over time"]
    )
    out.table(title, ["", *columns], rows)
    out.text()


def _regime_events(summaries: Sequence[JsonRow], out: Console) -> None:
    for s in summaries:
        found = report_regime.timeline(s["regime"]["events"]) if s["regime"] else []
        if not found:
            continue
        out.text("Regime events" + (f", {s['name']}" if len(summaries) > 1 else ""), style="bold")
        for k, entry in enumerate(found):
            if ENDS <= k < len(found) - ENDS:
                if k == ENDS:
                    out.text(
                        f"  ... {len(found) - 2 * ENDS} more, all in events.jsonl and --json ..."
                    )
                continue
            out.text(f"  step {entry['step']:,}  {entry['change']}")
            numbers = entry["evidence"].replace(" ", FIXED).replace("," + FIXED, ", ")
            for text, style in ((entry["reason"], ""), (numbers, "dim")):
                for line in textwrap.wrap(text, max(40, out.width - 6), break_on_hyphens=False):
                    out.text(
                        "      " + report_regime.spell(line.replace(FIXED, " "), out.ascii_only),
                        style=style,
                    )
        out.text()


# -- losses, events, words -------------------------------------------------------------------------


def _span(b: JsonRow) -> str:
    return f"{b['t_low']:.2f}-{b['t_high']:.2f}"


def _bins(summaries: Sequence[JsonRow], out: Console) -> None:
    shown = [s for s in summaries if s["bins"]]
    title = "Loss by noise level t (1 is noise)"
    if len(shown) > 1 and all(
        [_span(b) for b in s["bins"]] == [_span(b) for b in shown[0]["bins"]] for s in shown
    ):
        width = _spark(out, len(shown), 11 + 18 * len(shown))
        columns = ["t", *(f"{s['name']}{suffix}" for s in shown for suffix in ("", " change"))]
        if width:
            columns = ["t", *(text for s in shown for text in (s["name"], "change", "over time"))]
        rows = []
        for k, b in enumerate(shown[0]["bins"]):
            row: list[object] = [_span(b)]
            for s in shown:
                this = s["bins"][k]
                row += [this["last"], percent(this["change"])]
                row += (
                    [sparkline(this["series"], width, ascii_only=out.ascii_only, log=True)]
                    if width
                    else []
                )
            rows.append(row)
        out.table(title, columns, rows)
        out.text()
        return
    width = _spark(out, 1, 48)
    for s in shown:
        rows = [
            [
                _span(b),
                b["first"],
                b["last"],
                percent(b["change"]),
                "-" if b["share"] is None else f"{100 * b['share']:.0f} %",
                sparkline(b["series"], width, ascii_only=out.ascii_only, log=True),
            ]
            for b in s["bins"]
        ]
        out.table(
            title + (f", {s['name']}" if len(summaries) > 1 else ""),
            ["t", "first", "last", "change", "share", "over time"],
            rows,
        )
        out.text()


def _curves(summaries: Sequence[JsonRow], out: Console) -> None:
    found = [s["series"] for s in summaries]
    labels = {key: label for key, label in CURVES.items() if any(key in series for series in found)}
    scores = dict.fromkeys(key for series in found for key in series if key.startswith("eval/"))
    labels |= {key: f"eval {report_evaluation.label(key)}" for key in scores}
    if labels:
        _table_of_curves("Curves", summaries, found, labels, {"train/loss", "valid/loss"}, out)


def _events(summaries: Sequence[JsonRow], out: Console) -> None:
    """All but the regime's, which have a section with their evidence."""
    several = len(summaries) > 1
    rows = []
    for s in summaries:
        for event in s["events"]:
            if s["regime"] and event.get("mechanism") == "regime":
                continue
            change = f"{event.get('from') or '-'} -> {event.get('to')}"
            cells = [event["step"], event.get("mechanism"), change, event.get("reason") or ""]
            rows.append([s["name"], *cells] if several else cells)
    if rows:
        out.table(
            "Events", [*(["run"] if several else []), "step", "mechanism", "change", "reason"], rows
        )
        out.text()


def _reading(summaries: Sequence[JsonRow], out: Console) -> None:
    for s in summaries:
        for title, lines in (("Reading", s["reading"]), ("Not readable", s["damage"])):
            if lines:
                out.text(f"{title}, {s['name']}" if len(summaries) > 1 else title, style="bold")
                for line in lines:
                    out.text(f"  - {report_regime.spell(line, out.ascii_only)}")
