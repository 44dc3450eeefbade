"""A run knows its data: changed data are named at a resume, moved data are not in the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import read_rows, run_cli, write_recipe
from helpers.clips import (
    noise,
    read_manifest,
    write_clips,
    write_data_set,
    write_manifest,
)

from stagecli.evaluate.data import open_data
from stagecli.evaluate.flags import Flags
from stagecli.files import sealed
from stagecli.recipe.load import load_from_run, load_recipe
from stagecli.recipe.signature import signature

Rows = list[dict[str, Any]]
DATA = {"data__source": "manifest", "data__path": "data/manifest.jsonl", "data__sample_rate": 8000}
TRAINING = {"train__steps": 3, "train__checkpoint_every": 3, "evaluate__steps": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, r.toml and the finished run runs/r. Do not change it: use `folder`."""
    path = tmp_path_factory.mktemp("fingerprint")
    write_data_set(path / "data", rate=8000)
    recipe = write_recipe(path / "r.toml", **DATA, **TRAINING)
    result = run_cli("train", recipe, cwd=path)
    assert result.code == 0, result.stderr
    return path


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished`."""
    shutil.copytree(finished, tmp_path / "work")
    return tmp_path / "work"


def train(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    result = run_cli("train", "r.toml", "--quiet", *arguments, cwd=folder, env=env)
    assert "Traceback" not in result.stderr
    return result.code, result.stderr


def data_events(folder: Path) -> Rows:
    events = read_rows(folder / "runs" / "r", "events")
    return [row for row in events if row["mechanism"] == "data"]


def remove_row(data: Path) -> None:
    write_manifest(data, read_manifest(data)[1:])


def add_row(data: Path) -> None:
    write_clips(data, {"new.wav": noise(99, rate=8000)}, rate=8000)
    row = {"path": "new.wav", "caption": "a new noise", "split": "valid"}
    write_manifest(data, [*read_manifest(data), row])


def change_caption(data: Path) -> None:
    first, *rest = read_manifest(data)
    write_manifest(data, [{**first, "caption": "silence"}, *rest])


def replace_audio(data: Path) -> None:
    write_clips(data, {"2.wav": noise(77, rate=8000)}, rate=8000)


def reorder(data: Path) -> None:
    write_manifest(data, read_manifest(data)[::-1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (remove_row, "train  1 clip removed: 0.wav"),
        (add_row, "valid  1 clip added: new.wav"),
        (change_caption, "train  1 clip with another caption: 0.wav"),
        (replace_audio, "train  1 clip with other audio: 2.wav"),
        (reorder, "train  8 clips in another order: 7.wav, 6.wav, 5.wav, 4.wav, 3.wav and 3 more"),
    ],
)
def test_changed_data_do_not_resume_and_the_change_is_named(
    change: Callable[[Path], None], words: str, folder: Path
) -> None:
    change(folder / "data")
    rows = read_rows(folder / "runs" / "r")
    code, stderr = train(folder, "--set", "train.steps=5")
    assert code == 2
    assert "the data of runs/r have changed" in stderr
    assert words in " ".join(stderr.split(" ")).replace("   ", "  ")
    assert "--accept-data" in stderr and "--name" in stderr
    assert read_rows(folder / "runs" / "r") == rows


def test_changed_data_can_be_accepted_once_and_an_event_says_how(folder: Path) -> None:
    remove_row(folder / "data")
    replace_audio(folder / "data")
    code, stderr = train(folder, "--accept-data", "--set", "train.steps=5")
    assert code == 0, stderr
    (event,) = data_events(folder)
    assert event["reason"].startswith("changed data accepted: train: 1 clip removed: 0.wav")
    assert event["evidence"] == {"train removed": ["0.wav"], "train with other audio": ["2.wav"]}
    code, stderr = train(folder, "--set", "train.steps=5")
    assert code == 0, stderr
    assert len(data_events(folder)) == 1


def test_moved_data_resume(folder: Path) -> None:
    (folder / "data").rename(folder / "elsewhere")
    code, stderr = train(folder, "--set", "data.path=elsewhere/manifest.jsonl")
    assert code == 0, stderr
    assert data_events(folder) == []


def test_renamed_files_with_the_same_content_resume(folder: Path) -> None:
    data = folder / "data"
    rows = read_manifest(data)
    for row in rows:
        (data / row["path"]).rename(data / f"x{row['path']}")
    write_manifest(data, [{**row, "path": f"x{row['path']}"} for row in rows])
    code, stderr = train(folder)
    assert code == 0, stderr


def test_another_value_of_a_variable_and_another_folder_resume(folder: Path) -> None:
    text = (folder / "r.toml").read_text()
    (folder / "r.toml").write_text(text.replace('"data/man', '"${WHERE}/man'))
    (folder / "data").rename(folder / "there")
    code, stderr = train(folder, env={"WHERE": str(folder / "there")})
    assert code == 0, stderr
    run_dir = folder / "runs"
    (folder / "below").mkdir()
    result = run_cli(
        *("train", folder / "r.toml", "--runs-dir", run_dir, "--quiet"),
        cwd=folder / "below",
        env={"WHERE": str(folder / "there")},
    )
    assert result.code == 0, result.stderr


def test_a_run_of_an_earlier_version_resumes_and_says_that_nothing_was_compared(
    folder: Path,
) -> None:
    (folder / "runs" / "r" / "data.json").unlink()
    info = json.loads((folder / "runs" / "r" / "run.json").read_text())
    info["signature"] = "of an earlier version"
    (folder / "runs" / "r" / "run.json").write_text(json.dumps(sealed(info)))
    remove_row(folder / "data")
    code, stderr = train(folder)
    assert code == 0, stderr
    (event,) = data_events(folder)
    assert "not compared" in event["reason"]
    add_row(folder / "data")
    assert train(folder)[0] == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": {"train": 3}}', "\xff"])
def test_a_damaged_record_of_the_data_is_named_and_can_be_replaced(
    content: str, folder: Path
) -> None:
    path = folder / "runs" / "r" / "data.json"
    path.write_bytes(content.encode("latin-1"))
    code, stderr = train(folder)
    assert code == 2
    assert "runs/r/data.json" in stderr and "--accept-data" in stderr


def test_a_replaced_record_of_the_data_is_an_event(folder: Path) -> None:
    (folder / "runs" / "r" / "data.json").write_text("{")
    assert train(folder, "--accept-data")[0] == 0
    assert "without a comparison" in data_events(folder)[0]["reason"]
    assert train(folder)[0] == 0


@pytest.mark.parametrize("status", ["failed", "created"])
def test_a_start_that_trained_nothing_does_not_bind_the_data(status: str, folder: Path) -> None:
    """It failed, or was killed, after the data were recorded and before an attempt began."""
    run = folder / "runs" / "r"
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(sealed({**info, "attempts": [], "status": status})))
    shutil.rmtree(run / "checkpoints")
    remove_row(folder / "data")
    code, stderr = train(folder)
    assert code == 0, stderr
    assert json.loads((run / "data.json").read_text())["report"]["splits"]["train"]["clips"] == 7


# --- evaluate, and signatures ---------------------------------------------------------------------


def test_evaluate_finds_moved_data_where_the_flag_says(folder: Path) -> None:
    (folder / "data").rename(folder / "elsewhere")
    refused = run_cli("evaluate", "runs/r", "--quick", cwd=folder)
    assert refused.code == 2
    assert "--data PATH" in refused.stderr and "data/manifest.jsonl" in refused.stderr
    moved = ("--data", "elsewhere/manifest.jsonl")
    result = run_cli("evaluate", "runs/r", "--quick", *moved, cwd=folder)
    assert result.code == 0, result.stderr
    assert "not the data" not in result.stderr


def test_evaluate_warns_about_data_that_the_run_does_not_know(folder: Path) -> None:
    replace_audio(folder / "data")
    warnings: list[str] = []
    open_data(
        load_from_run(folder / "runs" / "r" / "recipe.toml"),
        Flags(data=folder / "data" / "manifest.jsonl"),
        folder / "runs" / "r",
        progress=lambda *_: None,
        warn=warnings.append,
    )
    assert warnings == [
        "not the data that the run was trained on: train: 1 clip with other audio: 2.wav"
    ]


def test_sampling_needs_no_data(folder: Path) -> None:
    shutil.rmtree(folder / "data")
    result = run_cli("sample", "runs/r", "--prompt", "noise", "--output", "a.wav", cwd=folder)
    assert result.code == 0, result.stderr


def test_a_moved_folder_of_a_model_is_the_same_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "r.toml"), [])

    def signed(model: str) -> str:
        codec = recipe.codec.model_copy(update={"vocoder": model})
        return signature(recipe.model_copy(update={"codec": codec}))

    assert signed("/here/hifigan") == signed("/there/hifigan") == signed("~/hifigan")
    assert signed("/here/hifigan") != signed("/here/other")
    assert signed("microsoft/hifigan") != signed("other/hifigan")
