"""`stagecli sample`: flags that go together, names, formats, audio to start from, bad inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from cli_results import Cli, document, noise

from stagecli.data.audio import write_wav
from stagecli.generate.encoding import Encoding, choose_encoding
from stagecli.generate.file_names import clip_names, words_of
from stagecli.generate.listening import write_long_listening
from stagecli.targets import write_target


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def audio_of(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


# --- which flags go together ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["-p", "x", "--cutoff", "3000", "--skip-bad"],
            ["--cutoff    is for", "--skip-bad  is for"],
        ),
        (
            ["-i", "in.wav", "--negative-prompt", "y", "--num-samples", "2", "--seconds", "1"],
            ["--negative-prompt  is for text", "--num-samples ", "--seconds "],
        ),
        (["-p", "x", "--strength", "0.5"], ["--strength  needs --init-audio"]),
        (["-p", "x", "--inpaint", "0:1"], ["--inpaint  needs --init-audio"]),
        (
            ["-p", "x", "--init-audio", "a.wav", "--strength", "0.5", "--inpaint", "0:1"],
            ["--strength  cannot be given with --inpaint"],
        ),
        (["-p", "x", "--init-audio", "a.wav", "--seconds", "2"], ["--seconds", "--init-audio"]),
        (["-p", "x", "--init-audio", "a.wav", "--inpaint", "2:1"], ["START:END", "'2:1'"]),
        (["-p", "x", "--init-audio", "a.wav", "--strength", "0"], ["--strength", "above 0"]),
        (["-p", "x", "--num-samples", "0"], ["--num-samples", "from 1"]),
        (["-p", "x", "--format", "flac", "-o", "x.wav"], ["--format flac", "ends in .wav"]),
        (["-p", "x", "--format", "ogg", "--subtype", "PCM_16"], ["--subtype PCM_16", "VORBIS"]),
        (["-p", "x", "--format", "aac"], ["--format", "wav, flac, mp3, ogg"]),
        (["-p", "x", "--num-samples", "2", "-o", "x.wav"], ["--num-samples 2", "one file"]),
        (["-p", "x", "--negative-prompt", "y"], ["--negative-prompt", "--cfg-scale 1"]),
        (["-p", "x", "--seed", str(2**63 - 1), "--num-samples", "2"], ["--seed", "--num-samples"]),
        (["-p", "x", "--init-audio", "gone.wav"], ["gone.wav", "missing"]),
    ],
)
def test_flags_that_do_not_go_together(
    arguments: list[str], words: list[str], *, cli: Cli, runs: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = cli("sample", "runs/t2a", *arguments)
    assert result.code == 2, result
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


# --- prompts --------------------------------------------------------------------------------------


def test_samples_of_a_prompt_have_seeds_of_their_own(cli: Cli, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# what we test\n\n  a bell\n#rain\n")
    several = document(
        cli("sample", "t2a", "--prompts", "p.txt", "--num-samples", 3, "--seed", 5, "--json")
    )
    assert [row["path"] for row in several] == [f"a-bell_seed{seed}.wav" for seed in (5, 6, 7)]
    assert [(row["seed"], row["index"]) for row in several] == [(5, 0), (6, 0), (7, 0)]
    (alone,) = document(cli("sample", "t2a", "-p", "a bell", "--seed", 6, "--json"))
    np.testing.assert_allclose(
        audio_of(tmp_path / alone["file"]), audio_of(tmp_path / several[1]["file"]), atol=1e-4
    )


def test_a_negative_prompt_takes_the_place_of_no_prompt(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    for name, more in (("plain", ()), ("not", ("--negative-prompt", "rain"))):
        arguments = ("-p", "a bell", "--cfg-scale", 3, "-o", name, *more)
        assert cli("sample", "runs/t2a", *arguments).code == 0
    plain, changed = (audio_of(tmp_path / name / "a-bell_seed0.wav") for name in ("plain", "not"))
    assert np.abs(plain - changed).max() > 1e-3
    assert rows_of(tmp_path / "not")[0]["negative_prompt"] == "rain"
    assert "negative_prompt" not in rows_of(tmp_path / "plain")[0]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("A loud,  low-pitched BELL!", "a-loud-low-pitched-bell"),
        ("../../etc/passwd", "etc-passwd"),
        ("CON", "con"),
        ("Zwei Töne", "zwei-töne"),
        ("雨の音", "雨の音"),
        ("🔔 ...", "clip"),
        ("", "clip"),
        ("x" * 300, "x" * 40),
    ],
)
def test_the_words_of_a_file_name(prompt: str, words: str) -> None:
    assert words_of(prompt) == words
    assert len(clip_names([prompt], [2**63 - 1], ".flac")[0].encode()) < 200


def test_names_are_unique_where_case_and_accents_do_not_count() -> None:
    names = clip_names(["Bell", "bell!", "Bell", "to\u0301n", "tón"], [1, 1, 2, 1, 1], ".wav")
    assert names == [
        "bell_seed1.wav",
        "bell_seed1-2.wav",
        "bell_seed2.wav",
        "tón_seed1.wav",
        "tón_seed1-2.wav",
    ]


# --- formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more", "subtype"),
    [
        ("a.flac", (), "PCM_24"),
        ("a.FLAC", ("--subtype", "pcm_16"), "PCM_16"),
        ("a.mp3", (), "MPEG_LAYER_III"),
        ("a.ogg", ("--format", "ogg"), "VORBIS"),
        ("a.wav", ("--subtype", "PCM_24"), "PCM_24"),
    ],
)
def test_a_clip_in_another_format(
    name: str, more: tuple[str, ...], subtype: str, *, cli: Cli, runs: Path, tmp_path: Path
) -> None:
    assert cli("sample", "runs/t2a", "-p", "a bell", "-o", name, *more).code == 0
    assert cli("sample", "runs/t2a", "-p", "a bell", "-o", "plain.wav").code == 0
    info = soundfile.info(tmp_path / name)
    assert (info.subtype, info.samplerate, info.frames) == (subtype, 8000, 3200)
    row = rows_of(tmp_path)[0]
    assert (row["format"], row["subtype"]) == (name[2:].lower(), subtype)
    difference = audio_of(tmp_path / name) - audio_of(tmp_path / "plain.wav")
    assert np.abs(difference).max() < (0.2 if name[2:] in ("mp3", "ogg") else 1e-4)


def test_what_a_format_does_not_hold_is_said_before_work(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    write_wav(tmp_path / "wide.wav", np.stack([noise(0.1, 8000)] * 3, axis=1), 8000)
    refused = cli("sample", "runs/sr", "-i", "wide.wav", "--format", "mp3", "-o", "out")
    assert refused.code == 2 and "at most 2 channels" in refused.stderr
    assert not (tmp_path / "out").exists()
    assert cli("sample", "runs/sr", "-i", "wide.wav", "--format", "flac", "-o", "out").code == 0
    assert soundfile.info(tmp_path / "out" / "wide.flac").channels == 3
    assert "8001 Hz" in str(Encoding("mp3", "MPEG_LAYER_III").problem(8001, (1, 1)))
    assert "GiB" in str(Encoding().problem(8000, (2**31, 2)))


def test_long_audio_is_encoded_in_blocks(tmp_path: Path) -> None:
    audio = noise(40, 8000)[:, None]
    blocks = [audio[start : start + 70_000] for start in range(0, len(audio), 70_000)]
    path = tmp_path / "a.flac"
    row = write_long_listening(
        path, blocks, audio.shape, 8000, write=write_target, encoding=choose_encoding(path)
    )
    assert row["gain_db"] == 0
    np.testing.assert_allclose(audio_of(path), audio[:, 0], atol=1e-6)


# --- audio to start from --------------------------------------------------------------------------


def test_the_strength_says_how_much_changes(cli: Cli, runs: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "in.wav", noise(0.4, 16000), 16000)
    clips = {}
    for strength in ("0.05", "1"):
        flags = ("--init-audio", "in.wav", "--strength", strength, "-o", strength)
        assert cli("sample", "runs/t2a", "-p", "a bell", *flags).code == 0
        (row,) = rows_of(tmp_path / strength)
        assert (row["init_audio"], row["strength"]) == ("in.wav", float(strength))
        clips[strength] = audio_of(tmp_path / strength / row["path"])
    assert {len(clip) for clip in clips.values()} == {3200}
    assert cli("sample", "runs/t2a", "-p", "a bell", "-o", "free").code == 0
    free = audio_of(tmp_path / "free" / "a-bell_seed0.wav")
    np.testing.assert_array_equal(clips["1"], free)  # of noise alone nothing is left

    # Little noise leaves the spectrum of the input.
    levels = {name: np.log(np.abs(np.fft.rfft(clip)) + 1e-3) for name, clip in clips.items()}
    target = np.log(np.abs(np.fft.rfft(audio_of(tmp_path / "in.wav")[::2])) + 1e-3)
    near, far = (np.abs(levels[name] - target).mean() for name in ("0.05", "1"))
    assert near < far


def test_inpainting_changes_nothing_but_the_span(cli: Cli, runs: Path, tmp_path: Path) -> None:
    audio = noise(0.8, 8000)
    write_wav(tmp_path / "in.wav", audio, 8000)
    flags = ("--init-audio", "in.wav", "--inpaint", "0.2:0.5", "-o", "out", "--num-samples", 2)
    assert cli("sample", "runs/t2a", "-p", "a bell", *flags).code == 0
    rows = rows_of(tmp_path / "out")
    assert [row["inpaint"] for row in rows] == [[0.2, 0.5]] * 2 and "strength" not in rows[0]
    first, second = (audio_of(tmp_path / "out" / row["path"]) for row in rows)
    inside = slice(1600, 4000)
    for clip in (first, second):
        np.testing.assert_array_equal(
            np.delete(clip, np.r_[inside]), np.delete(audio, np.r_[inside])
        )
        assert np.abs(clip[inside] - audio[inside]).max() > 1e-3
    assert np.abs(first - second).max() > 1e-3
    late = cli("sample", "runs/t2a", "-p", "x", "--init-audio", "in.wav", "--inpaint", "0.2:0.9")
    assert late.code == 2 and "in.wav" in late.stderr and "ends at 0.800 s" in late.stderr


# --- bad inputs -----------------------------------------------------------------------------------


def test_bad_inputs_are_skipped_only_if_asked(cli: Cli, runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_wav(folder / "good.wav", noise(0.2, 8000), 8000)
    write_wav(folder / "full.wav", noise(0.2, 16000), 16000)
    (folder / "broken.wav").write_text("no audio")
    assert cli("sample", "runs/sr", "-i", "in", "-o", "out").code == 2
    result = cli("sample", "runs/sr", "-i", "in", "-o", "out", "--skip-bad", "--json")
    assert [row["path"] for row in document(result)] == ["good.wav"]
    assert "in/broken.wav: skipped" in result.stderr
    assert "in/full.wav: skipped" in result.stderr and "nothing to restore" in result.stderr
    for name in ("full", "broken"):
        none_left = cli("sample", "runs/sr", "-i", f"in/{name}.wav", "-o", "none", "--skip-bad")
        assert none_left.code == 2 and f"{name}.wav" in none_left.stderr
        assert not (tmp_path / "none").exists()
