"""`stagecli.load`: what the command line does with files, in memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cli_results import Cli, noise
from conftest import Result

import stagecli
from stagecli.data.audio import write_wav


@pytest.fixture(scope="module")
def t2a(trained: Path) -> stagecli.Model:
    return stagecli.load(trained / "runs" / "t2a", device="cpu")


@pytest.fixture(scope="module")
def sr(trained: Path) -> stagecli.Model:
    return stagecli.load(str(trained / "runs" / "sr"), device="cpu")


def refused(call: Callable[..., object], *arguments: object, **more: object) -> str:
    """The text of the StageError that a call raises."""
    with pytest.raises(stagecli.StageError) as raised:
        call(*arguments, **more)
    assert raised.value.hint, "no way out"
    return str(raised.value)


# --- loading --------------------------------------------------------------------------------------


def test_import_loads_no_torch() -> None:
    code = "import stagecli, sys; assert 'load' in dir(stagecli); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_what_is_not_there_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        stagecli.lode  # noqa: B018


def test_a_run_by_path_text_or_name(
    trained: Path, t2a: stagecli.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    for source in ("runs/t2a", Path("runs/t2a"), "t2a"):
        model = stagecli.load(source)
        assert (model.task, model.step, model.sample_rate) == ("t2a", 10, 8000)
        assert model.recipe == t2a.recipe
    assert "no run or export 'runs/typo'" in refused(stagecli.load, "runs/typo")  # not of the hub
    assert stagecli.load("t2a", checkpoint=8).step == 8
    assert stagecli.load("t2a", checkpoint="step_00000008").step == 8
    assert "t2a, step 10, on cpu" in repr(t2a)


def test_what_cannot_be_loaded(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    assert "there are: sr, t2a" in refused(stagecli.load, "quickstart")
    assert "no checkpoint '5'" in refused(stagecli.load, "t2a", checkpoint=5)
    assert "no device 'tpu'" in refused(stagecli.load, "t2a", device="tpu")
    assert "no device 'cuda:99'" in refused(stagecli.load, "t2a", device="cuda:99")
    assert "neither a run nor an export" in refused(stagecli.load, tmp_path)
    assert "cannot be fetched" in refused(stagecli.load, "nobody/nothing")


# --- text to audio --------------------------------------------------------------------------------


def test_generate_is_what_sample_writes(
    cli: Cli, runs: Path, t2a: stagecli.Model, tmp_path: Path
) -> None:
    flags = ("--seed", 3, "--cfg-scale", 2, "--steps", 3, "--seconds", 0.5)
    done = cli("sample", "runs/t2a", "-p", "a bell", "-p", "rain", *flags, "-o", "files")
    assert done.code == 0, done.stderr
    made = t2a.generate(["a bell", "rain"], seed=3, cfg_scale=2, steps=3, seconds=0.5)
    assert made.audio.shape == (2, 1, 4000) and made.audio.dtype == np.float32
    assert [path.name for path in made.save(tmp_path / "own")] == ["0000.wav", "0001.wav"]
    written = sorted((tmp_path / "files").glob("*.wav"))
    assert [path.read_bytes() for path in written] == [
        (tmp_path / "own" / f"{number:04d}.wav").read_bytes() for number in range(2)
    ]


def test_defaults_are_those_of_the_recipe(t2a: stagecli.Model) -> None:
    alone = t2a.generate("a bell")
    assert alone.sample_rate == 8000 and len(alone) == 1
    np.testing.assert_array_equal(alone.audio, t2a.generate(["a bell"], steps=2).audio)


def test_a_negative_prompt_is_led_away_from(t2a: stagecli.Model) -> None:
    plain = t2a.generate("a bell", cfg_scale=3).audio
    led = t2a.generate("a bell", cfg_scale=3, negative_prompt="rain").audio
    same = t2a.generate("a bell", cfg_scale=3, negative_prompt="a bell").audio
    assert np.abs(plain - led).max() > 1e-4
    unguided = t2a.generate("a bell", cfg_scale=1).audio
    np.testing.assert_allclose(same, unguided, atol=1e-3)
    assert "no effect" in refused(t2a.generate, "a bell", cfg_scale=1, negative_prompt="rain")


def test_every_bad_argument_is_named_at_once(t2a: stagecli.Model, sr: stagecli.Model) -> None:
    text = refused(
        t2a.generate, ["a", "\ud800"], seconds=-1, steps=2.5, seed=True, sampler="rk", cfg_scale="x"
    )
    for word in ("prompt 2", "seconds", "steps", "seed", "sampler", "cfg_scale"):
        assert f"  {word}  " in text, word
    assert "is empty" in refused(t2a.generate, [])
    assert "super-resolution model" in refused(sr.generate, "a bell")
    assert "text-to-audio model" in refused(t2a.restore, "x.wav")


# --- super-resolution -----------------------------------------------------------------------------


def test_restore_is_what_sample_writes(
    cli: Cli, runs: Path, sr: stagecli.Model, tmp_path: Path
) -> None:
    stereo = np.stack([noise(0.5, 8000, seed=seed) for seed in (1, 2)], axis=1)
    write_wav(tmp_path / "in.wav", stereo, 8000)
    done: Result = cli("sample", "runs/sr", "-i", "in.wav", "-o", "files", "--cutoff", 4000)
    assert done.code == 0, done.stderr
    made = sr.restore(tmp_path / "in.wav", cutoff=4000)
    assert made.audio.shape == (1, 2, 8000) and made.sample_rate == 16000
    (own,) = made.save(tmp_path / "own.wav")
    assert own.read_bytes() == (tmp_path / "files" / "in.wav").read_bytes()


def test_restore_of_an_array(sr: stagecli.Model, tmp_path: Path) -> None:
    audio_CN = np.stack([noise(0.5, 8000, seed=seed) for seed in (1, 2)])
    made = sr.restore(audio_CN, sample_rate=8000, cutoff=4000)
    assert made.audio.shape == (1, 2, 8000)
    again = sr.restore(audio_CN.astype(np.float64), sample_rate=8000, cutoff=4000)
    np.testing.assert_array_equal(made.audio, again.audio)
    other = sr.restore(audio_CN, sample_rate=8000, cutoff=4000, seed=1)
    assert np.abs(made.audio - other.audio).max() > 1e-4
    assert sr.restore(audio_CN[0], sample_rate=8000, cutoff=4000).audio.shape == (1, 1, 8000)


def test_what_cannot_be_restored(sr: stagecli.Model, tmp_path: Path) -> None:
    audio = noise(0.5, 16000)
    assert "sample_rate  is required" in refused(sr.restore, audio)
    assert "transpose" in refused(sr.restore, audio[:, None], sample_rate=8000)
    assert "finite floats" in refused(sr.restore, audio * np.nan, sample_rate=8000)
    assert "cutoff=HZ in Python" in refused(sr.restore, audio, sample_rate=16000)
    assert "cutoff  must be" in refused(sr.restore, audio, sample_rate=8000, cutoff=-1)
    missing = tmp_path / "no.wav"
    with pytest.raises(stagecli.StageError, match="cannot read audio"):
        sr.restore(missing)
    assert "a file has its own" in refused(sr.restore, missing, sample_rate=8000)


def test_doubts_are_warnings(sr: stagecli.Model) -> None:
    with pytest.warns(UserWarning, match="outside what the model was trained on"):
        sr.restore(noise(0.5, 8000), sample_rate=8000, cutoff=300)


# --- saving ---------------------------------------------------------------------------------------


def test_files_are_loud_at_most_and_never_replaced_unasked(tmp_path: Path) -> None:
    loud = stagecli.Audio(np.full((1, 1, 100), 2.0, np.float32), 8000)
    (path,) = loud.save(tmp_path / "new" / "loud.wav")
    assert soundfile.read(path)[0].max() == pytest.approx(10 ** (-1 / 20))
    assert "exists" in refused(loud.save, path)
    assert loud.save(path, force=True) == [path]
    pair = stagecli.Audio(np.zeros((2, 1, 100), np.float32), 8000)
    assert "do not fit one file" in refused(pair.save, tmp_path / "a.wav")
    assert "unknown format" in refused(loud.save, tmp_path / "a.aac")
    (flac,) = loud.save(tmp_path / "loud.flac")
    assert soundfile.info(flac).format == "FLAC"
    assert "mp3 has no rate" in refused(
        stagecli.Audio(np.zeros((1, 1, 100), np.float32), 9000).save, tmp_path / "a.mp3"
    )
