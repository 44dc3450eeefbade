"""Audio for people never exceeds -1 dBFS, says by how much it was turned down, and scores do not
change by it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from cli_results import Cli, document, noise
from conftest import read_rows

from stagecli.codec.mel import MelCodec
from stagecli.data.audio import write_wav
from stagecli.generate.listening import CEILING, recorded_gains, write_listening
from stagecli.generate.pipeline import Pipeline

LIMIT = 10 ** (-1 / 20) * (1 + 1e-6)  # -1 dBFS


def values(row: dict[str, Any]) -> dict[str, float]:
    """The figures of a row, without those that so few clips do not give."""
    metrics = {name: metric["value"] for name, metric in row["metrics"].items()}
    return {name: value for name, value in metrics.items() if value is not None}


@pytest.mark.parametrize("peak", [0.5, 0.9, 1.0, 8142.0])
def test_a_file_to_listen_to_peaks_at_minus_1_dbfs_at_most(peak: float, tmp_path: Path) -> None:
    audio = noise(0.1, 8000)
    audio *= np.float32(peak / np.abs(audio).max())
    row = write_listening(tmp_path / "a.wav", audio, 8000)
    written, _ = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert np.abs(written).max() <= LIMIT
    assert row["peak"] == pytest.approx(peak)
    np.testing.assert_allclose(written / 10 ** (row["gain_db"] / 20), audio, rtol=1e-6)
    if peak <= CEILING:
        assert row["gain_db"] == 0
        np.testing.assert_array_equal(written, audio)


def test_files_to_compare_by_ear_share_one_gain(tmp_path: Path) -> None:
    low = noise(0.1, 8000)
    rows = [
        write_listening(tmp_path / "a.wav", audio, 8000, beside=[low, 9 * low])
        for audio in (low, 9 * low)
    ]
    assert rows[0]["gain_db"] == rows[1]["gain_db"] < 0


@pytest.fixture
def deafening(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose clips are 2000 times too loud."""
    generate = Pipeline.generate_from

    def loud(self: Pipeline, *args: Any, **keys: Any) -> list[np.ndarray]:
        return [clip * np.float32(2000) for clip in generate(self, *args, **keys)]

    monkeypatch.setattr(Pipeline, "generate_from", loud)


@pytest.mark.usefixtures("deafening")
def test_a_deafening_sample_is_turned_down_and_says_so_once(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    result = cli("sample", "runs/t2a", "-p", "a", "-p", "b", "-o", "out", "--json")
    rows = document(result)
    assert result.stderr.count("turned down") == 1 and "2 of 2" in result.stderr
    for row in rows:
        audio, _ = soundfile.read(tmp_path / row["file"])
        assert np.abs(audio).max() <= LIMIT
        assert row["peak"] > 1 and row["gain_db"] < 0
    assert [row["gain_db"] for row in read_rows(tmp_path / "out", "samples")] == [
        row["gain_db"] for row in rows
    ]


@pytest.mark.usefixtures("deafening")
def test_samples_while_training_are_turned_down_and_leave_an_event(
    cli: Cli, t2a_recipe: Any, tmp_path: Path
) -> None:
    assert cli("train", t2a_recipe(train__steps=2, train__sample_every=2)).code == 0
    run = tmp_path / "runs" / "t2a"
    for file in run.glob("samples/*/*.wav"):
        assert np.abs(soundfile.read(file)[0]).max() <= LIMIT
    events = [row for row in read_rows(run, "events") if row["mechanism"] == "samples"]
    assert len(events) == 1 and events[0]["evidence"]["peak"] > 1
    assert cli("inspect-regime", "runs/t2a", "--html", "page.html").code == 0


def test_scores_are_those_of_the_audio_before_it_was_turned_down(
    cli: Cli, runs: Path, tmp_path: Path, deafening: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("evaluate", "runs/t2a", "--quick", "--split", "valid", "--json")
    result = cli(*command)
    lowered = document(result)
    assert "turned down" in result.stderr
    folder = tmp_path / lowered["samples"]
    gains = recorded_gains(folder)
    assert set(gains) == {file.name for file in folder.glob("*.wav")}
    # The same again, from the samples that are there.
    assert document(cli(*command))["rows"] == lowered["rows"]
    # The same audio, unchanged, as the files of an older version.
    for file in folder.glob("*.wav"):
        audio, rate = soundfile.read(file, dtype="float32")
        write_wav(file, audio / np.float32(gains[file.name]), rate)
    rows = read_rows(folder, "samples")
    old = [{key: row[key] for key in row if key not in ("peak", "gain_db")} for row in rows]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    before = document(cli(*command))
    for row, other in zip(lowered["rows"], before["rows"], strict=True):
        assert values(row) == pytest.approx(values(other), rel=1e-3)


@pytest.mark.parametrize("task", [("sr", "--cutoff", "4000"), ("t2a",)], ids=["sr", "t2a"])
def test_a_folder_of_samples_is_scored_as_it_was_generated(
    task: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    rows = []
    for folder in ("real", "plain", "lowered"):
        (tmp_path / folder).mkdir()
    for i, name in enumerate(("a.wav", "b.wav", "c.wav")):
        audio = 3 * noise(0.5, 16000, i) + noise(0.5, 16000, i + 10)
        write_wav(tmp_path / "real" / name, noise(0.5, 16000, i), 16000)
        write_wav(tmp_path / "plain" / name, audio, 16000)
        rows.append({"path": name, **write_listening(tmp_path / "lowered" / name, audio, 16000)})
    listing = tmp_path / "lowered" / "samples.jsonl"
    listing.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = []
    for folder in ("plain", "lowered"):
        result = cli(
            *("evaluate", "--reference", "real", "--generated", folder, "--task", *task, "--json")
        )
        scores.append(values(document(result)["rows"][0]))
    assert "turned down" in result.stderr
    assert scores[0] == pytest.approx(scores[1], rel=1e-3, abs=1e-3)


# -- frames within the range of the training set -------------------------------------------------


def test_frames_far_outside_the_training_range_decode_to_audio_of_its_level() -> None:
    codec = MelCodec(sample_rate=8000, n_fft=256, hop=80, n_mels=16, iterations=4)
    audio_BN = torch.from_numpy(np.stack([noise(0.5, 8000, i) for i in range(4)]))
    codec.fit([audio_BN])
    frames_BTC = codec.encode(audio_BN)
    torch.testing.assert_close(codec.limit(frames_BTC), frames_BTC)
    wild_BTC = frames_BTC + 20 * torch.randn(
        frames_BTC.shape, generator=torch.Generator().manual_seed(0)
    )
    assert codec.decode(wild_BTC).abs().max() > 100
    assert codec.decode(codec.limit(wild_BTC)).abs().max() < 2


def test_a_young_model_samples_at_the_level_of_its_training_set(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    """And one whose statistics have no range, as those of older runs, samples as it did."""
    from safetensors.torch import load_file, save_file

    command = ("sample", "runs/t2a", "-p", "a", "-p", "b", "--cfg-scale", "4", "--json")
    limited = document(cli(*command))
    statistics = runs / "t2a" / "codec.safetensors"
    state = load_file(statistics)
    save_file({name: state[name] for name in ("mean_C", "std_C")}, statistics)
    unlimited = document(cli(*command))
    assert max(row["peak"] for row in limited) <= max(row["peak"] for row in unlimited)
    assert max(row["peak"] for row in limited) < 10
    assert re.fullmatch(r".*_prompts_002", str(Path(unlimited[0]["file"]).parent))
