"""`stagecli recipes new`: a recipe that fits the data, passes its check and a dry run."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from cli_results import Cli, noise
from conftest import Result

from stagecli.dsp.resample import resample
from stagecli.schema import Recipe

COUNT = 12


def sounds(
    folder: Path,
    *,
    rate: int = 16000,
    content: int | None = None,
    seconds: float = 0.5,
    caption: str | None = "hiss number {}",
    count: int = COUNT,
    prefix: str = "hiss",
) -> Path:
    """Noise in a folder, with captions beside it. content: rate that it was resampled up from."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        audio = noise(seconds, content or rate, seed=number)
        if content:
            audio = resample(audio, content, rate)
        soundfile.write(folder / f"{prefix} {number}.wav", audio, rate)
        if caption is not None:
            (folder / f"{prefix} {number}.txt").write_text(caption.format(number))
    return folder


def new(cli: Cli, data: Path, task: str, *flags: object) -> dict[str, Any]:
    """The recipe that is written, for data in the folder in which `cli` works."""
    result = cli("recipes", "new", "--data", data.name, "--task", task, "-o", "my.toml", *flags)
    assert result.code == 0, result.stderr
    assert "stagecli train my.toml" in result.stderr
    return tomllib.loads((data.parent / "my.toml").read_text())


def refused(cli: Cli, data: Path, task: str, *flags: object) -> Result:
    """The error, with nothing written."""
    result = cli("recipes", "new", "--data", data, "--task", task, "-o", "my.toml", *flags)
    assert result.code == 2
    assert "Traceback" not in result.stderr
    assert not (data.parent / "my.toml").exists()
    return result


def keys(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("task", ["t2a", "sr"])
def test_the_recipe_passes_its_check_and_a_dry_run(cli: Cli, tmp_path: Path, task: str) -> None:
    recipe = new(cli, sounds(tmp_path / "my sounds"), task)
    assert recipe["data"]["path"] == "my sounds"
    assert recipe["stage"] == {"regime": {}}
    assert cli("recipes", "check", "my.toml").code == 0
    plan = cli("train", "my.toml", "--dry-run")
    assert plan.code == 0, plan.stderr
    assert "left out" in plan.stdout and "regime" in plan.stdout


@pytest.mark.parametrize("task", ["t2a", "sr"])
def test_it_holds_only_what_differs_and_says_why(cli: Cli, tmp_path: Path, task: str) -> None:
    recipe = new(cli, sounds(tmp_path / "data"), task)
    text = (tmp_path / "my.toml").read_text()
    defaults = {
        f"{section}.{name}": field.default
        for section, inner in Recipe.model_fields.items()
        for name, field in getattr(inner.annotation, "model_fields", {}).items()
    }
    same = [
        key
        for key in keys(recipe)
        if key in defaults and defaults[key] == recipe[key.split(".")[0]][key.split(".")[1]]
    ]
    assert same == []
    assert len(text.splitlines()) < 90
    schema, _, command, *_ = text.splitlines()
    assert schema.startswith("#:schema file:///")
    assert command == "#   stagecli train my.toml"
    assert sum(line.startswith("# ") for line in text.splitlines()) > 15
    assert max(len(line) for line in text.splitlines()[1:]) <= 100


# --- what the data decide -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "rate", "fits"),
    [
        ("t2a", 44100, (16000, None)),
        ("t2a", 11025, (8000, 400)),
        ("t2a", 6000, (6000, 300)),
        ("sr", 44100, (44100, 2048)),
        ("sr", 96000, (48000, 2048)),
        ("sr", 22050, (22050, None)),
    ],
)
def test_rate_and_codec(
    cli: Cli, tmp_path: Path, task: str, rate: int, fits: tuple[int, int | None]
) -> None:
    """fits: `data.sample_rate` and `codec.n_fft`, whose default of 1024 is not written."""
    recipe = new(cli, sounds(tmp_path / "data", rate=rate), task)
    assert (recipe["data"]["sample_rate"], recipe["codec"].get("n_fft")) == fits


def test_a_few_files_of_a_lower_rate_are_left_out(cli: Cli, tmp_path: Path) -> None:
    data = sounds(tmp_path / "data", rate=16000, count=19)
    sounds(data, rate=8000, count=1, prefix="telephone")
    recipe = new(cli, data, "t2a")
    assert recipe["data"]["sample_rate"] == 16000
    assert recipe["data"]["on_bad_file"] == "skip"
    assert cli("train", "my.toml", "--dry-run").code == 0


def test_audio_resampled_up_lowers_the_rate_of_sr(cli: Cli, tmp_path: Path) -> None:
    recipe = new(cli, sounds(tmp_path / "data", rate=44100, content=16000), "sr")
    assert recipe["data"]["sample_rate"] == 16000
    assert recipe["condition"]["cutoff"][1] <= 0.85 * 8000
    assert all(
        cutoff <= recipe["condition"]["cutoff"][1] for cutoff in recipe["evaluate"]["cutoffs"]
    )


def test_cutoffs_stay_below_the_content_of_most_clips(cli: Cli, tmp_path: Path) -> None:
    data = sounds(tmp_path / "data", rate=32000, content=8000, count=16)
    sounds(data, rate=32000, count=8, prefix="full")
    recipe = new(cli, data, "sr")
    assert recipe["data"]["sample_rate"] == 32000
    assert recipe["data"]["narrow"] == "mask"
    assert recipe["condition"]["cutoff"][1] <= 4000


def test_recordings_without_an_upper_band_leave_nothing_to_restore(
    cli: Cli, tmp_path: Path
) -> None:
    result = refused(cli, sounds(tmp_path / "data", rate=2000), "sr")
    assert "leaves nothing to restore" in result.stderr
    assert "full upper band" in result.stderr


def test_the_monitor_covers_part_of_48_khz(cli: Cli, tmp_path: Path) -> None:
    recipe = new(cli, sounds(tmp_path / "data", rate=48000), "sr")
    assert recipe["stage"]["regime"] == {"partial_band": True}
    assert cli("train", "my.toml", "--dry-run").code == 0


def test_the_length_of_clips_and_captions(cli: Cli, tmp_path: Path) -> None:
    caption = "rain on a tin roof, with {} cars passing and thunder rolling far behind the hills"
    recipe = new(cli, sounds(tmp_path / "data", seconds=6.0, caption=caption, rate=8000), "t2a")
    assert recipe["data"]["seconds"] == 5.0
    assert recipe["condition"]["max_length"] >= len(caption)
    assert recipe["condition"]["max_length"] % 16 == 0


def test_data_with_splits_keep_them(cli: Cli, tmp_path: Path) -> None:
    sounds(tmp_path / "data", caption=None)
    rows = [
        {"file": f"data/hiss {number}.wav", "words": f"hiss {number}", "split": split}
        for number, split in enumerate(["train"] * 6 + ["val"] * 3 + ["test"] * 3)
    ]
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = ("--set", "data.path_column=file", "--captions-from", "words")
    recipe = new(cli, manifest, "t2a", *chosen)
    assert recipe["data"]["source"] == "manifest"
    assert recipe["data"]["path_column"] == "file"
    assert recipe["data"]["caption_column"] == "words"
    assert recipe["data"]["valid_split"] == "val"
    assert "valid_share" not in recipe["data"]
    assert recipe["train"]["batch_size"] == 4  # the training split has six clips
    assert cli("train", "my.toml", "--dry-run").code == 0


# --- captions -------------------------------------------------------------------------------------


def test_folders_without_captions_name_the_way_out(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for folder in ("001 - Dog bark", "church_bells"):
        sounds(data / folder, caption=None)
    result = refused(cli, data, "t2a")
    assert "no clip has a caption" in result.stderr
    assert "--captions-from folder" in result.stderr

    recipe = new(cli, data, "t2a", "--captions-from", "folder")
    assert recipe["data"]["caption_column"] == "folder"
    assert cli("train", "my.toml", "--dry-run").code == 0
    report = json.loads(
        cli("data", "check", data, "--set", "data.caption_column=folder", "--json").stdout
    )
    assert sum(split["captions"] for split in report["splits"].values()) == 2 * COUNT
    assert report["splits"]["train"]["different_captions"] == 2


def test_some_clips_without_a_caption_are_named_and_can_be_left_out(
    cli: Cli, tmp_path: Path
) -> None:
    data = sounds(tmp_path / "data", count=20)
    (data / "hiss 3.txt").unlink()
    (data / "broken.wav").write_bytes(b"RIFF nothing")
    (data / "broken.txt").write_text("nothing")
    result = refused(cli, data, "t2a")
    assert "hiss 3.wav" in result.stderr and "broken.wav" in result.stderr
    assert "data.on_bad_file=skip" in result.stderr
    command = ("recipes", "new", "--data", "data", "--task", "t2a", "-o", "my.toml")
    result = cli(*command, "--set", "data.on_bad_file=skip")
    assert result.code == 0
    assert result.stderr.count("warning: left out:") == 2
    assert tomllib.loads((tmp_path / "my.toml").read_text())["data"]["on_bad_file"] == "skip"
    assert cli("train", "my.toml", "--dry-run").code == 0


# --- files and flags ------------------------------------------------------------------------------


def test_nothing_is_overwritten_without_force(cli: Cli, tmp_path: Path) -> None:
    data = sounds(tmp_path / "data")
    target = tmp_path / "my.toml"
    target.write_text("mine")
    command = ("recipes", "new", "--data", data, "--task", "sr", "-o", target)
    result = cli(*command)
    assert result.code == 2 and "--force" in result.stderr
    assert target.read_text() == "mine"
    assert cli(*command, "--force").code == 0
    assert tomllib.loads(target.read_text())["task"]["kind"] == "sr"


def test_a_recording_is_never_the_output(cli: Cli, tmp_path: Path) -> None:
    data = sounds(tmp_path / "data")
    sound = data / "hiss 0.wav"
    before = sound.read_bytes()
    result = cli("recipes", "new", "--data", data, "--task", "sr", "-o", sound, "--force")
    assert result.code == 2 and "input" in result.stderr
    assert sound.read_bytes() == before


def test_names(cli: Cli, tmp_path: Path) -> None:
    """The file is named after the data, and the run after the file, unless --name says more."""
    data = sounds(tmp_path / "Täglich & Nacht")
    assert cli("recipes", "new", "--data", data, "--task", "sr").code == 0
    written = tomllib.loads((tmp_path / "T-glich-Nacht-sr.toml").read_text())
    assert written["about"]["name"] == "T-glich-Nacht-sr"
    assert cli("recipes", "new", "--data", data, "--task", "sr", "--name", "night").code == 0
    assert tomllib.loads((tmp_path / "night.toml").read_text())["about"]["name"] == "night"
    result = cli("recipes", "new", "--data", data, "--task", "sr", "--name", "../night")
    assert result.code == 2 and "--name" in result.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--task", "tts"), "--task: unknown value 'tts'"),
        (("--task", "sr", "--set", "train.steps=3"), "only keys of [data]"),
        (("--task", "sr", "--set", "data.rate=3"), "data.rate"),
    ],
)
def test_bad_flags(cli: Cli, tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    data = sounds(tmp_path / "data", count=1)
    result = cli("recipes", "new", "--data", data, *flags)
    assert result.code == 2 and words in result.stderr


def test_data_that_are_not_there(cli: Cli, tmp_path: Path) -> None:
    result = cli("recipes", "new", "--data", tmp_path / "nowhere", "--task", "sr")
    assert result.code == 2 and "no such file or folder" in result.stderr
