"""The regime as read from a run's probes: whole, damaged, large, side by side, followed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.run_directories import (
    EDGES,
    LEVELS,
    MONITOR,
    make_run,
    metrics_row,
    probe_rows,
    regime_run,
    write_rows,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import stagecli
from stagecli.report import probe_rows as report_probe_rows
from stagecli.report.html import html_page
from stagecli.report.panel import Panel
from stagecli.report.panels import run_panels
from stagecli.report.regime import dn_rate, slope_unit
from stagecli.report.regime_text import rate_text
from stagecli.report.run_report import read_run
from stagecli.report.summary import summarize_run
from stagecli.terminal.console import Console
from stagecli.terminal.follow import fitting_sections, follow
from stagecli.terminal.inspect import inspect
from stagecli.terminal.regime_board import RegimeBoard, probe_text


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def summary_of(run: Path) -> dict[str, Any]:
    return summarize_run(read_run(run))


def printed(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> str:
    inspect([summary_of(run) for run in runs], Console())
    return capsys.readouterr().out


def section(text: str, title: str) -> str:
    """The lines under a title, up to the next empty line."""
    return text.split(f"{title}", 1)[1].split("\n\n", 1)[0]


# --- a whole run ----------------------------------------------------------------------------------


def test_summary_says_what_the_probes_say(tmp_path: Path) -> None:
    run = regime_run(tmp_path / "demo")
    rows, events = probe_rows(20_000, 200)
    g = summary_of(run)["regime"]
    assert (g["probes"], g["without_number"], g["every"], g["last_step"]) == (200, 0, 100, 20_000)
    for key in (
        "D",
        "Dn",
        "slope",
        "slope_se",
        "r",
        "r_now",
        "tau_end",
        "stage",
        "source",
        "monitor",
    ):
        assert g[key] == rows[-1][key], key
    assert list(g["by_t"]) == ["0.30", "0.50", "0.70"]
    assert g["by_t"]["0.70"] == {
        "D": rows[-1]["D_t0.70"],
        "Dn": rows[-1]["Dn_t0.70"],
        "made": rows[-1]["G_t0.70"],
        "to_come": rows[-1]["R_t0.70"],
        "r": rows[-1]["r_t0.70"],
    }
    assert g["old_rule"] is False
    assert [span["stage"] for span in g["stages"]] == ["waiting", "acquisition", "refinement"]
    assert g["stages"][1]["from_step"] == 500
    assert g["stages"][2]["from_step"] == events[1]["step"]
    assert g["events"] == [*events]
    assert g["rows"] == read_run(run).probes == rows
    assert g["seconds"] == pytest.approx(240) and g["share"] == pytest.approx(0.024)
    assert g["series"]["r"]["last"] == rows[-1]["r"]
    assert len(g["series"]["Dn_t0.50"]["value"]) == len(g["series"]["Dn_t0.50"]["step"]) == 60
    assert summary_of(run)["regime_note"] is None
    for sentence in g["reading"]:
        assert sentence in summary_of(run)["reading"]
    assert json.loads(json.dumps(summary_of(run), allow_nan=False))["regime"] == g


def test_slope_reads_as_change_of_dn_per_steps() -> None:
    row = {"Dn": 0.5, "r": 0.1, "r_now": 0.1, "slope": -2e-4, "slope_se": 1e-5}
    rows = [{**row, "step": 100 * k, "tau": 50.0 * k} for k in range(1, 11)]
    found = dn_rate(rows, 1000)
    assert found is not None
    assert found["change"] == pytest.approx(-0.1)  # tau moves half as fast as the step
    assert found["error"] == pytest.approx(0.01)
    assert rate_text(found) == "-0.1 ± 0.01 per 1,000 steps"
    only = dn_rate(rows[-1:], 1000)
    assert only is not None and only["change"] == found["change"]  # one probe: its average pace
    assert dn_rate([{**rows[-1], "slope": None}], 1000) is None
    assert dn_rate([], 1000) is None
    old = {key: value for key, value in rows[-1].items() if key != "r_now"}
    assert dn_rate([old], 1000) is None  # its slope was relative
    assert [slope_unit(steps, 40) for steps in (None, 300, 1000, 5000, 20_000)] == [
        1,
        10,
        100,
        1000,
        1000,
    ]


def test_terminal_shows_the_regime(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed([regime_run(tmp_path / "demo")], capsys)
    facts = section(text, "\nRegime\n")
    for expected in (
        "refinement since step",
        "r now",
        "measured",
        MONITOR,
        "200, every 100 steps",
        "codec 0.07, another clip 0.71",
        "4m 00s, 2.4 % of training",
        "per 1,000 steps",
    ):
        assert expected in facts
    levels = section(text, "\nProgress in Dn by noise level").splitlines()
    assert levels[1].split() == ["t", "Dn", "made", "to", "come", "r"]
    assert [line.split()[0] for line in levels[3:]] == ["0.30", "0.50", "0.70"]
    curves = section(text, "\nDiscrepancy and r over steps 100 to 20,000").splitlines()
    assert [line.split("  ")[0] for line in curves[3:]] == [
        *("Dn", "Dn at t 0.30", "Dn at t 0.50", "Dn at t 0.70", "D", "r")
    ]
    assert curves[3].rstrip().endswith("▁▁▁") and curves[-1].rstrip().endswith("███")
    timeline = section(text, "\nRegime events\n")
    for expected in (
        "step 500  waiting -> acquisition",
        "5 probes are enough",
        "acquisition -> refinement",
        "r_now 0.",
    ):
        assert expected in timeline
    assert "regime" not in section(text, "\nEvents").lower()  # said once
    bins = section(text, "\nLoss by noise level")
    assert "over time" in bins and "█▁" in bins
    assert "% of the semantic progress that this budget allows" in text.split("\nReading\n")[1]


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_without_colour_or_unicode_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(tmp_path)
    runs = [
        regime_run(Path("one")),
        regime_run(Path("two"), steps=5000, count=50),
        make_run(Path("plain")),
    ]
    for chosen in ([runs[0]], runs[:2], runs):
        text = printed(chosen, capsys)
        assert text.isascii() and "\x1b" not in text
        tables = text.split("Reading")[0].replace("plain: no regime", "\nplain").splitlines()
        assert max(len(line.rstrip()) for line in tables if not line.startswith("plain")) <= width


def test_side_by_side_has_a_column_per_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [regime_run(tmp_path / "one"), regime_run(tmp_path / "two", steps=10_000, count=100)]
    text = printed([*runs, make_run(tmp_path / "plain")], capsys)
    facts = section(text, "\nRegime").splitlines()
    assert facts[1].split() == ["one", "two", "plain"]
    now = next(line for line in facts if line.startswith("r now"))
    assert re.fullmatch(r"r now\s+0\.9\d+\s+0\.9\d+\s+-\s*", now)
    levels = section(text, "\nProgress in Dn by noise level").splitlines()
    assert [line.split()[0] for line in levels[3:]] == ["one"] * 3 + ["two"] * 3
    assert "plain: no regime: this run has no probes; a [stage.regime] section" in text
    assert text.count("Regime events, ") == 2
    bins = section(text, "\nLoss by noise level").splitlines()
    assert bins[1].count("over time") == 3  # of each run, not the last rows only
    assert bins[3].count("▁") > 20


# --- none, few, and controls ----------------------------------------------------------------------


def test_a_run_without_probes_says_how_to_turn_them_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "demo")
    summary = summary_of(run)
    assert summary["regime"] is None
    assert (
        summary["regime_note"].startswith("no regime")
        and "[stage.regime]" in summary["regime_note"]
    )
    text = printed([run], capsys)
    assert text.count("[stage.regime]") == 1
    assert "Loss by noise level" in text and "train loss" in text
    assert summary["regime_note"] in html_page([read_run(run)])
    (run / "recipe.toml").write_text("[stage.regime]\nevery = 100\n")
    assert (
        summary_of(run)["regime_note"]
        == "no regime: the recipe has a [stage.regime] section, but the run contains no probe"
    )
    (run / "run.json").write_text((run / "run.json").read_text().replace("finished", "running"))
    assert summary_of(run)["regime_note"].startswith("no regime yet")
    (run / "recipe.toml").write_text("not TOML [")
    assert summary_of(run)["regime_note"].startswith("no regime")


@pytest.mark.parametrize("count", [1, 2, 5, 13])
def test_few_probes(tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    run = make_run(tmp_path / "demo", steps=20_000, status="running")
    write_rows(run / "probes.jsonl", probe_rows(20_000, 200)[0][:count])
    text = printed([run], capsys)
    facts = section(text, "\nRegime\n")
    assert re.search(rf"  probes +{count}\b", facts)
    assert re.search(r"slope of Dn +-\n", facts + "\n") or count >= 5
    assert ("Progress in Dn by noise level" in text) == (count >= 5)
    drawn = [len(panel.traces) for panel in run_panels([read_run(run)]) if isinstance(panel, Panel)]
    assert sum(drawn) == 4 + 3 + (4 + 2)


def test_alarm_and_controls_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = regime_run(tmp_path / "demo")
    rows, _ = probe_rows(20_000, 200)
    write_rows(
        run / "probes.jsonl",
        [{**row, "frozen": True, "source": "linear"} for row in rows],
    )
    facts = section(printed([run], capsys), "\nRegime\n")
    assert "r is frozen because D is rising" in facts
    assert "linear" in facts


def test_probes_without_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = regime_run(tmp_path / "demo")
    rows, _ = probe_rows(20_000, 200)
    gone = ("D", "Dn", *(f"{d}_t{t}" for d in ("D", "Dn") for t in LEVELS))
    rows = [{**row, **dict.fromkeys(gone, None)} if k > 196 else row for k, row in enumerate(rows)]
    write_rows(run / "probes.jsonl", rows)
    repeat = {
        "attempt": 1,
        "mechanism": "regime",
        "from": "refinement",
        "to": "refinement",
        "evidence": {"Dn": "nan"},
    }
    with (run / "events.jsonl").open("a") as file:
        file.write(
            "".join(
                json.dumps({**repeat, "step": s, "reason": f"the probe is nan: r {s}"}) + "\n"
                for s in (19_800, 19_900, 20_000)
            )
        )
    g = summary_of(run)["regime"]
    assert (g["without_number"], g["last_step_with_number"], g["Dn"]) == (
        3,
        19_700,
        rows[196]["Dn"],
    )
    text = printed([run], capsys)
    assert "at step 19,700; later probes have no value" in text
    assert "step 19,800  still refinement (3 times, the last at step 20,000)" in text
    assert "3 of 200 probes gave no value" in text
    write_rows(run / "probes.jsonl", [{**row, **dict.fromkeys(gone, None)} for row in rows])
    assert "all 200 probes gave no value" in printed([run], capsys)
    assert html_page([read_run(run)])


# --- damage ---------------------------------------------------------------------------------------


def test_a_row_cut_off_while_it_is_written(tmp_path: Path) -> None:
    run = regime_run(tmp_path / "demo", status="running")
    text = (run / "probes.jsonl").read_text()
    (run / "probes.jsonl").write_text(text[:-100])
    report = read_run(run)
    assert len(report.probes) == 199
    assert report.damage == ["probes.jsonl:200: cut off in the middle of a line; read up to there"]


def test_after_a_kill_the_later_attempt_counts(tmp_path: Path) -> None:
    """Killed at 1,500, resumed at 1,000, and 1,100 probed again; with run.json and without."""
    run = regime_run(tmp_path / "demo")
    rows = [{"step": s, "attempt": 1, "Dn": 0.5, "r": 0.1, "tau": s} for s in range(100, 1501, 100)]
    rows += [{"step": s, "attempt": 2, "Dn": 0.4, "r": 0.2, "tau": s} for s in (1100, 1200)]
    write_rows(run / "probes.jsonl", rows)
    for with_info in (True, False):
        report = read_run(run)
        assert [row["step"] for row in report.probes] == list(range(100, 1201, 100)), with_info
        assert [row["attempt"] for row in report.probes[-3:]] == [1, 2, 2]
        assert report.damage == (
            [] if with_info else ["run.json: missing; name, budget and status are unknown"]
        )
        (run / "run.json").unlink(missing_ok=True)


def test_rows_out_of_order_are_dropped_and_reported(tmp_path: Path) -> None:
    run = regime_run(tmp_path / "demo")
    rows, _ = probe_rows(20_000, 200)
    stray = [{**rows[50], "step": 3}, {**rows[50], "step": 999_999}]
    write_rows(run / "probes.jsonl", [*rows[:51], stray[0], *rows[51:100], stray[1], *rows[100:]])
    report = read_run(run)
    assert [row["step"] for row in report.probes] == [row["step"] for row in rows]
    assert report.damage == [
        "probes.jsonl: dropped 2 rows out of order (the step goes backwards within an attempt)",
    ]


def test_garbage_rows_and_another_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = regime_run(tmp_path / "demo", schema=2)
    lines = (run / "probes.jsonl").read_text().splitlines()
    lines[10] = "\x00" * 40
    lines[20] = '{"step": true, "Dn": 1}'
    lines[30] = '{"step": 1' + "0" * 400 + "}"
    lines[40] = "[" * 5000
    row = json.loads(lines[199])
    lines[199] = json.dumps(
        {**row, "r": "high", "stage": 7, "monitor": ["x"], "tau": None, "share": {}, "new": [1]}
    )
    (run / "probes.jsonl").write_text("\n".join(lines) + "\n")
    report = read_run(run)
    assert len(report.probes) == 196
    assert report.damage[0].startswith("run.json: has schema 2")
    named = [*(f"probes.jsonl:{k}: not a readable row; skipped" for k in (11, 21, 31))]
    assert report.damage[1:] == [*named, "probes.jsonl: 4 damaged lines in all"]
    assert report.probes[-1]["new"] == [1]
    text = printed([run], capsys)
    assert "unknown since step 20,000" in text
    assert html_page([report])


VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
)
KEYS = st.sampled_from(
    [
        *report_probe_rows.NUMBERS,
        *report_probe_rows.TEXTS,
        "Dn_t0.30",
        "G_t0.30",
        "R_t0.30",
        "density_q50",
        "Dn_tx",
        "D_t0.5",
        "frozen",
        "failsafe",
        "mechanism",
        "from",
        "to",
        "reason",
        "evidence",
    ]
)
ROWS = st.lists(
    st.fixed_dictionaries({"step": st.integers(-5, 400), "attempt": st.integers(1, 3)}).flatmap(
        lambda row: st.dictionaries(KEYS, VALUES, max_size=12).map(lambda more: {**more, **row})
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS)
def test_no_row_makes_reading_fail(
    tmp_path_factory: pytest.TempPathFactory, rows: Any, events: Any
) -> None:
    run = make_run(tmp_path_factory.mktemp("runs") / "demo", steps=100)
    write_rows(run / "probes.jsonl", rows)
    write_rows(run / "events.jsonl", [{**row, "mechanism": "regime"} for row in events])
    report = read_run(run)
    summary = summarize_run(report)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    with Console().captured() as text:
        inspect([summary, summary], Console())
        inspect([summary], Console())
    assert "demo" in text.getvalue()
    assert run_panels([report, report])


@settings(max_examples=10, deadline=None)  # a picture takes a while
@given(ROWS, ROWS)
def test_no_row_makes_drawing_fail(
    tmp_path_factory: pytest.TempPathFactory, rows: Any, events: Any
) -> None:
    run = make_run(tmp_path_factory.mktemp("runs") / "demo", steps=100)
    write_rows(run / "probes.jsonl", rows)
    write_rows(run / "events.jsonl", [{**row, "mechanism": "regime"} for row in events])
    assert "</html>" in html_page([read_run(run)])


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_no_row_makes_the_live_view_fail(rows: Any) -> None:
    board = RegimeBoard()
    for row in rows:
        board.add(row)
        for room in (0, 1, 3, 9):
            assert len(board.lines(76, room, False, {"steps": 100})) <= room
        assert probe_text(row, step=10)


# --- pictures -------------------------------------------------------------------------------------


def test_marks_come_from_the_probes_where_events_are_lost(tmp_path: Path) -> None:
    run = regime_run(tmp_path / "demo")
    whole = [
        mark.label for panel in run_panels([read_run(run)]) for mark in panel.marks if mark.label
    ]
    assert whole == ["acquisition", "refinement"] * 2
    (run / "events.jsonl").unlink()
    drawn = {panel.title: panel for panel in run_panels([read_run(run)])}
    marks = next(panel.marks for title, panel in drawn.items() if title.startswith("Discrepancy"))
    assert [mark.label for mark in marks] == ["acquisition", "refinement"]
    assert marks[0].step == 500
    assert next(panel.bounds for title, panel in drawn.items() if "variable r" in title) == (
        0.0,
        1.15,
    )


# --- following, size, and what is imported --------------------------------------------------------


def test_follow_says_news_and_ends_with_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = regime_run(tmp_path / "demo", steps=2000, status="running")
    info = (run / "run.json").read_text()
    probes = (run / "probes.jsonl").read_text()
    looks = []

    def read() -> list[dict[str, Any]]:
        looks.append(summary_of(run))
        if len(looks) == 1:  # what a training process does between two looks
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(metrics_row(2010)) + "\n")
        else:
            (run / "run.json").write_text(info.replace("running", "finished"))
            (run / "probes.jsonl").write_text(probes + '{"step": 20')
        return [looks[-1]]

    follow([run], read, Console(), 0.01)
    out = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"demo  step 2,000 of 2,000  loss 0\.\d+  Dn 0\.\d+  r 0\.\d+  \w+", out[0])
    assert (
        out[1].startswith("demo  step 2,010, past the budget of 2,000") and "(step 2000)" in out[1]
    )
    assert out[2] == "demo" and "Reading" in out  # then the whole report
    assert len(looks) == 3
    follow([run], read, Console(as_json=True), 0.01)
    (only,) = capsys.readouterr().out.splitlines()
    assert json.loads(only)["regime"]["probes"] == 200


def test_follow_keeps_what_matters_on_a_low_screen(tmp_path: Path) -> None:
    summary = summary_of(regime_run(tmp_path / "demo", status="running"))
    for height in (6, 18, 40, 100):
        lines = fitting_sections([summary], Console(), 100, height)
        assert len(lines) <= height
        assert ("Regime" in lines) == (height > 13)
    assert {"demo", "Regime", "Regime events", "Reading"} <= set(lines)


WITHOUT_DRAWING = ("numpy", "matplotlib")  # packages that only a picture needs


def command(
    *arguments: object, cwd: Path, unused: tuple[str, ...] = ()
) -> tuple[subprocess.CompletedProcess[str], float]:
    """`stagecli inspect-regime` in a process of its own, and its seconds.

    It fails if it imported torch, SciPy, transformers or one of the packages `unused`.
    """
    heavy = {"torch", "scipy", "transformers", *unused}
    code = (
        "import sys; from stagecli.cli import main\n"
        "sys.argv = ['stagecli', 'inspect-regime', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    root = str(Path(stagecli.__file__).parents[1])
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": root, "COLUMNS": "100"},
    )
    return done, time.monotonic() - begun


def large_run(path: Path, probes: int = 1000) -> Path:
    """100,000 steps: 10,000 rows of metrics and of bins, and the probes."""
    make_run(path, steps=100_000)
    row = json.loads((path / "bins.jsonl").read_text().splitlines()[0])
    write_rows(path / "bins.jsonl", [{**row, "step": s} for s in range(10, 100_001, 10)])
    rows, events = probe_rows(100_000, 200)
    rows = [{**rows[k * 200 // probes], "step": (k + 1) * 100_000 // probes} for k in range(probes)]
    write_rows(path / "probes.jsonl", rows)
    write_rows(path / "events.jsonl", events)
    return path


def test_a_large_run_opens_fast_and_without_torch(tmp_path: Path) -> None:
    """About 1 s on an idle machine; the bound here only catches what is out of proportion."""
    large_run(tmp_path / "large")
    done, seconds = command("large", cwd=tmp_path, unused=WITHOUT_DRAWING)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for expected in (
        "100,000 of 100,000",
        "1,000, every 100 steps",
        "acquisition -> refinement",
        "semantic progress",
    ):
        assert expected in done.stdout
    assert seconds < 20
    done, _ = command("large", "--json", "--html", "page.html", "--plot", "page.svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["regime"]["probes"] == len(document["regime"]["rows"]) == 1000
    assert document["regime"]["Dn"] == document["regime"]["rows"][-1]["Dn"]
    assert len(document["bins"][0]["series"]) == len(document["bins"][0]["step"]) == 60
    assert (tmp_path / "page.html").stat().st_size < 400_000
    assert [document["bins"][0]["t_low"], *(b["t_high"] for b in document["bins"])] == EDGES
