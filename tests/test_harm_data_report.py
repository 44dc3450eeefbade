"""The report on the data before training: what is counted, what is doubtful, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import run_cli, write_recipe
from helpers.clips import (
    RATE,
    noise,
    read_manifest,
    resampled_up,
    write_clips,
    write_data_set,
    write_manifest,
)

from stagecli.condition.captions import kept_bytes
from stagecli.data.bandwidth import file_bandwidth, widest_bandwidth
from stagecli.data.fingerprint import fingerprint
from stagecli.data.open import open_source
from stagecli.data.report import DataReport, Expectations, data_report
from stagecli.errors import StageError
from stagecli.schema import Data

MANIFEST: dict[str, Any] = {"data__source": "manifest", "data__path": "data/manifest.jsonl"}


def report_on(
    folder: Path,
    *,
    restores: bool = False,
    narrow: str = "silence",
    max_length: int = 64,
    passed_over: str = "",
) -> DataReport:
    """The report on the manifest in a folder, as a recipe at 16 kHz would get it."""
    data = Data(
        source="manifest",
        path=str(folder / "manifest.jsonl"),
        sample_rate=RATE,
        seconds=0.5,
        cache_dir=str(folder / "cache"),
    )
    source = open_source(data, need_captions=not restores, base=folder, splits=("train", "valid"))
    source.passed_over += [passed_over] if passed_over else []
    prints = fingerprint(source, ("train", "valid"), with_captions=not restores)
    expected = Expectations(
        sample_rate=RATE,
        restores=restores,
        narrow=narrow,
        cut=None if restores else lambda captions: kept_bytes(captions, max_length),
        max_length=max_length,
    )
    return data_report(source, prints, expected)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with 8 training and 3 validation clips of white noise."""
    write_data_set(tmp_path / "data")
    return tmp_path / "data"


def with_captions(folder: Path, captions: list[str]) -> None:
    rows = read_manifest(folder)
    for row, caption in zip(rows, captions, strict=False):
        row["caption"] = caption
    write_manifest(folder, rows)


# --- nothing unusual ------------------------------------------------------------------------------


def test_plain_data_are_counted_and_raise_no_doubt(folder: Path) -> None:
    report = report_on(folder)
    assert report.doubts == []
    assert report.facts["splits"]["train"] == {
        "clips": 8,
        "synthesised": 0,
        "hours": round(8 * 0.5 / 3600, 4),
        "seconds": [0.5] * 5,
        "rates": {"16000": 8},
        "channels": {"1": 8},
        "level_db": [-20.1, -20.1, -20.0, -20.0, -19.9],  # noise of RMS 0.1
        "peaks_over_1": 0,
        "captions": 8,
        "different_captions": 8,
        "captions_cut": 0,
        "captions_made_equal": 0,
        "equal_content": 0,
        "bandwidths_measured": 8,
        "bandwidth_hz": [RATE / 2] * 5,
        "narrow": 0,
    }
    assert report_on(folder, restores=True).doubts == []


def test_rates_and_channels_are_counted(folder: Path) -> None:
    soundfile.write(folder / "0.wav", noise(0, rate=48000), 48000)
    soundfile.write(folder / "1.wav", np.stack([noise(1), noise(2)], axis=1), RATE)
    train = report_on(folder).facts["splits"]["train"]
    assert train["rates"] == {"16000": 7, "48000": 1}
    assert train["channels"] == {"1": 7, "2": 1}


# --- captions -------------------------------------------------------------------------------------


def test_captions_that_are_cut_and_become_equal_are_counted(folder: Path) -> None:
    start = "a dog that barks "
    with_captions(folder, [start + word for word in ("here", "there", "far away")])
    report = report_on(folder, max_length=len(start) + 1)
    train = report.facts["splits"]["train"]
    assert (train["captions_cut"], train["captions_made_equal"]) == (3, 3)
    assert report.doubts == [
        "train: 3 of 8 captions are cut at condition.max_length (18), "
        "and 3 different ones become equal to another"
    ]


def test_captions_that_all_become_one_are_refused(folder: Path) -> None:
    start = "a dog that barks "
    with_captions(folder, [f"{start}{k} times" for k in range(8)])
    with pytest.raises(StageError, match="all 8 different training captions become one") as caught:
        report_on(folder, max_length=len(start) + 1)
    assert caught.value.exit_code == 2
    assert "condition.max_length" in str(caught.value.hint)
    assert len(caught.value.problems) == 5
    assert report_on(folder, max_length=len(start) + 2).doubts


def test_one_caption_for_all_clips_is_not_refused(folder: Path) -> None:
    with_captions(folder, ["a long caption of every clip"] * 8)
    train = report_on(folder, max_length=8).facts["splits"]["train"]
    assert (train["captions_cut"], train["captions_made_equal"]) == (8, 0)


def test_captions_are_cut_by_bytes() -> None:
    text = "\u00e9" * 3
    assert kept_bytes([text], 7) == [(text.encode(), False)]
    assert kept_bytes([text], 6) == [(text.encode()[:5], True)]


# --- levels, bandwidth, equal content -------------------------------------------------------------


def test_float_audio_at_the_scale_of_integers_is_refused(folder: Path) -> None:
    write_clips(folder, {"3.wav": 16000 * noise(3) / np.abs(noise(3)).max()}, "FLOAT")
    with pytest.raises(StageError) as caught:
        report_on(folder)
    (problem,) = caught.value.problems
    assert problem.what == (
        "3.wav: peaks at 16000 times full scale: its samples must lie between -1 and 1"
    )


def test_peaks_above_full_scale_are_counted(folder: Path) -> None:
    write_clips(folder, {"3.wav": 1.5 * noise(3) / np.abs(noise(3)).max()}, "FLOAT")
    report = report_on(folder)
    assert report.facts["splits"]["train"]["peaks_over_1"] == 1
    assert report.doubts == ["train: 1 clip (3.wav: 1.5) with peaks above full scale (1.0)"]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("level", [1.0, 0.01])
def test_audio_that_was_resampled_up_ends_where_it_did(
    subtype: str, level: float, tmp_path: Path
) -> None:
    audio_N = level * resampled_up(noise(0, 1.0, RATE // 2), 2)
    write_clips(tmp_path, {"a.wav": audio_N}, subtype)
    assert file_bandwidth(tmp_path / "a.wav") == pytest.approx(RATE / 4, rel=0.02)
    write_clips(tmp_path, {"b.wav": level * noise(0, 1.0)}, subtype)
    assert file_bandwidth(tmp_path / "b.wav") == pytest.approx(RATE / 2, rel=0.02)


def test_silence_and_whispers_have_no_narrow_band() -> None:
    assert widest_bandwidth(np.zeros((4000, 1)), RATE) == RATE / 2
    assert widest_bandwidth(np.full((4000, 1), 2.0**-15), RATE) <= RATE / 2
    assert widest_bandwidth(noise(0)[:100, None], RATE) > 0.9 * RATE / 2


def test_recordings_of_speech_at_8_khz_end_at_4_khz(data_dir: Path, tmp_path: Path) -> None:
    files = sorted(path for path in (data_dir / "fsdd" / "audio").rglob("*.*"))[::120]
    assert len(files) > 10
    for file in files:
        audio_N, rate = soundfile.read(file)
        up_N = resampled_up(audio_N[: len(audio_N) // 2 * 2], 2)
        write_clips(tmp_path, {"a.wav": up_N}, "PCM_16", 2 * rate)
        assert file_bandwidth(tmp_path / "a.wav") <= 1.03 * rate / 2, file


def test_some_clips_that_were_resampled_up_are_counted_for_super_resolution(folder: Path) -> None:
    write_clips(folder, {"0.wav": resampled_up(noise(0, rate=RATE // 2), 2)})
    report = report_on(folder, restores=True)
    assert report.facts["splits"]["train"]["narrow"] == 1
    (doubt,) = report.doubts
    assert doubt.startswith("train: the content of 1 clip (0.wav: ") and "silence" in doubt
    assert report_on(folder).doubts == []
    (doubt,) = report_on(folder, restores=True, narrow="mask").doubts
    assert doubt.endswith("not trained on")


def test_super_resolution_from_clips_that_were_all_resampled_up_is_refused(folder: Path) -> None:
    up = {f"{k}.wav": resampled_up(noise(k, rate=RATE // 2), 2) for k in range(8)}
    write_clips(folder, up)
    with pytest.raises(StageError, match="8 of 8 measured training clips") as caught:
        report_on(folder, restores=True)
    assert "data.sample_rate=8000" in str(caught.value.hint)
    assert caught.value.problems[0].what.startswith("ends at 4")


def test_equal_content_is_counted_within_and_across_splits(folder: Path) -> None:
    write_clips(folder, {"1.wav": noise(0), "9.wav": noise(2)})
    report = report_on(folder)
    assert report.facts["splits"]["train"]["equal_content"] == 1
    assert report.facts["splits"]["valid"]["equal_content"] == 0
    assert report.facts["equal_in_train_and_valid"] == 1
    assert report.doubts[0] == "train: 1 clip (1.wav = 0.wav) with the content of another"
    assert report.doubts[1].startswith("1 clip (9.wav = 2.wav) of the valid split")


def test_the_second_start_reads_no_audio(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stagecli.data import bandwidth as module
    from stagecli.data import checking, file_source

    first = report_on(folder, restores=True)

    def refuse(*_: object) -> None:
        raise AssertionError("audio is read again")

    monkeypatch.setattr(checking, "check_content", refuse)
    monkeypatch.setattr(file_source, "file_bandwidth", refuse)
    monkeypatch.setattr(module, "open_audio", refuse)
    monkeypatch.setattr("stagecli.data.cache.hashlib.file_digest", refuse)
    assert report_on(folder, restores=True) == first


def test_files_passed_over_are_a_doubt(folder: Path) -> None:
    report = report_on(folder, passed_over="3 .m4a files are passed over")
    assert report.doubts == report.facts["passed_over"] == ["3 .m4a files are passed over"]


# --- what a user sees -----------------------------------------------------------------------------


def test_a_dry_run_prints_the_report_and_its_warnings(folder: Path) -> None:
    write_clips(folder, {"1.wav": noise(0)})
    recipe = write_recipe(folder.parent / "r.toml", "t2a", **MANIFEST, condition__max_length=10)
    with_captions(folder, ["noise that never ends", "noise that never stops"])
    result = run_cli("train", recipe, "--dry-run", cwd=folder.parent)
    assert result.code == 0, result.stderr
    for line in ("captions cut", "content of another clip", "16000 (8)", "hours"):
        assert line in result.stdout
    warnings = " ".join(result.stderr.split())
    assert "captions are cut at condition.max_length (10)" in warnings
    assert "1 clip (1.wav = 0.wav) with the content of another" in warnings
    assert not (folder.parent / "runs").exists()


def test_a_start_says_what_is_doubtful_and_keeps_it_in_the_run(folder: Path) -> None:
    write_clips(folder, {"1.wav": noise(0)})
    recipe = write_recipe(folder.parent / "r.toml", **MANIFEST, train__steps=1)
    result = run_cli("train", recipe, cwd=folder.parent)
    assert result.code == 0, result.stderr
    assert "data: train: 1 clip (1.wav = 0.wav) with the content of another" in result.stderr
    stored = json.loads((folder.parent / "runs" / "r" / "data.json").read_text())
    assert stored["report"]["doubts"] == [
        "train: 1 clip (1.wav = 0.wav) with the content of another"
    ]
    assert stored["report"]["splits"]["train"]["rates"] == {"16000": 8}


@pytest.mark.parametrize("flag", ["--dry-run", "--quiet"])
def test_bad_data_end_with_one_error_before_work(flag: str, folder: Path) -> None:
    with_captions(folder, [f"a dog that barks {k} times" for k in range(8)])
    recipe = write_recipe(folder.parent / "r.toml", **MANIFEST, condition__max_length=10)
    result = run_cli("train", recipe, flag, cwd=folder.parent)
    assert result.code == 2
    assert "all 8 different training captions become one" in result.stderr
    assert "Traceback" not in result.stderr


# --- the probe set --------------------------------------------------------------------------------

PROBES: dict[str, Any] = {"stage.regime__every": 2, "stage.regime__partial_band": True}


def test_a_probe_set_smaller_than_asked_is_announced(folder: Path) -> None:
    recipe = write_recipe(folder.parent / "r.toml", **MANIFEST, train__steps=1, **PROBES)
    words = "the probe set holds 3 of the 9 clips"
    planned = run_cli("train", recipe, "--dry-run", cwd=folder.parent)
    assert planned.code == 0, planned.stderr
    assert words in " ".join(planned.stderr.split())
    assert "3 clips at t" in " ".join(planned.stdout.split())
    trained = run_cli("train", recipe, cwd=folder.parent)
    assert trained.code == 0, trained.stderr
    assert words in trained.stderr


def test_a_probe_set_of_one_restorable_clip_is_refused(folder: Path) -> None:
    """Only one of the clips of the valid split has content above the cutoffs."""
    low = {f"{k}.wav": resampled_up(noise(k, rate=RATE // 8), 8) for k in (9, 10)}
    write_clips(folder, low)
    recipe = write_recipe(folder.parent / "r.toml", "sr", **MANIFEST, **PROBES)
    for flag in ("--dry-run", "--quiet"):
        result = run_cli("train", recipe, flag, cwd=folder.parent)
        assert result.code == 2, result.stderr
        assert "single clip" in result.stderr
        assert "the valid split has 1 that can be measured" in result.stderr
