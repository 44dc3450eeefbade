"""evaluate RUN on audio that nobody trained on: --data, and --input with --reference."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from cli_results import Cli, document, noise

from stagecli.data.audio import write_wav
from stagecli.dsp.resample import resample

RATE = 16000
NAMES = ["a.wav", "b.wav", "deep/c.wav"]
DATA = ("evaluate", "runs/sr", "--cutoff", "2000", "--data")


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """A folder of clips without splits, at two rates."""
    folder = tmp_path / "music"
    (folder / "deep").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        write_wav(folder / name, noise(0.5, RATE * (1 + seed % 2), seed), RATE * (1 + seed % 2))
    return folder


def write_manifest(folder: Path, splits: dict[str, str]) -> Path:
    path = folder / "m.jsonl"
    rows = [{"path": name, "split": split} for name, split in splits.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.usefixtures("runs")
def test_a_folder_without_splits_is_scored_whole(cli: Cli, music: Path) -> None:
    result = cli(*DATA, "music", "--json")
    scores = document(result)
    assert (scores["data"], scores["split"], scores["clips"]) == ("music", "all", 3)
    assert [row["system"] for row in scores["rows"]] == ["unprocessed", "copy-up", "model"]
    assert [row["file"] for row in scores["files"]] == NAMES * 3
    text = cli(*DATA, "music", "--csv", "-").stdout
    of_model = [
        row["file"]
        for row in csv.DictReader(io.StringIO(text))
        if (row["system"], row["metric"]) == ("model", "lsd")
    ]
    assert of_model == ["", *NAMES]
    shown = cli(*DATA, "music").stdout
    assert "by file" in shown and all(name in shown for name in NAMES)


@pytest.mark.usefixtures("runs")
def test_a_manifest_with_splits_keeps_them(cli: Cli, music: Path) -> None:
    manifest = write_manifest(music, dict(zip(NAMES, ("train", "test", "test"), strict=True)))
    scores = document(cli(*DATA, manifest, "--json"))
    assert (scores["split"], scores["clips"]) == ("test", 2)


@pytest.mark.usefixtures("runs")
def test_other_clips_of_the_same_names_are_scored_anew(cli: Cli, music: Path) -> None:
    first = document(cli(*DATA, "music", "--json"))
    for seed, name in enumerate(NAMES):
        write_wav(music / name, noise(0.5, RATE, 10 + seed), RATE)
    second = document(cli(*DATA, "music", "--json"))
    assert first["files"][0]["metrics"] != second["files"][0]["metrics"]
    assert first["file"] != second["file"]


@pytest.mark.usefixtures("runs")
def test_files_that_cannot_be_used_are_left_out_and_named(cli: Cli, music: Path) -> None:
    write_wav(music / "low.wav", noise(0.5, 8000), 8000)
    (music / "broken.wav").write_bytes(b"no audio")
    result = cli(*DATA, "music", "--json")
    assert document(result)["clips"] == 3
    assert "2 files are not scored" in result.stderr
    assert "low.wav" in result.stderr and "broken.wav" in result.stderr


@pytest.mark.usefixtures("runs")
def test_data_that_are_nowhere_are_refused(cli: Cli) -> None:
    result = cli(*DATA, "nowhere")
    assert result.code == 2 and "nowhere" in result.stderr and "is missing" in result.stderr


def test_clips_that_the_run_was_trained_on_are_told(cli: Cli, music: Path, tmp_path: Path) -> None:
    """A moved folder is divided as in training; a manifest that calls them test draws a warning."""
    from conftest import write_recipe

    for seed in range(40):
        write_wav(music / f"{seed}.wav", noise(0.3, RATE, 100 + seed), RATE)
    recipe = write_recipe(
        tmp_path / "own.toml",
        "sr",
        data__source="folder",
        data__path=str(music),
        data__clips=None,
        train__steps=2,
        train__validate_every=0,
    )
    trained = cli("train", recipe, "--set", 'data.on_bad_file="skip"')
    assert trained.code == 0, trained.stderr
    music.rename(tmp_path / "moved")
    command = ("evaluate", "runs/own", "--cutoff", "2000", "--json", "--data")
    own = document(cli(*command, "moved"))
    assert (own["split"], own["clips"]) == ("test", 2)
    manifest = write_manifest(tmp_path / "moved", {f"{seed}.wav": "test" for seed in range(4)})
    assert "the run was trained on" in cli(*command, manifest).stderr


# --- files with references ------------------------------------------------------------------------

RESTORED = ("evaluate", "runs/sr", "--input", "low", "--reference", "music")


@pytest.fixture
def low(music: Path, tmp_path: Path) -> Path:
    """The clips of `music`, all at RATE, at half of it."""
    for seed, name in enumerate(NAMES):
        clip = noise(0.5, RATE, seed)
        write_wav(music / name, clip, RATE)
        (tmp_path / "low" / name).parent.mkdir(parents=True, exist_ok=True)
        write_wav(tmp_path / "low" / name, resample(clip, RATE, RATE // 2), RATE // 2)
    return tmp_path / "low"


@pytest.mark.usefixtures("low")
def test_files_are_restored_and_scored_against_their_references(cli: Cli, runs: Path) -> None:
    command = (*RESTORED, "--cutoff", "4000", "--json")
    scores = document(cli(*command))
    assert [row["system"] for row in scores["rows"]] == ["unprocessed", "copy-up", "model"]
    assert [row["kind"] for row in scores["rows"]] == ["baseline", "baseline", "model"]
    assert len(scores["files"]) == 9 and scores["clips"] == 3
    again = cli(*command)
    assert "using the files restored before" in again.stderr
    assert document(again)["rows"] == scores["rows"]

    # The same as `sample` and then two folders.
    made = ("sample", "runs/sr", "--input", "low", "--cutoff", "4000", "--output", "made")
    assert cli(*made, "--steps", "2").code == 0
    two = ("evaluate", "--task", "sr", "--cutoff", "4000", "--reference", "music")
    folders = document(cli(*two, "--generated", "made", "--json"))
    assert folders["rows"][0]["metrics"] == scores["rows"][-1]["metrics"]
    shown = cli(*RESTORED, "--cutoff", "4000").stdout
    assert "by file, cutoff 4000 Hz: model" in shown and "deep/c.wav" in shown


@pytest.mark.usefixtures("low")
def test_two_runs_on_the_same_files_are_compared(cli: Cli, runs: Path) -> None:
    command = (*RESTORED, "--cutoff", "4000", "--checkpoint", "8", "--checkpoint", "10", "--json")
    (difference,) = document(cli(*command))["differences"]
    (row,) = difference["rows"]
    assert (row["n"], row["cutoff"]) == (3, 4000)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--input", "low"), "give --input and --reference together"),
        (("--reference", "music"), "give --input and --reference together"),
        (("--input", "low", "--reference", "music"), "needs one --cutoff"),
        (
            ("--input", "low", "--reference", "music", "--cutoff", "4000", "--by", "x"),
            "--by: not applicable to --input",
        ),
        (("--input", "low", "--reference", "deep", "--cutoff", "4000"), "deep"),
    ],
)
@pytest.mark.usefixtures("low")
def test_flags_that_leave_something_open_are_refused_before_work(
    flags: tuple[str, ...], words: str, cli: Cli, runs: Path
) -> None:
    result = cli("evaluate", "runs/sr", *flags)
    assert result.code == 2 and words in result.stderr
    assert not list((runs / "sr").glob("evals/*"))


@pytest.mark.usefixtures("low", "runs")
def test_one_file_and_its_reference_are_a_pair_whatever_their_names(
    cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "low" / "a.wav").rename(tmp_path / "low" / "telephone.wav")
    files = ("--input", "low/telephone.wav", "--reference", "music/a.wav", "--cutoff", "4000")
    scores = document(cli("evaluate", "runs/sr", *files, "--json"))
    assert [row["n"] for row in scores["rows"]] == [1, 1, 1]


@pytest.mark.usefixtures("runs")
def test_a_reference_is_refused_for_runs_that_restore_nothing(cli: Cli, music: Path) -> None:
    result = cli("evaluate", "runs/t2a", "--reference", "music")
    assert result.code == 2 and "--reference: not applicable to t2a runs" in result.stderr


@pytest.mark.usefixtures("runs")
def test_an_audio_file_is_no_data_set(cli: Cli, music: Path) -> None:
    result = cli(*DATA, "music/a.wav")
    assert result.code == 2 and "name its folder" in result.stderr
