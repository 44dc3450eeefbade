"""Lengths that differ by a few milliseconds, other sample rates, and single files of any name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_results import Cli, document, noise

from stagecli.data.audio import write_wav
from stagecli.dsp.resample import PRECISE, resample
from stagecli.evaluate.pairs import PairSettings, score_pair
from stagecli.metrics.checks import check_pair, trim_tails
from stagecli.metrics.perceptual import visqol

RATE = 16000


def write(folder: Path, rate: int = RATE, **clips: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    for name, audio in clips.items():
        write_wav(folder / f"{name}.wav", audio, rate)


def evaluate(cli: Cli, *options: Any) -> Any:
    return cli("evaluate", "--task", "sr", "--cutoff", "4000", "--json", *options)


def test_a_tail_of_milliseconds_is_trimmed_and_said(cli: Cli, tmp_path: Path) -> None:
    clip = noise(0.5, RATE)
    write(tmp_path / "real", a=clip, b=clip, c=clip)
    write(tmp_path / "made", a=clip[:-1], b=np.append(clip, clip[:100]), c=clip)
    result = evaluate(cli, "--reference", "real", "--generated", "made")
    scores = document(result)
    assert scores["rows"][0]["metrics"]["lsd"]["value"] == pytest.approx(0, abs=0.02)
    assert "2 of 3 pairs differ in length, by up to 6.25 ms" in result.stderr
    assert any("6.25 ms" in note for note in scores["notes"])


def test_a_tail_of_more_is_refused() -> None:
    clip = torch.from_numpy(noise(0.5, RATE))
    assert [len(z) for z in trim_tails(clip, clip[:-320], RATE)] == [7680, 7680]
    with pytest.raises(ValueError, match="reference 8000 samples, estimate 7679"):
        trim_tails(clip, clip[:-321], RATE)


def test_metrics_that_align_take_whole_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {}

    def record(name: str) -> Any:
        def metric(x: torch.Tensor, y: torch.Tensor, rate: int) -> float:
            lengths[name] = (len(x), len(y))
            return 1.0

        return metric

    metrics = {name: record(name) for name in ("visqol_audio", "pesq_wb", "stoi")}
    monkeypatch.setattr("stagecli.evaluate.pairs.PERCEPTUAL", metrics)
    settings = PairSettings(sample_rate=RATE, cutoff=4000, preset="nuwave", names=["snr", *metrics])
    clip = noise(0.5, RATE)
    score_pair(clip, clip[:-9], settings)
    assert lengths == {
        "visqol_audio": (8000, 7991),
        "pesq_wb": (8000, 7991),
        "stoi": (7991, 7991),
    }


def test_visqol_takes_unequal_lengths() -> None:
    clip = torch.from_numpy(noise(1.2, RATE))
    check_pair(clip, clip[:-5], RATE, same_length=False)
    assert visqol(clip, clip[:-5], RATE, "speech") > 4


def test_other_rates_are_resampled_and_said(cli: Cli, tmp_path: Path) -> None:
    clip = resample(noise(0.5, 8000), 8000, RATE)
    write(tmp_path / "real", a=clip)
    write(tmp_path / "made", 44100, a=resample(clip, RATE, 44100, PRECISE))
    result = evaluate(cli, "--reference", "real", "--generated", "made")
    assert "made: 1 of 1 file has another sample rate (44100 Hz)" in result.stderr
    assert document(result)["rows"][0]["metrics"]["snr"]["value"] > 40


def test_single_files_are_a_pair_whatever_their_names(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "real", original=noise(0.5, RATE))
    write(tmp_path / "made", take2=noise(0.5, RATE))
    result = evaluate(cli, "--reference", "real/original.wav", "--generated", "made/take2.wav")
    assert document(result)["rows"][0]["n"] == 1


@pytest.mark.parametrize("length", [1, 3675, 3676, 5000])
def test_sample_writes_the_nearest_length(
    length: int, cli: Cli, runs: Path, tmp_path: Path
) -> None:
    import soundfile

    write_wav(tmp_path / "low.wav", noise(1, 7350)[:length], 7350)
    command = ("sample", "runs/sr", "--input", "low.wav", "-o", "out.wav", "--cutoff", "2000")
    assert cli(*command).code == 0
    made = soundfile.info(tmp_path / "out.wav")
    assert made.frames == round(length * made.samplerate / 7350)
