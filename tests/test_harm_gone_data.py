"""`sample` needs no data: those of the run, and the variables in their path, may be gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Result, run_cli, write_recipe

Cli = Callable[..., Result]


def write_data(folder: Path, rate: int) -> None:
    folder.mkdir()
    rows = []
    for i in range(8):
        noise = 0.1 * np.random.default_rng(i).standard_normal(rate)
        soundfile.write(folder / f"{i}.wav", noise, rate)
        split = ("train", "train", "valid", "test")[i % 4]
        rows.append({"path": f"{i}.wav", "caption": "noise", "split": split})
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_sample_works_without_the_data_and_their_variable(
    kind: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = {"t2a": 8000, "sr": 16000}[kind]
    write_data(tmp_path / "clips", rate)
    recipe = write_recipe(
        tmp_path / "r.toml",
        kind,
        data__source="manifest",
        data__path="${CLIPS_OF_TEST}/m.jsonl",
        data__cache_dir="${CLIPS_OF_TEST}/cache",
        train__steps=2,
    )
    trained = run_cli("train", recipe, cwd=tmp_path, env={"CLIPS_OF_TEST": str(tmp_path / "clips")})
    assert trained.code == 0, trained.stderr
    low = tmp_path / "low.wav"
    soundfile.write(low, 0.1 * np.random.default_rng(9).standard_normal(4000), 8000)
    shutil.rmtree(tmp_path / "clips")
    recipe.unlink()

    flags = ("-p", "noise") if kind == "t2a" else ("--input", low)
    for path in ("the path as it was", "${GONE_FOR_EVER}/m.jsonl"):
        for file in (tmp_path / "runs" / "r").rglob("recipe.toml"):
            text = file.read_text().replace(f"{tmp_path / 'clips'}/m.jsonl", path)
            file.write_text(text if path.startswith("$") else file.read_text())
        for sums in (tmp_path / "runs" / "r").rglob("sha256sums.txt"):
            sums.unlink()
        result = cli("sample", "runs/r", *flags, "--steps", "1", "--json")
        assert result.code == 0, result.stderr
        (row,) = json.loads(result.stdout)
        assert Path(tmp_path, row["file"]).exists()

    # The evaluation does need them, and says how to name them.
    refused = cli("evaluate", "runs/r")
    assert refused.code == 2
    assert "--data PATH" in refused.stderr and "GONE_FOR_EVER" in refused.stderr


def test_a_recipe_to_train_still_needs_its_variables(cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "r.toml", data__source="manifest", data__path="${GONE_FOR_EVER}/m.jsonl"
    )
    result = cli("train", recipe)
    assert result.code == 2
    assert "environment variable GONE_FOR_EVER is not set" in result.stderr


def test_the_help_of_sample_says_that_it_needs_no_data(cli: Cli) -> None:
    assert "the data of the run may be gone" in " ".join(cli("sample", "--help").stdout.split())
