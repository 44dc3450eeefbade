"""The commands that read: `evaluate`, `inspect-regime` and `doctor`, mostly by their JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_results import Cli, document, noise

from stagecli.data.audio import write_wav


def test_evaluate_t2a(cli: Cli, runs: Path) -> None:
    answer = document(cli("evaluate", "runs/t2a", "--json"))
    assert (
        answer["task"] == "t2a" and answer["clips"] == 4 and answer["checkpoint"] == "step_00000010"
    )
    rows = {row["system"]: row["metrics"] for row in answer["rows"]}
    assert list(rows) == ["samples", "real, train split", "codec round trip", "real, test split"]
    distances = [
        metrics["fd_log_mel"]["value"] for metrics in rows.values() if "fd_log_mel" in metrics
    ]
    assert len(distances) == 3 and min(distances) >= 0
    assert answer["conventions"]["fd_log_mel"]
    assert json.loads(Path(runs.parent / answer["file"]).read_text()) == {
        k: v for k, v in answer.items() if k != "file"
    }
    assert document(cli("evaluate", "runs/t2a", "--json"))["rows"] == answer["rows"], (
        "not repeatable"
    )
    other = document(cli("evaluate", "runs/t2a", "--json", "--seed", "5", "--steps", "3"))
    assert (other["seed"], other["steps"]) == (5, 3)
    assert other["rows"][0] != answer["rows"][0]


def test_evaluate_without_a_run_takes_the_newest_finished_one_and_names_it(
    cli: Cli, runs: Path
) -> None:
    shutil.copytree(runs / "sr", runs / "unfinished")
    info = json.loads((runs / "unfinished" / "run.json").read_text())
    (runs / "unfinished" / "run.json").write_text(json.dumps({**info, "status": "failed"}))
    result = cli("evaluate", "--task", "sr", "--json", "--cutoff", "2000", "--samples", "2")
    answer = document(result)
    assert "scoring runs/sr\n" in result.stderr
    assert answer["run"] == "runs/sr"
    systems = {(row["system"], row["cutoff"]) for row in answer["rows"]}
    assert systems == {(name, 2000) for name in ("unprocessed", "copy-up", "model")}
    metrics = {row["system"]: row["metrics"] for row in answer["rows"]}
    # Below the cutoff the output is the input, up to leakage of a barely trained network.
    low = [metrics[system]["lsd_lf"]["value"] for system in ("unprocessed", "model")]
    assert low[1] < low[0] + 0.5 < metrics["model"]["lsd_hf"]["value"]
    assert set(metrics["model"]) >= {
        "lsd",
        "lsd_hf",
        "lsd_lf",
        "si_sdr",
        "snr",
        "mr_stft",
        "log_mel",
    }


def test_evaluate_tables_name_the_convention(cli: Cli, runs: Path) -> None:
    result = cli("evaluate", "runs/sr", "--samples", "2")
    assert result.code == 0
    for word in ("unprocessed", "copy-up", "model", "lsd_hf", "2048", "cheby1 order 8"):
        assert word in result.stdout
    assert result.stdout.isascii()


def test_evaluate_folders(cli: Cli, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / "real").mkdir(exist_ok=True)
        (tmp_path / "generated").mkdir(exist_ok=True)
        write_wav(tmp_path / "real" / f"{name}.wav", noise(0.5, 16000, seed), 16000)
        write_wav(tmp_path / "generated" / f"{name}.wav", 2 * noise(0.5, 16000, seed), 16000)
    both = ("--reference", "real", "--generated", "generated", "--json")
    sr = document(cli("evaluate", *both, "--task", "sr", "--cutoff", "4000"))
    # LSD(g x, x) = 2 |log10 g|
    assert sr["rows"][0]["metrics"]["lsd"]["value"] == pytest.approx(2 * np.log10(2), abs=1e-3)
    t2a = document(cli("evaluate", *both, "--task", "t2a"))
    assert t2a["rows"][0]["metrics"]["fd_log_mel"]["value"] > 0
    same = document(
        cli("evaluate", "--reference", "real", "--generated", "real", "--json", "--task", "t2a")
    )
    assert same["rows"][0]["metrics"]["fd_log_mel"]["value"] == pytest.approx(0, abs=1e-3)
    assert "--cutoff" in cli("evaluate", *both, "--task", "sr").stderr
    (tmp_path / "generated" / "b.wav").unlink()
    alone = cli("evaluate", *both, "--task", "sr", "--cutoff", "4000")
    assert alone.code == 2 and "real/b.wav" in alone.stderr


def test_inspect_regime_one_and_several(cli: Cli, runs: Path, tmp_path: Path) -> None:
    one = document(cli("inspect-regime", "runs/t2a", "--json"))
    assert (one["task"], one["step"], one["status"]) == ("t2a", 10, "finished")
    several = document(cli("inspect-regime", "runs/t2a", "runs/sr", "--json"))
    assert [entry["task"] for entry in several] == ["t2a", "sr"]
    shown = cli("inspect-regime", "runs/t2a", "runs/sr")
    assert shown.code == 0 and "t2a" in shown.stdout and "sr" in shown.stdout
    page = cli("inspect-regime", "runs/t2a", "--html", "page.html", "--json")
    assert {**document(page), "time": None} == {**one, "time": None}
    assert "page.html" in page.stderr and "</html>" in (tmp_path / "page.html").read_text()


def test_doctor(cli: Cli) -> None:
    answer = document(cli("doctor", "--json"))
    assert answer["ok"] is True
    assert {"torch", "torchaudio", "soundfile"} <= {check["name"] for check in answer["checks"]}
    assert "torch" in cli("doctor").stdout
