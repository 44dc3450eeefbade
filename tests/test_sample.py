"""`stagecli sample`: files and rows, seeds, lengths, the kept band, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from cli_results import Cli, document, noise
from conftest import Result, sha

from stagecli.data.audio import write_wav
from stagecli.dsp.resample import resample

# The kept band is exact to 84 dB and more; if only the codec's frames were kept, to 48 to 61 dB.
KEPT_DB = 75


def low_passed(audio: np.ndarray, rate: int, cutoff: float) -> np.ndarray:
    """Audio without content above the cutoff, to the last bit of float32."""
    spectrum = np.fft.rfft(audio)
    spectrum[np.fft.rfftfreq(len(audio), 1 / rate) > cutoff] = 0
    return np.fft.irfft(spectrum, len(audio)).astype(np.float32)


# --- sample: t2a ----------------------------------------------------------------------------------


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_sample_prompts_from_flags_and_files(cli: Cli, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a deep bell\n\n  zwei Töne  \n", encoding="utf-8")
    (tmp_path / "p.jsonl").write_text('{"prompt": "rain"}\n{"caption": "a dog"}\n')
    rows_printed = document(
        cli(
            "sample",
            "runs/t2a",
            "-p",
            "one",
            "--prompts",
            "p.txt",
            "-o",
            "out",
            "--seed",
            "3",
            "--json",
        )
    )
    assert [row["prompt"] for row in rows_printed] == ["one", "a deep bell", "zwei Töne"]
    rows = rows_of(tmp_path / "out")
    assert rows == [{k: v for k, v in row.items() if k != "file"} for row in rows_printed]
    expected = {
        "seed": 3,
        "steps": 2,
        "cfg_scale": 1.0,
        "sampler": "euler",
        "checkpoint": "step_00000010",
    }
    for row in rows:
        assert {k: row[k] for k in expected} == expected
        audio, rate = soundfile.read(tmp_path / "out" / row["path"])
        assert (
            rate == 8000 and audio.shape == (3200,) and np.isfinite(audio).all() and np.any(audio)
        )
    assert [
        r["prompt"] for r in document(cli("sample", "runs/t2a", "--prompts", "p.jsonl", "--json"))
    ] == [
        "rain",
        "a dog",
    ]
    assert (runs / "t2a" / "samples" / "step_00000010_prompts_001" / "samples.jsonl").exists()
    (tmp_path / "bad.jsonl").write_text('{"prompt": "rain"}\n{"text": 1}\n{\n')
    bad = cli("sample", "runs/t2a", "--prompts", "bad.jsonl")
    assert bad.code == 2 and "bad.jsonl:2" in bad.stderr and "bad.jsonl:3" in bad.stderr


def test_sample_to_one_file_and_of_another_length(cli: Cli, runs: Path, tmp_path: Path) -> None:
    rows_printed = document(
        cli("sample", "runs/t2a", "-p", "a", "-o", "one/clip.wav", "--seconds", "1.5", "--json")
    )
    assert [row["path"] for row in rows_printed] == ["clip.wav"]
    audio, rate = soundfile.read(tmp_path / "one" / "clip.wav")
    assert len(audio) == 1.5 * rate
    assert cli("sample", "runs/t2a", "-p", "b", "-o", "one/other.wav").code == 0
    assert {row["path"]: row["prompt"] for row in rows_of(tmp_path / "one")} == {
        "clip.wav": "a",
        "other.wav": "b",
    }


def test_the_same_seed_gives_the_same_bytes(cli: Cli, runs: Path, tmp_path: Path) -> None:
    for name, seed in (("x", 1), ("y", 1), ("z", 2)):
        assert (
            cli("sample", "runs/t2a", "-p", "a bell", "-p", "rain", "-o", name, "--seed", seed).code
            == 0
        )
    wavs = {n: [sha(path) for path in sorted((tmp_path / n).glob("*.wav"))] for n in "xyz"}
    assert wavs["x"] == wavs["y"]
    assert not set(wavs["x"]) & set(wavs["z"])


def test_a_clip_does_not_depend_on_its_batch(trained: Path) -> None:
    """Alone or next to a longer prompt: equal up to rounding (1e-4 of the scale of frames)."""
    from stagecli.generate.pipeline import SamplerSettings, load_pipeline

    pipeline, _ = load_pipeline(trained / "runs" / "t2a")
    prompts = ["a bell", "a much longer prompt than that"]
    frames = []
    pipeline.codec.decode = lambda x_BTC, length: frames.append(x_BTC) or x_BTC[:, :, 0]  # type: ignore[assignment]
    for size in (1, 2):
        pipeline.generate(
            prompts,
            seed=4,
            settings=SamplerSettings.of(pipeline.recipe.evaluate, batch_size=size, cfg_scale=2.0),
        )
    alone = np.concatenate([frames[0], frames[1]])
    together = frames[2].numpy()
    assert np.abs(alone[0] - alone[1]).max() > 1e-2, "both clips are the same"
    np.testing.assert_allclose(alone, together, atol=1e-4)


# --- sample: sr -----------------------------------------------------------------------------------


def restored(
    cli: Cli, tmp_path: Path, audio: np.ndarray, rate: int, *more: object
) -> tuple[np.ndarray, Result]:
    write_wav(tmp_path / "in.wav", audio, rate)
    result = cli("sample", "runs/sr", "--input", "in.wav", "-o", "out", "--json", *more)
    assert result.code == 0, result.stderr
    full, full_rate = soundfile.read(tmp_path / "out" / "in.wav", dtype="float32", always_2d=True)
    assert full_rate == 16000
    assert rows_of(tmp_path / "out")[0]["input"] == "in.wav"
    return full.T, result


def band(audio: np.ndarray, rate: int, low: float, high: float) -> np.ndarray:
    """The band between two frequencies, without the ends, where filters settle."""
    spectrum = np.fft.rfft(audio)
    hz = np.fft.rfftfreq(len(audio), 1 / rate)
    spectrum[(hz < low) | (hz > high)] = 0
    filtered = np.fft.irfft(spectrum, len(audio))
    return filtered[len(filtered) // 8 : -len(filtered) // 8]


def snr(reference: np.ndarray, audio: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(reference**2) / np.sum((audio - reference) ** 2)))


@pytest.mark.parametrize("rate", [8000, 11025])
@pytest.mark.parametrize("level", [1.0, 0.01])
def test_the_low_band_of_a_file_at_another_rate_is_kept(
    rate: int, level: float, cli: Cli, runs: Path, tmp_path: Path
) -> None:
    """Below the cutoff the output is the input: any rate and level, more than six windows."""
    audio = level * noise(1.3, rate)
    (full,), result = restored(cli, tmp_path, audio, rate)
    assert len(full) == round(len(audio) * 16000 / rate)
    up = resample(audio, rate, 16000)[: len(full)]
    assert json.loads(result.stdout)[0]["cutoff"] == pytest.approx(rate / 2, rel=0.01)
    edge = 0.85 * rate / 2
    assert snr(band(up, 16000, 50, edge), band(full, 16000, 50, edge)) > KEPT_DB
    assert np.std(band(full, 16000, 1.1 * rate / 2, 8000)) > 1e-3 * level, (
        "nothing was generated above the cutoff"
    )


def test_a_band_limited_file_at_the_rate_of_the_model(cli: Cli, runs: Path, tmp_path: Path) -> None:
    audio = low_passed(noise(1.0, 16000), 16000, 3000)
    (full,), result = restored(cli, tmp_path, audio, 16000)
    assert json.loads(result.stdout)[0]["cutoff"] == pytest.approx(3000, rel=0.05)
    assert snr(band(audio, 16000, 50, 2500), band(full, 16000, 50, 2500)) > KEPT_DB


def test_a_full_band_file_is_refused_unless_a_cutoff_is_given(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    write_wav(tmp_path / "full.wav", noise(0.5, 16000), 16000)
    refused = cli("sample", "runs/sr", "--input", "full.wav", "-o", "out")
    assert refused.code == 2
    assert (
        "full.wav" in refused.stderr
        and "nothing to restore" in refused.stderr
        and "--cutoff" in refused.stderr
    )
    assert (
        cli("sample", "runs/sr", "--input", "full.wav", "-o", "out", "--cutoff", "3000").code == 0
    )


def test_stereo_keeps_its_channels_and_their_levels(cli: Cli, runs: Path, tmp_path: Path) -> None:
    left = noise(0.6, 8000, 1)
    right = 0.1 * noise(0.6, 8000, 2)
    full, _ = restored(cli, tmp_path, np.stack([left, right], axis=1), 8000)
    assert full.shape == (2, 9600)
    for before, after in ((left, full[0]), (right, full[1])):
        up = resample(before, 8000, 16000)
        assert snr(band(up, 16000, 50, 3400), band(after, 16000, 50, 3400)) > KEPT_DB


def test_a_silent_channel_stays_silent_and_has_no_bandwidth(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    """At the model's rate the bandwidth is measured, in the other channels only."""
    left = low_passed(noise(0.6, 16000), 16000, 3000)
    full, result = restored(cli, tmp_path, np.stack([left, 0 * left], axis=1), 16000)
    assert json.loads(result.stdout)[0]["cutoff"] == pytest.approx(3000, rel=0.05)
    assert not np.any(full[1]) and np.any(full[0])
    silent, _ = restored(cli, tmp_path, np.zeros(1600, dtype=np.float32), 16000, "--force")
    assert silent.shape == (1, 1600) and not np.any(silent)


@pytest.mark.parametrize("length", [1, 20, 63, 700])
def test_very_short_files(length: int, cli: Cli, runs: Path, tmp_path: Path) -> None:
    """Down to less than a window, and less than a frame (64 audio samples at 16 kHz)."""
    (full,), _ = restored(cli, tmp_path, noise(1, 8000)[:length], 8000)
    assert len(full) == 2 * length
    assert np.isfinite(full).all()


def test_a_folder_keeps_its_shape_and_a_bad_file_is_named(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    for name in ("a.wav", "sub/b.wav"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_wav(tmp_path / "in" / name, noise(0.3, 8000), 8000)
    rows_printed = document(cli("sample", "runs/sr", "--input", "in", "-o", "out", "--json"))
    assert [row["path"] for row in rows_printed] == ["a.wav", "sub/b.wav"]
    assert all((tmp_path / "out" / row["path"]).exists() for row in rows_printed)
    assert cli("sample", "runs/sr", "--input", "in", "-o", "in").code == 2, (
        "would overwrite its own input"
    )
    (tmp_path / "in" / "c.wav").write_text("no audio")
    bad = cli("sample", "runs/sr", "--input", "in", "-o", "out2")
    assert bad.code == 2 and "in/c.wav" in bad.stderr and not (tmp_path / "out2").exists()


def test_a_cutoff_outside_the_trained_range_is_warned_about(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    write_wav(tmp_path / "in.wav", noise(0.3, 2000), 2000)
    result = cli(
        "sample", "runs/sr", "--input", "in.wav", "-o", "out", "--json", "--cutoff", "1000"
    )
    document(result)
    assert "outside what the model was trained on" in result.stderr
