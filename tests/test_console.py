"""What reaches stdout and stderr: tables, JSON, errors, and the views of a run in training."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.run_directories import make_run

from stagecli.errors import Problem, StageError
from stagecli.report.curves import GrowingCurve
from stagecli.report.formats import bar
from stagecli.report.run_report import read_run
from stagecli.report.summary import summarize_run
from stagecli.terminal import console
from stagecli.terminal.board import Board
from stagecli.terminal.board_lines import board_lines
from stagecli.terminal.console import Console
from stagecli.terminal.inspect import inspect
from stagecli.terminal.live import LiveView, make_view
from stagecli.terminal.regime_board import regime_key
from stagecli.terminal.views import PlainView, QuietView

INFO = {
    "name": "demo",
    "task": "t2a",
    "steps": 100,
    "step": 0,
    "parameters": 4_100_000,
    "device": "cpu",
    "precision": "fp32",
    "batch_size": 8,
    "run_dir": "runs/demo",
}
ROW = {
    "step": 10,
    "time": 0.0,
    "attempt": 1,
    "train/loss": 0.5,
    "train/grad_norm": 1.25,
    "optim/lr": 1e-4,
    "speed/samples_per_s": 80.0,
    "speed/step_s": 0.1,
}
PROBE = {
    "step": 10,
    "time": 0.0,
    "attempt": 1,
    "D": 0.334,
    "D_t0.30": 0.25,
    "D_t0.50": 0.34,
    "D_t0.70": 0.41,
    "Dn": 0.412,
    "Dn_t0.30": 0.31,
    "Dn_t0.50": 0.42,
    "Dn_t0.70": 0.51,
    "tau": 9.0,
    "tau_end": 90.0,
    "slope": -0.002,
    "slope_se": 0.0001,
    "p_rise": 0.99,
    "r": 0.12,
    "r_now": 0.11,
    **{f"G_t{t}": 0.1 for t in ("0.30", "0.50", "0.70")},
    **{f"R_t{t}": to_come for t, to_come in (("0.30", 0.2), ("0.50", 0.3), ("0.70", 0.424))},
    **{f"r_t{t}": 0.3 for t in ("0.30", "0.50", "0.70")},
    "frozen": False,
    "stage": "acquisition",
    "source": "measured",
    "seconds": 1.25,
    "seconds_total": 190.0,
    "share": 0.021,
    "monitor": "bundled judge",
}
EVENT = {
    "step": 10,
    "mechanism": "trainer",
    "from": None,
    "to": "running",
    "reason": "begun [bold]",
    "evidence": {},
}


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "STAGECLI_NO_PROGRESS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True


def bins_row(step: int, size: int = 10) -> dict[str, Any]:
    edges = [k / size for k in range(size + 1)]
    losses: list[float | None] = [0.1 + k / (size * step) for k in range(size)]
    losses[0] = None
    return {"step": step, "edges": edges, "count": [0] + [4] * (size - 1), "loss": losses}


def test_error_snapshot(capsys: pytest.CaptureFixture[str]) -> None:
    error = StageError(
        "`recipes/tiny.toml` has 2 problems",
        problems=[
            Problem(
                "recipes/tiny.toml:14:1", "train.warmpu_steps: unknown key", "warmpu_steps = 500"
            ),
            Problem("--set", "stage.high must be > low (0.2), got 0.1 [0, 1]"),
        ],
        hint="did you mean `train.warmup_steps`?",
    )
    Console().error(error)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: `recipes/tiny.toml` has 2 problems\n"
        "  recipes/tiny.toml:14:1  train.warmpu_steps: unknown key\n"
        "     14 | warmpu_steps = 500\n"
        "        | ^^^^^^^^^^^^\n"
        "  --set                   stage.high must be > low (0.2), got 0.1 [0, 1]\n"
        "\n"
        "hint: did you mean `train.warmup_steps`?\n"
    )


def test_long_lines_of_errors_are_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/data/" + "long/" * 40 + "file.wav"
    Console().error(StageError(f"cannot read {path}"))
    assert path in capsys.readouterr().err


def test_json_is_alone_on_stdout(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = Console(as_json=True)
    out.note("working")
    out.warn("careful")
    out.text("not data")
    out.table("nothing", ["a"], [[1]])
    inspect([summarize_run(read_run(make_run(tmp_path / "demo")))], out)
    stdout, stderr = capsys.readouterr()
    assert json.loads(stdout)["name"] == "demo"
    assert stderr == "working\nwarning: careful\n"


def test_result_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    out = Console()
    out.result({"clips": 3, "loss": 0.123456}, None)
    out.result(
        {}, lambda: out.table("Clips", ["name", "count"], [["[red]a", 5], ["b", 10], ["c", None]])
    )
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["clips  3", "loss  0.1235"]
    assert lines[2:] == [
        "Clips",
        "name    count",
        "─" * 14,
        "[red]a      5",
        "b          10",
        "c           -",
    ]


@pytest.mark.parametrize("several", [False, True])
def test_inspect_reads_without_colour(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, several: bool
) -> None:
    names = ["one", "two"] if several else ["one"]
    inspect([summarize_run(read_run(make_run(tmp_path / name))) for name in names], Console())
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b[3" not in out
    for expected in (
        *names,
        "finished",
        "1,000 of 1,000",
        "0.25-0.50",
        "valid loss",
        "running",
        "Reading",
    ):
        assert expected in out
    assert re.search(r"best validation loss 0.1067 at step 1,000", out)
    tables = out.split("Reading")[0].replace(str(tmp_path), "")
    assert max(len(line.rstrip()) for line in tables.splitlines()) <= 100


def test_dumb_terminal_is_ascii(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    inspect([summarize_run(read_run(make_run(tmp_path / "demo")))], Console())
    out = capsys.readouterr().out
    assert out.isascii()
    assert "\x1b" not in out
    board = Board(info=INFO, step=10)
    board.add_row({**ROW, "valid/loss": 0.4})
    board.add_bins(bins_row(10))
    assert all(
        text.isascii() for line in board_lines(board, 76, 21, plain=True) for text, _ in line
    )


def test_latin_stdout_does_not_fail() -> None:
    code = (
        "from stagecli.terminal.console import Console;"
        " Console().text('\\u00e9 \\u2588'); Console().table('', ['a'], [['\\u4e2d']])"
    )
    env = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=env)
    assert done.stdout.isascii()


def test_import_is_light() -> None:
    code = (
        "import stagecli.terminal.live, stagecli.terminal.follow, stagecli.report.html,"
        " stagecli.report.plot, sys; print(sorted(sys.modules))"
    )
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    ).stdout
    assert not {"'rich'", "'torch'", "'numpy'", "'matplotlib'"} & set(re.findall(r"'\w+'", modules))


def test_plain_view_one_line_per_interval(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView()
    for done in range(1001):
        view.progress("checking audio", done, 1000)
    view.start(INFO)
    for step in range(1, 101):
        view.step(step)
        if step % 10 == 0:
            view.row({**ROW, "step": step, "train/loss": None if step == 50 else 0.5})
            view.bins(bins_row(step))
    view.row({**ROW, "step": 100, "valid/loss": 0.25})
    view.event(EVENT)
    view.close("finished", "next: inspect")
    view.close("finished", "next: inspect")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[:2] == ["checking audio: 0 of 1,000", "checking audio: 1,000 of 1,000"]
    assert lines[2].startswith("train demo: task t2a, steps 100")
    assert len(lines) == 3 + 10 + 1 + 1 + 1
    assert lines[3].startswith("step 10/100  loss 0.5  lr 0.0001  grad 1.25  samples/s 80")
    assert "loss not finite" in lines[7]
    assert "valid 0.25" in lines[13]
    assert lines[14] == "event at step 10: trainer running: begun [bold]"
    assert lines[15] == "finished: next: inspect"


def test_plain_view_carries_the_newest_probe(capsys: pytest.CaptureFixture[str]) -> None:
    """At most one line per log interval, however many probes there are."""
    view = PlainView()
    view.start(INFO)
    view.probe({**PROBE, "step": 8})
    view.probe(PROBE)
    view.row(ROW)
    view.row({**ROW, "step": 20})
    view.probe({**PROBE, "step": 25, "Dn": None})
    view.row({**ROW, "step": 30})
    view.probe({**PROBE, "step": 35})
    view.close("finished", "")
    lines = capsys.readouterr().err.splitlines()[1:]
    key = regime_key("t2a")  # once, before the first probe
    assert tuple(lines[: len(key)]) == key
    lines = lines[len(key) :]
    assert len(lines) == 5
    assert "  Dn 0.412  r 0.120" in lines[0]
    assert "Dn" not in lines[1]
    assert "  Dn without a value (step 25)  r 0.120" in lines[2]
    assert lines[3:] == ["step 35  Dn 0.412  r 0.120", "finished"]


def test_quiet_view_only_says_how_it_failed(capsys: pytest.CaptureFixture[str]) -> None:
    view = QuietView()
    view.start(INFO)
    view.row(ROW)
    view.probe(PROBE)
    view.close("finished", "done")
    assert capsys.readouterr() == ("", "")
    view.close("interrupted", "resume with ...")
    assert capsys.readouterr() == ("", "interrupted: resume with ...\n")


def test_make_view_picks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_view(), PlainView)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(make_view(), LiveView)
    assert isinstance(make_view(verbose=True), PlainView)
    assert isinstance(make_view(quiet=True), QuietView)
    monkeypatch.setenv("STAGECLI_NO_PROGRESS", "1")
    assert isinstance(make_view(), PlainView)
    monkeypatch.delenv("STAGECLI_NO_PROGRESS")
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_view(), PlainView)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_live_view_leaves_a_final_panel(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    stream = Terminal(encoding)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setenv("LINES", "30")
    view = LiveView()
    view.progress("filling cache", 3, 10)
    view.start(INFO)
    view.step(10)
    view.row({**ROW, "valid/loss": 0.45})
    view.bins(bins_row(10))
    view.progress("validation", 1, 4)
    view.probe(PROBE)
    view.event(EVENT)
    view.close("interrupted", "to go on: train demo")
    view.close("interrupted", "again")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert text.isascii() == (encoding == "ascii")
    final = text[text.rindex("train demo: interrupted") :]
    for expected in (
        "10/100",
        "10.0 %",
        "train loss  0.5",
        "best 0.45 at step 10",
        "80 samples/s",
        "begun [bold]",
    ):
        assert expected in final
    assert "regime  acquisition   r 0.120" in final
    assert final.rstrip().endswith("to go on: train demo")
    assert "again" not in text


@pytest.mark.parametrize(("width", "height"), [(36, 8), (76, 21), (96, 27), (136, 37)])
def test_board_fits(width: int, height: int) -> None:
    board = Board(info={**INFO, "run_dir": "runs/" + "x" * 30})
    for done in (1, 5):
        board.work.update("filling cache", done, 9)
    assert len(board_lines(board, width, height, False)) <= height
    for step in range(10, 100, 10):
        board.step = step
        board.add_row({**ROW, "step": step, "valid/loss": 1 / step})
        board.add_bins(bins_row(step, size=20))
    board.add_event(EVENT)
    lines = board_lines(board, width, height, False)
    assert len(lines) <= height
    if width >= 76:
        assert all(sum(len(text) for text, _ in line) <= width for line in lines)
        assert any("0.8" in text for line in lines for text, _ in line)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("width", "height"), [(36, 13), (56, 16), (76, 21), (116, 42)])
def test_board_shows_the_regime_from_the_first_probe_on(
    width: int, height: int, plain: bool
) -> None:
    board = Board(info=INFO, step=10)
    board.add_row({**ROW, "valid/loss": 0.4})
    board.add_bins(bins_row(10))
    regime = {
        **EVENT,
        "mechanism": "regime",
        "from": "waiting",
        "to": "acquisition",
        "reason": "5 probes are enough",
    }
    board.add_event(EVENT)
    board.add_event(regime)
    before = shown(board, width, height, plain)
    assert "regime " not in before
    assert "trainer" in before
    for step in range(1, 30):
        board.regime.add({**PROBE, "step": step, "Dn": 1 / step, "tau": 0.9 * step})
    text = shown(board, width, height, plain)
    assert len(text.splitlines()) <= height
    assert "acquisition" in text
    assert text.isascii() or not plain
    if width >= 56:
        assert all(
            len(line) <= width
            for line in text.splitlines()
            if line.startswith(("regime", "Dn", "to come", "progress", "   "))
        )
        assert "r 0.120" in text
    if width >= 76:
        assert re.search(r"noise t +loss", text)
        for part in (
            "t 0.3",
            "0.310",
            "0.424",
            "##" if plain else "██",
            "24 % made, Dn by -0.018",
            "per 10 steps",
            "5 probes are enough",
            "3m 10s, 2.1 % of training",
            "last event  step 10  trainer",
        ):
            assert part in text
    board.regime.add(
        {**PROBE, "step": 30, "Dn": None, "D": None, "r": None, "frozen": True, "source": "replay"}
    )
    text = shown(board, 116, 42, plain)
    for part in (
        "0.034",
        "gave no value",
        "r unknown",
        "r is frozen because D is rising",
        "r is replayed",
    ):
        assert part in text


def shown(board: Board, width: int, height: int, plain: bool) -> str:
    return "\n".join(
        "".join(text for text, _ in line) for line in board_lines(board, width, height, plain)
    )


def test_board_parts() -> None:
    assert bar(0.5, 4, True) == "##.."
    assert bar(0.55, 4, False, track=False) == "██▎ "
    assert bar(9.0, 4, False) == "████"
    curve = GrowingCurve()
    for k in range(5000):
        curve.add(float(k))
    assert 200 < len(curve.values) <= 513
    assert curve.values == sorted(curve.values)


def test_progress_without_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("scoring", 100) as advance:
        for _ in range(50):
            advance(2)
    assert capsys.readouterr() == ("", "scoring: 2 of 100\nscoring: 100 of 100\n")
