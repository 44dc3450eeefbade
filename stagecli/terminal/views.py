"""What a person sees while a run trains: the view interface, its plain forms, and the board of the live one.

No terminal library here: the board says what there is to say as lines of styled text, and console.py draws it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Protocol

from stagecli.files import JsonRow
from stagecli.metrics.in_training import PREFIX, described, higher_is_better
from stagecli.report.curves import Curve, bar, duration, number, sparkline
from stagecli.report.mechanisms import figures
from stagecli.terminal.views_regime import RegimeBoard, probe_text

Line = list[tuple[str, str]]  # (text, style) pieces; a style is never the only carrier of a meaning
LEAST_BINS = 3  # lines kept for the noise bins where lines are few
PLAIN_SECONDS = 10.0  # a line of preparation at most this often where there is no terminal


@dataclass
class Board:
    """State of a run as a view hears of it; `lines` may be called from another thread at any time."""

    info: JsonRow = field(default_factory=dict)
    at: int | None = None  # None until the first step: still preparing
    last: JsonRow = field(default_factory=dict)  # newest value of every metric
    loss: Curve = field(default_factory=Curve)
    valid: Curve = field(default_factory=Curve)
    best: tuple[float, int] | None = None
    scores: JsonRow = field(default_factory=dict)  # the newest row of an evaluation
    score: Curve = field(default_factory=Curve)  # of the number that is followed
    best_score: tuple[float, int] | None = None
    bins_first: JsonRow | None = None
    bins_last: JsonRow | None = None
    event: JsonRow | None = None
    regime: RegimeBoard = field(default_factory=RegimeBoard)
    work: dict[str, list[float]] = field(
        default_factory=dict
    )  # what -> [done, total, began, newest]
    current: str | None = None
    closing: str | None = None
    began: float = field(default_factory=time.monotonic)
    marks: list[tuple[float, int]] = field(default_factory=list)  # (clock, step) of the last rows

    def add_progress(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        entry = self.work.setdefault(what, [0, total, now, now])
        if done < entry[0]:  # begun anew
            entry[2] = now
        entry[0] = done
        entry[1] = total
        entry[3] = now
        self.current = None if total and done >= total else what

    def add_row(self, row: JsonRow) -> None:
        self.last = {
            **self.last,
            **{k: v for k, v in row.items() if v is not None or k == "train/loss"},
        }
        loss = number(row.get("train/loss"))
        valid = number(row.get("valid/loss"))
        if loss is not None:
            self.loss.add(loss)
        if valid is not None:
            self.valid.add(valid)
            if self.best is None or valid < self.best[0]:
                self.best = (valid, row["step"])
        if scores(row):
            self._add_scores(row)
        self.marks = [*self.marks[-20:], (time.monotonic(), row["step"])]

    def followed(self) -> str:
        """The row `eval/...` that is drawn: the one that chooses the best checkpoint, or the first."""
        named = self.info.get("best_by")
        return named if named in self.scores else next(iter(scores(self.scores)))

    def _add_scores(self, row: JsonRow) -> None:
        self.scores = row
        value, sign = (
            number(row.get(self.followed())),
            -1 if higher_is_better(self.followed()) else 1,
        )
        if value is not None:
            self.score.add(value)
            if self.best_score is None or sign * value < sign * self.best_score[0]:
                self.best_score = (value, row["step"])

    def add_bins(self, row: JsonRow) -> None:
        self.bins_first = self.bins_first or row
        self.bins_last = row

    def add_event(self, row: JsonRow) -> None:
        if row.get("mechanism") == "regime":
            self.regime.event = row
        else:
            self.event = row

    def left(self) -> float | None:
        """Seconds to the last step at the pace of the last rows, which includes validation."""
        steps = self.info.get("steps")
        if (
            not steps
            or self.at is None
            or len(self.marks) < 2
            or self.marks[-1][1] <= self.marks[0][1]
        ):
            return None
        (t0, s0) = self.marks[0]
        (t1, s1) = self.marks[-1]
        return max(0.0, (steps - s1) * (t1 - t0) / (s1 - s0) - (time.monotonic() - t1))

    def lines(self, width: int, height: int, plain: bool) -> list[Line]:
        """The view in `width` columns and at most `height` lines; plain: ASCII only."""
        out = self._head(width)
        if self.at is None:
            return (out + self._preparing(width, plain))[:height]
        out += self._progress(width, plain)
        out += [[], *self._metrics(width, plain)]
        foot = self._foot()
        room = height - len(out) - len(foot) - 1
        least = LEAST_BINS if room > 2 * LEAST_BINS else 0
        regime = self.regime.lines(width, room - least, plain, self.info.get("steps"))
        out += [[], *regime] if regime else []
        room -= len(regime) + 1 if regime else 0
        bins = self._bins(width, room, plain) if room >= 2 else []
        out += [[], *bins] if bins else []
        return (out + foot)[:height]

    def _head(self, width: int) -> list[Line]:
        i = self.info
        parameters = number(i.get("parameters"))
        where = " on ".join(str(i[k]) for k in ("precision", "device") if i.get(k))
        parts = [
            i.get("task"),
            f"{parameters / 1e6:.3g} M parameters" if parameters else None,
            f"batch {i['batch_size']}" if i.get("batch_size") else None,
            where,
        ]
        left = "   ".join(str(p) for p in parts if p)
        right = str(i.get("run_dir") or "")
        if right and len(left) + len(right) + 3 <= width:
            return [[(left, ""), (right.rjust(width - len(left)), "dim")]]
        return [[(left, "")]] if left else []

    def _preparing(self, width: int, plain: bool) -> list[Line]:
        out: list[Line] = [[]] if self.info else []
        label = max((len(w) for w in self.work), default=0)
        for what, (done, total, began, newest) in list(self.work.items()):
            if what != self.current:
                out.append(
                    [
                        (f"{what:<{label}}", ""),
                        (f"  {done:,.0f} in {duration(newest - began)}", "dim"),
                    ]
                )
                continue
            count = f"  {done:,.0f}/{total:,.0f}" if total else f"  {done:,.0f}"
            room = max(4, min(40, width - label - len(count) - 2))
            out.append(
                [
                    (f"{what:<{label}}  ", ""),
                    (bar(done / total if total else 0, room, plain), "cyan"),
                    (count, ""),
                ]
            )
        return out or [[("preparing", "")]]

    def _progress(self, width: int, plain: bool) -> list[Line]:
        step = self.at or 0
        steps = self.info.get("steps")
        count = f"{step:,}/{steps:,}" if steps else f"step {step:,}"
        share = step / steps if steps else 0.0
        text = f"  {count}  {100 * share:5.1f} %"
        seconds = self.left()
        clock = f"elapsed {duration(time.monotonic() - self.began)}"
        if self.closing is None and seconds is not None:
            clock += f"   left {duration(seconds)}"
        if self.current:  # validation, samples, saving
            done, total = self.work[self.current][:2]
            clock += f"   now: {self.current} {done:,.0f}" + (f"/{total:,.0f}" if total else "")
        rate = number(self.last.get("speed/samples_per_s"))
        pace = number(self.last.get("speed/step_s"))
        speed = (f"{rate:.4g} samples/s   " if rate else "") + (
            f"{pace:.3g} s/step" if pace else ""
        )
        gap = max(3, width - len(clock) - len(speed))
        return [
            [(bar(share, max(8, width - len(text)), plain), "cyan"), (text, "bold")],
            [(clock, ""), (" " * gap + speed, "")],
        ]

    def _metrics(self, width: int, plain: bool) -> list[Line]:
        room = min(60, width - 52)
        out: list[Line] = []
        for key, label, curve in (
            ("train/loss", "train loss", self.loss),
            ("valid/loss", "valid loss", self.valid),
        ):
            if key not in self.last:
                continue
            value = number(self.last[key])
            line = sparkline(curve.values, room, ascii_only=plain, log=True)
            out.append(
                [
                    (f"{label}  ", "dim"),
                    (f"{value:<9.4g}" if value is not None else "not finite", "bold"),
                    (f" {line}", "cyan"),
                ]
            )
            if key == "valid/loss" and self.best:
                out[-1].append((f"  best {self.best[0]:.4g} at step {self.best[1]:,}", ""))
        out += self._evaluation(room, plain) if self.scores else []
        parts = [("learning rate", "optim/lr", ".3g"), ("gradient norm", "train/grad_norm", ".3g")]
        small: Line = []
        for label, key, form in parts:
            value = number(self.last.get(key))
            if value is not None:
                small += [(f"{label} ", "dim"), (f"{value:{form}}   ", "")]
        said = figures(self.last).items()
        stages: list[Line] = [
            [(f"{name:<10}  ", "dim"), (text[: max(0, width - 12)], "")] for name, text in said
        ]
        return [*out, *([small] if small else []), *stages]

    def _evaluation(self, room: int, plain: bool) -> list[Line]:
        """The newest evaluation: the number that is followed with its curve, then the others."""
        name = self.followed()
        value = number(self.scores[name])
        first: Line = [
            (f"{name:<10}  ", "dim"),
            (f"{value:<9.4g}" if value is not None else "undefined", "bold"),
            (f" {sparkline(self.score.values, room, ascii_only=plain)}", "cyan"),
        ]
        if self.best_score:
            first.append((f"  best {self.best_score[0]:.4g} at step {self.best_score[1]:,}", ""))
        rest: Line = [(" " * 12, "")]
        for key in scores(self.scores):
            if key != name and (other := number(self.scores[key])) is not None:
                rest += [(f"{key.removeprefix(PREFIX)} ", "dim"), (f"{other:.4g}   ", "")]
        return [first, [*rest, (f"at step {self.scores['step']:,}", "dim")]]

    def _bins(self, width: int, room: int, plain: bool) -> list[Line]:
        """Loss by noise bin with its change since the first row; neighbours merge where lines are few."""
        row = self.bins_last
        first = self.bins_first
        if row is None or first is None:
            return []
        size = len(row["loss"])
        group = -(-size // max(1, room - 1))
        table = []
        for a in range(0, size, group):
            span = slice(a, a + group)
            table.append(
                (
                    row["edges"][a],
                    row["edges"][min(a + group, size)],
                    _mean(row, span),
                    _mean(first, span),
                )
            )
        top = max((v for _, _, v, _ in table if v is not None), default=0.0) or 1.0
        out: list[Line] = [
            [
                (
                    "noise t     loss      "
                    + ("since resume" if self.info.get("step") else "since start"),
                    "dim",
                )
            ]
        ]
        for low, high, now, before in table:
            change = f"{100 * (now / before - 1):+.0f} %" if now is not None and before else "-"
            value = "-" if now is None else f"{now:.4g}"
            drawn = bar((now or 0.0) / top, max(4, min(60, width - 36)), plain, track=False)
            out.append(
                [
                    (f"{low:.2f}-{high:.2f}   ", "dim"),
                    (f"{value:<9} ", ""),
                    (f"{change:>8}   ", ""),
                    (drawn.rstrip(), "cyan"),
                ]
            )
        return out

    def _foot(self) -> list[Line]:
        out: list[Line] = []
        e = self.event or (self.regime.event if self.regime.last is None else None)
        if e:
            change = f"{e.get('from') or '-'} -> {e.get('to')}"
            text = f"step {e['step']:,}  {e.get('mechanism')}  {change}"
            out = [
                [],
                [
                    ("last event  ", "dim"),
                    (text + (f": {e['reason']}" if e.get("reason") else ""), "bold"),
                ],
            ]
        return out


def scores(row: JsonRow) -> list[str]:
    """Names of a row's evaluation numbers, without those at single cutoffs."""
    return [key for key in row if (found := described(key)) is not None and not found[1]]


def _mean(row: JsonRow, span: slice) -> float | None:
    """Mean loss of neighbouring bins, by their counts."""
    pairs = [
        (v, n)
        for v, n in zip(row["loss"][span], row["count"][span], strict=False)
        if v is not None and n
    ]
    weight = sum(n for _, n in pairs)
    return sum(v * n for v, n in pairs) / weight if weight else None


# -- views -----------------------------------------------------------------------------------------


class View(Protocol):
    """What the trainer tells a person while it trains; rows are those of the run directory's files."""

    def start(self, info: JsonRow) -> None:
        """info: name, task, steps, step, parameters, device, precision, batch_size, run_dir."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Work before or between steps, such as filling the cache; total 0: not known."""

    def step(self, step: int) -> None:
        """After each optimiser step; cheap."""

    def row(self, row: JsonRow) -> None:
        """A row of metrics.jsonl."""

    def bins(self, row: JsonRow) -> None:
        """A row of bins.jsonl."""

    def probe(self, row: JsonRow) -> None:
        """A row of probes.jsonl."""

    def event(self, row: JsonRow) -> None:
        """A row of events.jsonl."""

    def note(self, message: str) -> None:
        """Something to know about before training, such as a clip that is left out."""

    def close(self, status: str, message: str) -> None:
        """The end; may be called twice."""


class QuietView:
    """Says nothing, except how a run ended that did not finish."""

    def start(self, info: JsonRow) -> None: ...
    def progress(self, what: str, done: int, total: int) -> None: ...
    def step(self, step: int) -> None: ...
    def row(self, row: JsonRow) -> None: ...
    def bins(self, row: JsonRow) -> None: ...
    def probe(self, row: JsonRow) -> None: ...
    def event(self, row: JsonRow) -> None: ...
    def note(self, message: str) -> None: ...

    def close(self, status: str, message: str) -> None:
        if status != "finished" and message:
            line(f"{status}: {message}")


def line(text: str) -> None:
    """One whole line on stderr, readable in a log file; never wrapped."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    sys.stderr.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    sys.stderr.flush()


class Throttle:
    """Lines about work of known length: the first, the last, and one in `PLAIN_SECONDS` between."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, int]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        when, before = self._last.get(what, (-1e9, -1))
        ended = bool(total) and done >= total
        if (ended and before != done) or done < before or now - when >= PLAIN_SECONDS:
            self._last[what] = (now, done)
            line(f"{what}: {done:,}" + (f" of {total:,}" if total else ""))


class Notes:
    """What a view that speaks says line by line; the live view's panel stays below."""

    def note(self, message: str) -> None:
        line(message)


class PlainView(Notes):
    """One line per log interval and per event, for logs and pipes; the line carries the newest probe."""

    def __init__(self) -> None:
        self._board = Board()
        self._throttle = Throttle()
        self._closed = False
        self._probe: JsonRow | None = None  # not said yet

    def start(self, info: JsonRow) -> None:
        self._board.info = info
        known = [
            f"{key} {value}" for key, value in info.items() if key != "name" and value is not None
        ]
        line(f"train {info.get('name', '')}: {', '.join(known)}")

    def progress(self, what: str, done: int, total: int) -> None:
        self._throttle(what, done, total)

    def step(self, step: int) -> None:
        self._board.at = step

    def row(self, row: JsonRow) -> None:
        board = self._board
        board.at = row["step"]
        board.add_row(row)
        loss = number(row.get("train/loss"))
        steps = board.info.get("steps")
        parts = [f"step {row['step']}" + (f"/{steps}" if steps else "")]
        if "train/loss" in row:
            parts.append("loss not finite" if loss is None else f"loss {loss:.4g}")
        for key, label in (
            ("valid/loss", "valid"),
            *((key, key) for key in scores(row)),
            ("optim/lr", "lr"),
            ("train/grad_norm", "grad"),
            ("speed/samples_per_s", "samples/s"),
        ):
            if (value := number(row.get(key))) is not None:
                parts.append(f"{label} {value:.4g}")
        if self._probe is not None:
            parts.append(probe_text(self._probe, at=row["step"]))
            self._probe = None
        left = board.left()
        line("  ".join([*parts, *([f"left {duration(left)}"] if left is not None else [])]))

    def bins(self, row: JsonRow) -> None: ...

    def probe(self, row: JsonRow) -> None:
        self._probe = row

    def event(self, row: JsonRow) -> None:
        change = f"{row.get('from') or '-'} -> {row.get('to')}"
        line(
            f"event at step {row['step']}: {row.get('mechanism')} {change}: {row.get('reason') or ''}"
        )

    def close(self, status: str, message: str) -> None:
        if not self._closed:
            if self._probe is not None:
                line(
                    f"step {self._probe['step']}  {probe_text(self._probe, at=self._probe['step'])}"
                )
                self._probe = None
            line(f"{status}: {message}" if message else status)
        self._closed = True
