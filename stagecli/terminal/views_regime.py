"""The regime while a run trains: its part of the live board, and its words in the plain view's line."""

from __future__ import annotations

from dataclasses import dataclass, field

from stagecli.files import JsonRow
from stagecli.report.curves import Curve, bar, number, sparkline
from stagecli.report.regime import RECENT, cost, levels, rate, rate_text, spell, unit

Line = list[tuple[str, str]]
COLUMN = 9  # characters per t in the table of D
MARK = "regime"


@dataclass
class RegimeBoard:
    """State of the regime as a view hears of it; `lines` may be called from another thread at any time."""

    last: JsonRow | None = None  # None until the first probe: nothing is shown
    recent: list[JsonRow] = field(
        default_factory=list
    )  # the last probes with a number, oldest first
    event: JsonRow | None = None
    curve: Curve = field(default_factory=Curve)  # Dn

    def add(self, row: JsonRow) -> None:
        """A row of probes.jsonl."""
        value = number(row.get("Dn"))
        if value is not None:
            self.curve.add(value)
            self.recent = [*self.recent, row][-RECENT:]
        self.last = row

    def lines(self, width: int, room: int, plain: bool, steps: int | None = None) -> list[Line]:
        """The regime in `width` columns and at most `room` lines, the most important kept; steps: the budget."""
        row = self.last
        if row is None or room < 1:
            return []
        table = self._table(width, plain)
        found = [  # (what is left out first: the highest), line
            (0, self._head(row, width, plain)),
            (2, table[0]),
            (1, table[1]),
            (6, table[2]),
            (3, self._slope(row, steps)),
            (5, self._cost(row)),
            *([(4, self._event())] if self.event else []),
        ]
        keep = sorted(rank for rank, _ in found)[:room]
        lines = [line for rank, line in found if rank in keep]
        return [[(spell(text, plain), style) for text, style in line] for line in lines]

    def _head(self, row: JsonRow, width: int, plain: bool) -> Line:
        stage = str(row.get("stage") or "unknown stage")
        stage = "waiting for the clock" if stage == "waiting" else stage
        if row.get("frozen") is True:
            stage += ", frozen: D is rising"
        if row.get("failsafe") is True:
            stage += ", on the fail-safe"
        source = row.get("source")
        if source not in (None, "measured"):
            stage += f", r is {'replayed' if source == 'replay' else source}"
        r = number(row.get("r"))
        value = "not known" if r is None else f"{r:<6.3f}"
        room = min(40, width - len(stage) - len(value) - len(MARK) - 8)
        out = [(f"{MARK}  ", "dim"), (stage, "bold"), ("   r ", "dim"), (value, "bold")]
        return [*out, (bar(r, room, plain), "cyan")] if r is not None and room >= 8 else out

    def _table(self, width: int, plain: bool) -> list[Line]:
        """Head, Dn and D: the mean and each t, of the newest probe with a number."""
        newest = self.recent[-1] if self.recent else self.last or {}
        names = levels([newest])[: max(0, (width - 20) // COLUMN - 1)]
        head = "".join(f"{name:<{COLUMN}}" for name in ("mean", *(f"t {t}" for t in names)))
        room = width - 8 - len(head)
        drawn = (
            sparkline(self.curve.values, min(40, room), ascii_only=plain, log=True)
            if room >= 8
            else ""
        )
        over = "Dn over time" if drawn and room >= 12 else ""
        out: list[Line] = [[(" " * 8 + head + over, "dim")]]
        for key in ("Dn", "D"):
            cells = [number(newest.get(name)) for name in (key, *(f"{key}_t{t}" for t in names))]
            text = "".join(f"{'-' if v is None else f'{v:.3f}':<{COLUMN}}" for v in cells)
            out.append([(f"{key:<8}", "dim"), (text[:COLUMN], "bold"), (text[COLUMN:], "")])
        if drawn:
            out[1].append((drawn, "cyan"))
        return out

    def _slope(self, row: JsonRow, steps: int | None) -> Line:
        found = rate(self.recent, unit(steps, row["step"]))
        q = number(row.get("q"))
        error = number(row.get("q_se"))
        words = "too few probes yet" if found is None else rate_text(found)
        out = [("slope   ", "dim"), (words if found is None else f"Dn {words}", "")]
        if q is not None:
            out += [
                ("   q ", "dim"),
                (f"{q:.2f}" + ("" if error is None else f" ± {2 * error:.2g}"), ""),
            ]
        return out

    def _cost(self, row: JsonRow) -> Line:
        took = number(row.get("seconds"))
        total = number(row.get("seconds_total"))
        text = f"step {row['step']:,}"
        if number(row.get("Dn")) is None:
            text += " gave no number"
        text += "" if took is None else f", {took:.2g} s"
        text += "" if total is None else f"; all probes {cost(total, number(row.get('share')))}"
        return [("probe   ", "dim"), (text, "")]

    def _event(self) -> Line:
        e = self.event or {}
        change = f"step {e['step']:,}  {e.get('from') or '-'} -> {e.get('to')}"
        return [("event   ", "dim"), (change + (f": {e['reason']}" if e.get("reason") else ""), "")]


def probe_text(row: JsonRow, at: int) -> str:
    """`Dn 0.412  r 0.120`, for the line of step `at`; the probe's step is named where it is another."""
    value = number(row.get("Dn"))
    r = number(row.get("r"))
    text = "Dn has no number" if value is None else f"Dn {value:.4g}"
    text += "" if row["step"] == at else f" (step {row['step']})"
    return text + ("" if r is None else f"  r {r:.3f}")
