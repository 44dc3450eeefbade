"""Folders of super-resolution: a row per file, and the baselines of low-resolution inputs."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_results import Cli, document, noise

from stagecli.data.audio import write_wav
from stagecli.dsp.resample import resample

RATE = 16000
NAMES = ("a", "b", "c")
COMMAND = ("evaluate", "--task", "sr", "--cutoff", "4000")
FOLDERS = ("--reference", "real", "--generated", "made")


@pytest.fixture(autouse=True)
def folders(tmp_path: Path) -> None:
    """Three clips, nearly the same ones, and inputs at half the rate."""
    for folder in ("real", "made", "low"):
        (tmp_path / folder).mkdir()
    for seed, name in enumerate(NAMES):
        clip = noise(0.5, RATE, seed)
        write_wav(tmp_path / "real" / f"{name}.wav", clip, RATE)
        write_wav(tmp_path / "made" / f"{name}.wav", clip + noise(0.5, RATE, 9) / 10, RATE)
        write_wav(tmp_path / "low" / f"{name}.wav", resample(clip, RATE, RATE // 2), RATE // 2)


def mean_of(scores: Any, system: str, metric: str) -> float:
    row = next(row for row in scores["rows"] if row["system"] == system)
    return row["metrics"][metric]["value"]


def test_every_file_has_a_row_whose_mean_is_the_row_of_the_folder(cli: Cli) -> None:
    scores = document(cli(*COMMAND, *FOLDERS, "--json"))
    files = scores["files"]
    assert [Path(row["file"]).stem for row in files] == list(NAMES)
    for metric in ("lsd", "snr"):
        values = [row["metrics"][metric]["value"] for row in files]
        assert np.mean(values) == pytest.approx(mean_of(scores, "made", metric))
    assert all(row["gain"] == pytest.approx(1, abs=0.05) for row in files)
    assert all(row["delay"] == pytest.approx(0, abs=1e-5) for row in files)


def test_the_table_and_the_csv_name_every_file(cli: Cli) -> None:
    shown = cli(*COMMAND, *FOLDERS).stdout
    assert "by file" in shown and all(f"{name}.wav" in shown for name in NAMES)
    text = cli(*COMMAND, *FOLDERS, "--csv", "-").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    of_lsd = [row for row in rows if row["metric"] == "lsd"]
    assert [Path(row["file"]).stem for row in of_lsd] == ["", *NAMES]
    assert all(float(row["value"]) > 0 for row in of_lsd)


def test_low_resolution_inputs_give_the_baselines(cli: Cli) -> None:
    result = cli(*COMMAND, *FOLDERS, "--input", "low", "--json")
    scores = document(result)
    assert [row["system"] for row in scores["rows"]] == ["unprocessed", "copy-up", "made"]
    assert [row["kind"] for row in scores["rows"]] == ["baseline", "baseline", "generated"]
    assert len(scores["files"]) == 9
    assert "(8000 Hz): resampled to the 16000 Hz" in result.stderr
    unprocessed = mean_of(scores, "unprocessed", "lsd_hf")
    assert mean_of(scores, "made", "lsd_hf") < mean_of(scores, "copy-up", "lsd_hf") < unprocessed


def test_inputs_are_of_sr_folders_only(cli: Cli) -> None:
    refused = cli("evaluate", "--task", "t2a", *FOLDERS, "--input", "low")
    assert refused.code == 2 and "--input: not applicable to t2a folders" in refused.stderr
    alone = cli(*COMMAND, *FOLDERS, "--input", "made/a.wav")
    assert alone.code == 2 and "no partner" in alone.stderr
