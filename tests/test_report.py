"""Run directories as read: whole, in training, damaged, foreign; their numbers and sentences."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.run_directories import T0, make_run, metrics_row, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecli.errors import StageError
from stagecli.files import number
from stagecli.metrics.theil_sen import theil_sen
from stagecli.report.curves import level_change, thin, trend
from stagecli.report.formats import duration, significant, sparkline, step_of
from stagecli.report.html import html_page
from stagecli.report.run_report import read_run
from stagecli.report.summary import summarize_run


def test_whole_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    (run / "checkpoints" / "step_00001000").mkdir(parents=True)
    (run / "checkpoints" / "step_00001000" / "state.json").write_text("{}")
    (run / "checkpoints" / "latest").write_text("step_00001000\n")
    (run / "samples" / "step_00001000").mkdir(parents=True)
    write_rows(
        run / "samples" / "step_00001000" / "samples.jsonl", [{"path": "a.wav"}, {"path": "b.wav"}]
    )
    (run / "evals").mkdir()
    (run / "evals" / "one.json").write_text('{"fad": NaN}')
    report = read_run(run)
    summary = summarize_run(report)
    assert report.damage == []
    assert report.checkpoints == [{"name": "step_00001000", "step": 1000, "latest": True}]
    assert report.samples == [{"path": "samples/step_00001000", "count": 2}]
    assert summary["evals"] == [{"file": "evals/one.json", "document": {"fad": None}}]
    assert (summary["name"], summary["status"], summary["step"], summary["steps"]) == (
        "demo",
        "finished",
        1000,
        1000,
    )
    assert summary["validation"]["best_step"] == 1000
    assert summary["validation"]["by_t"]["0.30"]["last"] == pytest.approx(
        summary["validation"]["last"] / 2
    )
    assert summary["speed"]["samples_per_s"] == 64.0
    assert summary["time"]["spent_s"] == pytest.approx(500, abs=1)
    assert summary["loss"]["first"] == pytest.approx(metrics_row(10)["train/loss"])
    shares = [b["share"] for b in summary["bins"]]
    assert sum(shares) == pytest.approx(1)
    assert shares[3] == 0
    assert summary["bins"][3]["last"] is None
    assert summary["bins"][0]["change"] < -0.8


def test_summary_is_json_without_nan(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    with (run / "events.jsonl").open("a") as file:
        file.write(
            '{"step": 5, "attempt": 1, "mechanism": "x", "from": "a", "to": "b",'
            ' "evidence": {"v": 1e999}}\n'
        )
    summary = summarize_run(read_run(run))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["events"][1]["evidence"] == {"v": None}


@pytest.mark.parametrize("with_info", [True, False])
def test_superseded_rows_are_dropped(tmp_path: Path, with_info: bool) -> None:
    run = make_run(tmp_path / "demo", steps=500)
    rows = [metrics_row(s) for s in range(10, 501, 10)] + [
        metrics_row(s, 2) for s in range(310, 401, 10)
    ]
    write_rows(run / "metrics.jsonl", rows)
    attempts = [{"attempt": a, "from_step": f} for a, f in ((1, 0), (2, 300))]
    (run / "run.json").write_text(json.dumps({"schema": 1, "steps": 500, "attempts": attempts}))
    if not with_info:
        (run / "run.json").unlink()
    report = read_run(run)
    assert [row["step"] for row in report.metrics] == list(range(10, 401, 10))
    assert report.superseded == 20
    assert all(row["step"] <= 300 for row in report.bins)
    assert report.last_seen[1] == T0 + 250
    assert any("trained again" in sentence for sentence in summarize_run(report)["reading"])


def test_a_resume_that_wrote_nothing_still_supersedes(tmp_path: Path) -> None:
    attempts = [{"attempt": a, "from_step": f} for a, f in ((1, 0), (2, 600), (3, 400))]
    report = read_run(make_run(tmp_path / "demo", attempts=attempts))
    assert report.metrics[-1]["step"] == 400


def test_line_cut_off_at_the_end(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", status="running")
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[:-40])
    report = read_run(run)
    assert report.metrics[-1]["step"] == 990
    assert report.damage == ["metrics.jsonl:100: cut off in the middle of a line; read up to there"]


def test_damage_in_the_middle_names_lines_and_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[4] = lines[4][:20] + lines[5]
    lines[7] = '{"no": "step"}'
    (run / "metrics.jsonl").write_bytes(("\n".join(lines) + "\n").encode() + b"\xff\x00\xfe\n")
    report = read_run(run)
    assert len(report.metrics) == 98
    assert [d.split(": ")[0] for d in report.damage] == [
        "metrics.jsonl:5",
        "metrics.jsonl:8",
        "metrics.jsonl:101",
    ]


def test_other_schema_reads_what_it_can(tmp_path: Path) -> None:
    report = read_run(make_run(tmp_path / "demo", schema=7))
    assert report.damage == [
        "run.json: has schema 7, this version reads schema 1; showing what is understood"
    ]
    assert summarize_run(report)["step"] == 1000


def test_files_missing_or_broken(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    run.mkdir()
    (run / "run.json").write_text('{"schema": 1, \n broken')
    report = read_run(run)
    assert any(line.startswith("run.json:2: not readable") for line in report.damage)
    assert "metrics.jsonl: missing" in report.damage
    summary = summarize_run(report)
    assert (summary["name"], summary["status"], summary["step"]) == ("demo", "unknown", 0)
    assert json.dumps(summary, allow_nan=False)
    assert html_page([report])


def test_not_a_run_directory(tmp_path: Path) -> None:
    make_run(tmp_path / "demo")
    with pytest.raises(StageError, match="not a run directory") as caught:
        read_run(tmp_path)
    assert str(tmp_path / "demo") in (caught.value.hint or "")
    with pytest.raises(StageError, match="does not exist") as caught:
        read_run(tmp_path / "demoo")
    assert str(tmp_path / "demo") in (caught.value.hint or "")
    assert caught.value.exit_code == 2


def reading(run: Path, rows: list[dict[str, Any]], **options: Any) -> str:
    write_rows(run / "metrics.jsonl", rows)
    return "\n".join(summarize_run(read_run(run), **options)["reading"])


def test_reading_follows_the_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    rows = [
        metrics_row(s, **{"valid/loss": 1 - s / 1000 if s <= 600 else 0.4 + s / 5000})
        for s in range(10, 1001, 10)
    ]
    text = reading(run, rows)
    assert (
        "best validation loss 0.4 at step 600; no improvement for 400 steps, now 50 % above it"
        in text
    )
    assert "validation loss rose" in text
    assert "speed" not in text
    text = reading(
        run, [{**row, "speed/samples_per_s": 64.0 if row["step"] < 500 else 30.0} for row in rows]
    )
    assert "speed fell from 64 to 30 samples/s around step 495" in text
    text = reading(
        run,
        [{**row, "train/loss": None if row["step"] == 700 else row["train/loss"]} for row in rows],
    )
    assert "not finite in 1 row, first at step 700" in text
    noisy = [{**row, "train/loss": 0.5 + 0.01 * math.sin(row["step"] ** 2)} for row in rows]
    assert "training loss shows no trend beyond its noise" in reading(run, noisy)


def test_running_tells_time_left_or_death(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", status="running")
    rows = [metrics_row(s) for s in range(10, 401, 10)]
    assert "running, step 400 of 1,000 (40 %), about 5m 00s left" in reading(
        run, rows, now=T0 + 201
    )
    assert "may have been killed" in reading(run, rows, now=T0 + 9000)


def test_sparkline() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8, ascii_only=True) == "_.-~=+*#"
    assert sparkline([1, None, 2], 3) == "▁ █"
    assert sparkline([1, 10, 100], 3, log=True) == "▁▅█"
    assert sparkline([5, 5], 4) == "▄▄"
    assert sparkline([], 4) == sparkline([None, math.nan], 4) == ""


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.floats(), max_size=40), st.integers(0, 20), st.booleans())
def test_sparkline_fits_and_never_fails(values: list[float | None], width: int, log: bool) -> None:
    drawn = sparkline(values, width, ascii_only=True, log=log)
    assert len(drawn) <= width
    assert drawn.isascii()


def test_trends_resist_outliers_and_ask_for_evidence() -> None:
    steps = list(range(100))
    line = [2.0 - 0.01 * s for s in steps]
    line[50] = 1e6
    assert theil_sen(steps, line) == pytest.approx(-0.01)
    flat = trend(steps, [1 + 0.01 * math.sin(s * s) for s in steps], 1.0)
    assert flat is not None
    assert flat["direction"] == "flat"
    falling = trend(steps, [math.exp(-0.01 * s) for s in steps], 1.0)
    assert falling is not None
    assert falling["direction"] == "falling"
    assert falling["change"] == pytest.approx(math.expm1(-0.99), rel=1e-3)
    assert trend(steps[:5], line[:5], 1.0) is None
    assert level_change(steps, [100.0] * 60 + [40.0] * 40) == {
        "step": 60,
        "before": 100,
        "after": 40,
        "held": 1,
    }
    assert level_change(steps, [100.0 + s % 7 for s in steps]) is None


def test_numbers_as_text() -> None:
    values = (None, 0.123456, 11025.0, 123456.7, 1e-5, -2500.0)
    assert [significant(v) for v in values] == ["-", "0.1235", "11025", "123457", "1e-05", "-2500"]
    assert step_of(80, 100) == "80 of 100"
    assert step_of(1200, None) == "1,200"
    assert step_of(80, 70) == "80, past the budget of 70"


def test_small_helpers() -> None:
    assert [duration(s) for s in (None, 0.4, 61, 7500, 400_000)] == [
        "-",
        "0s",
        "1m 01s",
        "2h 05m",
        "4d 15h",
    ]
    assert [number(v) for v in (1, 2.5, True, "3", None, math.inf)] == [
        1.0,
        2.5,
        None,
        None,
        None,
        None,
    ]
    assert thin([1, 2, 3, 4], [1.0, 3.0, 5.0, 9.0], 2) == [
        (1.5, 2.0, 1.0, 3.0),
        (3.5, 7.0, 5.0, 9.0),
    ]
    assert thin([], [], 5) == []
