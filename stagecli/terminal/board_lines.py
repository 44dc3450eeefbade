"""The live view's lines: the state on the board, laid out in the space of a terminal."""

from __future__ import annotations

import time

from stagecli.files import JsonRow, number
from stagecli.metrics.in_training import PREFIX
from stagecli.report.formats import bar, duration, significant, sparkline, step_of
from stagecli.report.mechanisms import FIGURE_GAP, figures
from stagecli.report.regime_text import change_text
from stagecli.terminal.board import Board, TrackedMetric, metric_names
from stagecli.terminal.console import StyledLine

__all__ = ["board_lines"]

LEAST_BINS = 3  # lines kept for the noise bins where lines are few ...
REGIME_LINES = 7  # ... and the regime, with its most important words, has so many
LABEL = 12  # columns of a metric's label
LONGEST_CURVE = 60
LONGEST_BAR = 40


def board_lines(board: Board, width: int, height: int, plain: bool) -> list[StyledLine]:
    """The view in `width` columns and at most `height` lines; plain: ASCII only."""
    lines = _head(board, width)
    if board.step is None:
        return (lines + _preparing(board, width, plain))[:height]
    lines += _training(board, width, plain)
    lines += [[], *_metrics(board, width, plain)]
    foot = _last_event(board)

    # The regime and the noise bins share what is left, with some lines kept for the bins.
    room = height - len(lines) - len(foot) - 1
    for_bins = LEAST_BINS if room > LEAST_BINS + REGIME_LINES else 0
    regime = board.regime.lines(width, room - for_bins, plain, board.info)
    if regime:
        lines += [[], *regime]
        room -= len(regime) + 1
    bins = _noise_bins(board, width, room, plain) if room >= 2 else []
    if bins:
        lines += [[], *bins]
    return (lines + foot)[:height]


def _head(board: Board, width: int) -> list[StyledLine]:
    info = board.info
    facts = [str(info["task"])] if info.get("task") else []
    parameters = number(info.get("parameters"))
    if parameters:
        facts.append(f"{significant(parameters / 1e6, 3)} M parameters")
    if info.get("batch_size"):
        facts.append(f"batch {info['batch_size']}")
    device = " on ".join(str(info[key]) for key in ("precision", "device") if info.get(key))
    left = "   ".join([*facts, device] if device else facts)
    right = str(info.get("run_dir") or "")
    if right and len(left) + len(right) + 3 <= width:
        return [[(left, ""), (right.rjust(width - len(left)), "dim")]]
    return [[(left, "")]] if left else []


def _preparing(board: Board, width: int, plain: bool) -> list[StyledLine]:
    """Work before the first step: what is done with its time, what is going on with a bar."""
    lines: list[StyledLine] = [[]] if board.info else []
    jobs = list(board.work.jobs.items())
    label = max((len(name) for name, _ in jobs), default=0)
    for name, job in jobs:
        if name != board.work.current:
            spent = duration(job.updated - job.started)
            lines.append([(f"{name:<{label}}", ""), (f"  {job.done:,} in {spent}", "dim")])
            continue
        count = f"  {job.done:,}" + (f"/{job.total:,}" if job.total else "")
        room = max(4, min(LONGEST_BAR, width - label - len(count) - 2))
        share = job.done / job.total if job.total else 0
        lines.append([(f"{name:<{label}}  ", ""), (bar(share, room, plain), "cyan"), (count, "")])
    return lines or [[("preparing", "")]]


def _training(board: Board, width: int, plain: bool) -> list[StyledLine]:
    """The bar of steps, then times and speed."""
    step = board.step or 0
    steps = board.info.get("steps")
    share = min(1.0, step / steps) if steps else 0.0
    if steps and step <= steps:
        text = f"  {step:,}/{steps:,}  {100 * share:5.1f} %"
    else:
        text = f"  step {step_of(step, steps)}"
    times = f"elapsed {duration(time.monotonic() - board.clock.started)}"
    seconds = board.seconds_left()
    if board.closing is None and seconds is not None:
        times += f"   left {duration(seconds)}"
    if board.work.current:  # validation, samples, saving
        job = board.work.jobs[board.work.current]
        times += f"   now: {board.work.current} {job.done:,}"
        times += f"/{job.total:,}" if job.total else ""
    speeds = []
    for key, unit, digits in (
        ("speed/samples_per_s", "samples/s", 4),
        ("speed/step_s", "s/step", 3),
    ):
        value = number(board.last.get(key))
        if value:
            speeds.append(f"{significant(value, digits)} {unit}")
    speed = "   ".join(speeds)
    gap = max(3, width - len(times) - len(speed))
    return [
        [(bar(share, max(8, width - len(text)), plain), "cyan"), (text, "bold")],
        [(times, ""), (" " * gap + speed, "")],
    ]


def _metrics(board: Board, width: int, plain: bool) -> list[StyledLine]:
    """Losses with their curves, the newest evaluation, and what the mechanisms report."""
    room = min(LONGEST_CURVE, width - 52)
    lines: list[StyledLine] = []
    if "train/loss" in board.last:
        value = number(board.last["train/loss"])
        lines.append(_curve("train loss", value, board.loss, room, plain=plain, log=True))
    if "valid/loss" in board.last:
        value = number(board.last["valid/loss"])
        line = _curve("valid loss", value, board.validation, room, plain=plain, log=True)
        lines.append([*line, *_best(board.validation)])
    if board.evaluation:
        lines += _evaluation(board, room, plain)
    small: StyledLine = []
    for label, key in (("learning rate", "optim/lr"), ("gradient norm", "train/grad_norm")):
        value = number(board.last.get(key))
        if value is not None:
            small += [(f"{label} ", "dim"), (f"{significant(value, 3)}   ", "")]
    if small:
        lines.append(small)
    for name, text in figures(board.last).items():
        lines.append([(f"{name:<10}  ", "dim"), (_whole_figures(text, width - LABEL), "")])
    return lines


def _whole_figures(text: str, room: int) -> str:
    """The figures of a mechanism that fit, none of them cut."""
    while len(text) > room and FIGURE_GAP in text:
        text = text.rpartition(FIGURE_GAP)[0]
    return text[: max(0, room)]


def _curve(
    label: str,
    value: float | None,
    metric: TrackedMetric,
    room: int,
    *,
    plain: bool,
    log: bool = False,
    missing: str = "not finite",
) -> StyledLine:
    """Label, value and sparkline of a metric; missing: the text if there is no value."""
    return [
        (f"{label:<10}  ", "dim"),
        (f"{missing if value is None else significant(value):<9}", "bold"),
        (f" {sparkline(metric.curve.values, room, ascii_only=plain, log=log)}", "cyan"),
    ]


def _best(metric: TrackedMetric) -> StyledLine:
    if metric.best is None:
        return []
    return [(f"  best {significant(metric.best[0])} at step {metric.best[1]:,}", "")]


def _evaluation(board: Board, room: int, plain: bool) -> list[StyledLine]:
    """The newest evaluation: the metric that is followed with its curve, then the others."""
    name = board.followed_name()
    metric = board.followed_metric
    value = number(board.evaluation[name])
    first = _curve(name, value, metric, room, plain=plain, missing="undefined")
    rest: StyledLine = [(" " * LABEL, "")]
    for key in metric_names(board.evaluation):
        other = number(board.evaluation[key])
        if key != name and other is not None:
            rest += [(f"{key.removeprefix(PREFIX)} ", "dim"), (f"{significant(other)}   ", "")]
    rest.append((f"at step {board.evaluation['step']:,}", "dim"))
    return [[*first, *_best(metric)], rest]


def _noise_bins(board: Board, width: int, room: int, plain: bool) -> list[StyledLine]:
    """Loss by noise bin, and its change since the first row; neighbours merge to fit."""
    row = board.bins_last
    first = board.bins_first
    if row is None or first is None:
        return []

    # (lowest t, highest t, loss now, loss at first) of each line.
    size = len(row["loss"])
    group = -(-size // max(1, room - 1))
    bins = []
    for start in range(0, size, group):
        bins_of_line = slice(start, start + group)
        end = min(start + group, size)
        low = row["edges"][start]
        high = row["edges"][end]
        bins.append((low, high, _mean(row, bins_of_line), _mean(first, bins_of_line)))

    # The largest loss fills a bar.
    largest = max((now for _, _, now, _ in bins if now is not None), default=0.0) or 1.0
    since = "since resume" if board.info.get("step") else "since start"
    lines: list[StyledLine] = [[(f"noise t     loss      {since}", "dim")]]
    longest = max(4, min(60, width - 36))
    for low, high, now, before in bins:
        change = f"{100 * (now / before - 1):+.0f} %" if now is not None and before else "-"
        filled = bar((now or 0.0) / largest, longest, plain, track=False).rstrip()
        lines.append(
            [
                (f"{low:.2f}-{high:.2f}   ", "dim"),
                (f"{significant(now):<9} ", ""),
                (f"{change:>8}   ", ""),
                (filled, "cyan"),
            ]
        )
    return lines


def _mean(row: JsonRow, bins: slice) -> float | None:
    """Mean loss of neighbouring bins, weighted by their numbers of samples."""
    pairs = [
        (loss, count)
        for loss, count in zip(row["loss"][bins], row["count"][bins], strict=False)
        if loss is not None and count
    ]
    weight = sum(count for _, count in pairs)
    return sum(loss * count for loss, count in pairs) / weight if weight else None


def _last_event(board: Board) -> list[StyledLine]:
    """The newest event; the regime's only until the regime has lines of its own."""
    event = board.last_event
    if event is None and board.regime.last is None:
        event = board.regime.event
    if not event:
        return []
    text = f"step {event['step']:,}  {event.get('mechanism')}  {change_text(event)}"
    if event.get("reason"):
        text += f": {event['reason']}"
    return [[], [("last event  ", "dim"), (text, "bold")]]
