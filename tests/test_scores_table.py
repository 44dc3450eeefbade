"""The table of single files: one row a file, the worst first, within the width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_results import Cli

from stagecli.evaluate.file_table import show_files
from stagecli.terminal.console import Console

METRICS = ("lsd", "si_sdr", "mr_stft", "spectral_convergence", "log_mel")


def scored(files: int, baselines: tuple[str, ...] = ("unprocessed", "copy-up")) -> Any:
    """A document whose file number i has an LSD of i."""
    rows = []
    for system in (*baselines, "made"):
        kind = "generated" if system == "made" else "baseline"
        for i in range(files):
            name = "a_name_that_is_far_too_long_for_a_table_" * (i == 0) + f"{i}.wav"
            metrics = {metric: {"value": i + 0.25} for metric in METRICS}
            row = {"system": system, "kind": kind, "cutoff": 4000.0, "n": 1, "metrics": metrics}
            rows.append({**row, "file": f"{system}/{name}", "reference": f"real/{name}"})
    conventions = dict.fromkeys(METRICS, "")
    return {
        "generated": "made",
        "reference": "real",
        "rows": rows[-1:],
        "files": rows,
        "conventions": conventions,
    }


def shown(document: Any, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    console = Console()
    with console.captured() as text:
        show_files(document, console)
    return text.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 140])
def test_every_file_is_one_line_that_fits(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(scored(12), width, monkeypatch)
    rows = [line for line in lines if ".wav" in line]
    assert len(rows) == 12 and max(map(len, rows)) <= width
    assert [float(row.split()[1]) for row in rows] == [i + 0.25 for i in reversed(range(12))]
    assert "worst lsd first" in lines[0] and "made" in lines[0]
    assert "..." in rows[-1] and rows[-1].split()[0].endswith("0.wav")
    assert any("si_sdr dB >" in line for line in lines[:2]) or width == 60
    narrow = any("too narrow for" in line for line in lines)
    assert narrow == (width < 140)


def test_the_worst_of_many_are_shown_and_the_rest_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(scored(30), 100, monkeypatch)
    rows = [line for line in lines if ".wav" in line]
    assert len(rows) == 24 and rows[0].startswith("29.wav")
    assert any("6 better files are not shown" in line for line in lines)


def test_a_value_that_is_none_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    document = scored(3, ())
    document["files"][1]["metrics"]["lsd"]["value"] = None
    rows = [line for line in shown(document, 100, monkeypatch) if ".wav" in line]
    assert rows[0].split()[:2] == ["1.wav", "-"]


def test_a_run_on_its_own_split_says_where_the_single_scores_are(cli: Cli, runs: Path) -> None:
    text = cli("evaluate", "runs/sr", "--samples", "2", "--metrics", "lsd").stdout
    assert "by file" not in text
    assert "scores of single clips: --csv FILE or --json" in text
