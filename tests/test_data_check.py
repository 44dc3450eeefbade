"""`stagecli data check`: what is in a data set, what must be mended, which recipe keys fit."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import Result, tree, write_recipe
from helpers.clips import (
    RATE,
    noise,
    read_manifest,
    resampled_up,
    write_clips,
    write_data_set,
    write_manifest,
)
from helpers.tables import Table, fake_datasets

from stagecli.data.rows import hash_split

Cli = Callable[..., Result]


def checked(cli: Cli, *args: object, code: int = 0) -> dict[str, Any]:
    """The JSON answer of `data check`."""
    result = cli("data", "check", *args, "--json")
    assert result.code == code, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def advised(document: dict[str, Any]) -> dict[str, Any]:
    return {entry["key"]: entry["value"] for entry in document["advice"]}


def own_folder(folder: Path) -> Path:
    """20 clips of several rates, channels, containers and alphabets, each with a caption."""
    folder.mkdir()
    for k in range(20):
        rate = (16000, 22050, 44100)[k % 3]
        audio = np.stack([noise(k, 0.5, rate), noise(100 + k, 0.5, rate)], axis=1)
        path = folder / f"K\u00f6nig {k} \u9418.{('wav', 'flac', 'ogg')[k % 3]}"
        soundfile.write(path, audio if k % 2 else audio[:, 0], rate)
        path.with_suffix(".txt").write_text(f"noise number {k}")
    return folder


# --- a folder of one's own ------------------------------------------------------------------------


def test_a_folder_of_mixed_files_is_described_and_nothing_is_written(
    cli: Cli, tmp_path: Path
) -> None:
    own_folder(tmp_path / "own")
    before = tree(tmp_path)
    document = checked(cli, "own")
    assert tree(tmp_path) == before
    assert (document["source"], document["task"], document["trainable"]) == ("folder", "t2a", True)
    splits = document["splits"]
    assert sum(splits[split]["clips"] for split in splits) == 20
    counts: dict[str, int] = {}
    for facts in splits.values():
        assert facts["seconds"] == [0.5] * 5
        assert -24 < facts["level_db"][0] <= facts["level_db"][4] < -19
        for kind in ("rates", "channels"):
            for value, count in facts[kind].items():
                counts[value] = counts.get(value, 0) + count
    assert counts == {"16000": 7, "22050": 7, "44100": 6, "1": 10, "2": 10}
    assert splits["valid"]["clips"] >= 4
    advice = advised(document)
    assert (advice["data.sample_rate"], advice["data.seconds"]) == (16000, 0.5)
    assert all(entry["why"] for entry in document["advice"])


def test_a_recipe_with_the_advised_keys_trains_on_the_same_clips(
    cli: Cli, tmp_path: Path, t2a_recipe: Callable[..., Path]
) -> None:
    own_folder(tmp_path / "own")
    document = checked(cli, "own", "--max-length", 15)
    assert advised(document)["condition.max_length"] == 16
    keys = {key.replace(".", "__"): value for key, value in advised(document).items()}
    data = {"data__source": document["source"], "data__path": "own", "data__clips": None}
    result = cli("train", t2a_recipe(**{**data, **keys}), "--dry-run")
    assert result.code == 0, result.stderr
    cells = [line.split() for line in result.stdout.splitlines() if line.startswith("clips ")]
    splits = document["splits"]
    assert cells == [["clips", str(splits["train"]["clips"]), str(splits["valid"]["clips"])]]


def test_everything_unusable_is_listed_and_the_answer_is_no(cli: Cli, tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "own")
    for number in range(60):
        (folder / f"bad {number}.wav").write_bytes(b"no audio")
    first = sorted(folder.glob("K*.txt"))[0]
    first.unlink()
    document = checked(cli, "own", code=1)
    problems = {problem["where"]: problem["what"] for problem in document["problems"]}
    assert sum("bad " in where for where in problems) == 60
    (name,) = (where for where in problems if "bad " not in where)
    assert Path(name).stem == first.stem
    assert problems[name] == "no caption: write one into a .txt of the same name"
    assert not document["trainable"]
    assert advised(document)["data.on_bad_file"] == "skip"
    shown = cli("data", "check", "own")
    assert shown.code == 1
    assert shown.stdout.count("is not audio, or is damaged") == 60
    assert "61 problems must be mended first" in shown.stdout
    assert "Traceback" not in shown.stderr
    document = checked(cli, "own", "--set", "data.on_bad_file=skip")
    assert len(document["skipped"]) == 61
    assert sum(text.startswith("left out: ") for text in document["doubts"]) == 61


def test_a_folder_without_captions_is_checked_for_super_resolution(
    cli: Cli, tmp_path: Path
) -> None:
    for text in own_folder(tmp_path / "own").glob("*.txt"):
        text.unlink()
    assert checked(cli, "own")["task"] == "sr"
    (problem,) = checked(cli, "own", "--task", "t2a", code=1)["problems"]
    assert problem["where"] == "own"
    assert problem["what"].startswith("no clip has a caption, which text-to-audio needs")


def test_chance_leaves_a_quarter_to_validate_on_of_a_few_clips(cli: Cli, tmp_path: Path) -> None:
    write_clips(tmp_path / "own", {f"{k}.wav": noise(k, 0.1) for k in range(16)})
    assert sum(hash_split(f"{k}.wav") == "valid" for k in range(16)) < 4
    document = checked(cli, "own")
    share = advised(document)["data.valid_share"]
    assert document["splits"]["valid"]["clips"] in (4, 5)
    (tmp_path / "own/new.wav").write_bytes((tmp_path / "own/0.wav").read_bytes())
    again = checked(cli, "own", "--set", f"data.valid_share={share}")
    assert again["splits"]["valid"]["clips"] in (4, 5, 6)
    assert "data.valid_share" not in advised(again)


# --- a manifest, and what the report measures -----------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """8 training, 3 validation and 2 test clips of white noise, and a manifest."""
    write_data_set(tmp_path / "data")
    return tmp_path / "data"


def test_the_dry_run_shows_the_same_table(
    cli: Cli, folder: Path, t2a_recipe: Callable[..., Path]
) -> None:
    rows = [row for row in read_manifest(folder) if row["split"] != "test"]
    for number, row in enumerate(rows):
        row["caption"] = f"{number % 3} " + row["caption"]
    write_manifest(folder, rows)
    manifest = "data/manifest.jsonl"
    keys = {"data__source": "manifest", "data__path": manifest, "data__clips": None}
    recipe = t2a_recipe(**keys, data__sample_rate=RATE, condition__max_length=12)
    dry = cli("train", recipe, "--dry-run")
    check = cli("data", "check", manifest, "--max-length", 12)
    assert (dry.code, check.code) == (0, 0), dry.stderr + check.stderr
    table = check.stdout[check.stdout.index("data ") : check.stdout.index("worth a look")].strip()
    assert "captions made equal by the cut" in table
    assert table in dry.stdout


def test_captions_that_become_one_must_be_mended(cli: Cli, folder: Path) -> None:
    document = checked(cli, folder / "manifest.jsonl", "--max-length", 6, code=1)
    train = document["splits"]["train"]
    assert (train["captions"], train["captions_cut"], train["captions_made_equal"]) == (8, 8, 8)
    assert "all 8 different training captions become one" in document["problems"][0]["what"]
    assert advised(document)["condition.max_length"] == 16


def test_duplicates_are_listed_across_splits(cli: Cli, folder: Path) -> None:
    write_clips(folder, {"1.wav": noise(0), "9.wav": noise(2), "12.wav": noise(3)})
    document = checked(cli, folder / "manifest.jsonl")
    assert document["duplicates"] == [["1.wav", "0.wav"], ["9.wav", "2.wav"], ["12.wav", "3.wav"]]
    assert document["equal_in_train_and_test"] == 1
    assert any("evaluation measures what was trained on" in text for text in document["doubts"])


def test_audio_that_was_resampled_up_is_told_its_real_rate(cli: Cli, folder: Path) -> None:
    up = {f"{k}.wav": resampled_up(noise(k, rate=RATE // 2), 2) for k in range(13)}
    write_clips(folder, up)
    manifest = folder / "manifest.jsonl"
    document = checked(cli, manifest, "--task", "sr")
    assert document["splits"]["train"]["bandwidth_hz"][4] < 1.03 * RATE / 4
    assert advised(document)["data.sample_rate"] == RATE // 2
    asked = ("--task", "sr", "--set", f"data.sample_rate={RATE}")
    problems = checked(cli, manifest, *asked, code=1)["problems"]
    assert "silence would be learned" in problems[0]["what"]


def test_a_few_low_rates_are_left_out_rather_than_followed(cli: Cli, folder: Path) -> None:
    soundfile.write(folder / "0.wav", noise(0, rate=8000), 8000)
    advice = advised(checked(cli, folder / "manifest.jsonl"))
    assert (advice["data.sample_rate"], advice["data.on_bad_file"]) == (RATE, "skip")
    asked = ("--set", f"data.sample_rate={RATE}")
    (problem,) = checked(cli, folder / "manifest.jsonl", *asked, code=1)["problems"]
    assert problem["what"] == "0.wav: sample rate 8000 Hz is below the recipe's 16000 Hz"


def test_splits_of_other_names_are_recognised(cli: Cli, folder: Path) -> None:
    names = {"train": "development", "valid": "val", "test": "evaluation"}
    rows = [{**row, "split": names[row["split"]]} for row in read_manifest(folder)]
    document = checked(cli, write_manifest(folder, rows))
    assert [document["splits"][s]["clips"] for s in ("train", "valid", "test")] == [8, 3, 2]
    assert {f"data.{split}_split": name for split, name in names.items()}.items() <= (
        advised(document).items()
    )
    rows = [{**row, "split": "train"} for row in rows]
    (problem,) = checked(cli, write_manifest(folder, rows), code=1)["problems"]
    assert problem["where"] == "split valid"


def test_the_column_of_captions_is_suggested(cli: Cli, folder: Path) -> None:
    rows = read_manifest(folder)
    for row in rows:
        row["text"] = row.pop("caption")
    write_manifest(folder, rows)
    assert advised(checked(cli, folder / "manifest.jsonl"))["data.caption_column"] == "text"
    keys = ("--set", "data.caption_column=text")
    assert checked(cli, folder / "manifest.jsonl", *keys)["task"] == "t2a"


def test_a_hugging_face_data_set_is_checked_like_files(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"audio": {"path": None, "bytes": (folder / f"{k}.wav").read_bytes()}, "text": f"noise {k}"}
        for k in range(11)
    ]
    tables = {"train": Table(rows[:8]), "validation": Table(rows[8:])}
    tables["validation"]._fingerprint = "f1"
    monkeypatch.setitem(sys.modules, "datasets", fake_datasets(tables))
    document = checked(cli, "hf:owner/name", "--set", "data.caption_column=text")
    assert (document["source"], document["task"]) == ("huggingface", "t2a")
    assert [document["splits"][split]["clips"] for split in ("train", "valid")] == [8, 3]
    assert advised(document)["data.valid_split"] == "validation"
    assert advised(document)["data.sample_rate"] == RATE
    del tables["validation"]
    (problem,) = checked(cli, "hf:owner/name", code=1)["problems"]
    assert problem["where"] == "split valid"


# --- what is no data set --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "problem"),
    [("nowhere", "no such file or folder"), ("a.toml", "is a file of another kind")],
)
def test_what_is_no_data_set_is_one_error(
    path: str, problem: str, cli: Cli, tmp_path: Path
) -> None:
    write_recipe(tmp_path / "a.toml")
    result = cli("data", "check", path, "--json")
    assert (result.code, result.stdout) == (2, "")
    assert problem in result.stderr
    assert "hf:NAME" in result.stderr


def test_wrong_keys_are_told_together(cli: Cli, folder: Path) -> None:
    keys = ("--set", "data.split_colum=x", "--set", "data.seconds=-1", "--set", "train.steps=1")
    result = cli("data", "check", folder, *keys)
    assert result.code == 2
    assert "did you mean `split_column`?" in result.stderr
    assert "data.seconds: must be" in result.stderr
    assert "only keys of [data] can be set here" in result.stderr


def test_a_foreign_error_is_told_with_what_led_to_it(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        try:
            raise ModuleNotFoundError("No module named 'torchcodec'")
        except ImportError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error

    fake = types.SimpleNamespace(load_dataset=fail)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    result = cli("data", "check", "hf:owner/name")
    assert result.code == 2
    assert "An error occurred while generating the dataset" in result.stderr
    assert "No module named 'torchcodec'" in result.stderr
    assert "install the package that it names" in result.stderr
