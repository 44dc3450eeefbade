"""Runs written by an earlier version stay readable: inspected, sampled, and scored as they were.

`old_run/t2a` and `old_run/sr` were trained for 12 steps, and evaluated, when recipes still had the
keys `objective.timesteps`, `evaluate.guidance` and `evaluate.guidance_interval`, and rows of probes
a `structure_row`. model.safetensors and trainer.safetensors, which only a resume reads, are left
out to save space.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import read_rows, run_cli, tree

OLD = Path(__file__).parent / "old_run"
KINDS = ("t2a", "sr")


@pytest.fixture
def old_runs(tmp_path: Path) -> Path:
    """A folder with copies of both runs at runs/."""
    shutil.copytree(OLD, tmp_path / "runs")
    return tmp_path


def inspected(folder: Path, kind: str) -> dict[str, Any]:
    result = run_cli("inspect-regime", f"runs/{kind}", "--json", cwd=folder)
    assert result.code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_stored_runs_are_old() -> None:
    """A run saved again by today's code would test nothing."""
    for kind in KINDS:
        recipe = tomllib.loads((OLD / kind / "recipe.toml").read_text())
        assert "timesteps" in recipe["objective"]
        assert "density" not in recipe["objective"]
        assert "guidance" in recipe["evaluate"]
        assert "cfg_scale" not in recipe["evaluate"]
    assert any("structure_row" in row for row in read_rows(OLD / "t2a", "probes"))
    assert sum(path.stat().st_size for path in OLD.rglob("*") if path.is_file()) < 400_000


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_reports_the_numbers_in_the_rows(kind: str, old_runs: Path) -> None:
    report = inspected(old_runs, kind)
    run = old_runs / "runs" / kind
    probes = read_rows(run, "probes")
    losses = [row["valid/loss"] for row in read_rows(run) if "valid/loss" in row]
    assert (report["status"], report["step"], report["steps"]) == ("finished", 12, 12)
    assert report["validation"]["last"] == losses[-1]
    assert report["best_checkpoint"] == json.loads((run / "run.json").read_text())["best"]
    assert report["regime"]["Dn"] == probes[-1]["Dn"]
    assert report["regime"]["r"] == probes[-1]["r"]


def test_inspect_reports_the_groups_of_blocks(old_runs: Path) -> None:
    report = json.dumps(inspected(old_runs, "t2a"))
    last = read_rows(old_runs / "runs" / "t2a", "probes")[-1]
    assert json.dumps(last["structure_S"]) in report
    assert json.dumps(last["structure_labels"]) in report
    text = run_cli("inspect-regime", "runs/t2a", cwd=old_runs).stdout
    assert "A 1-2, B 3-4" in text
    assert "A 1-2, B 3-4" not in run_cli("inspect-regime", "runs/sr", cwd=old_runs).stdout


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_as_text_and_as_a_page(kind: str, old_runs: Path) -> None:
    text = run_cli("inspect-regime", f"runs/{kind}", cwd=old_runs)
    assert text.code == 0, text.stderr
    assert "12 of 12" in text.stdout
    for event in read_rows(old_runs / "runs" / kind, "events"):
        assert event["reason"].partition(":")[0][:40] in text.stdout
    page = run_cli("inspect-regime", f"runs/{kind}", "--html", "page.html", cwd=old_runs)
    assert page.code == 0, page.stderr
    assert "</html>" in (old_runs / "page.html").read_text()


def test_the_text_to_audio_run_samples_what_it_sampled(old_runs: Path) -> None:
    """The file that the old version wrote at its last step, from the same caption and seed.

    Old files are as loud as the model made them; new ones record by how much they were turned down.
    """
    folder = old_runs / "runs" / "t2a" / "samples" / "step_00000012"
    row = read_rows(folder, "samples")[0]
    before = tree(old_runs / "runs" / "t2a")
    result = run_cli(
        *("sample", "runs/t2a", "--prompt", row["prompt"], "--seed", row["seed"]),
        *("--output", "again.wav"),
        cwd=old_runs,
    )
    assert result.code == 0, result.stderr
    expected, rate = soundfile.read(folder / row["path"])
    audio, again_rate = soundfile.read(old_runs / "again.wav")
    assert again_rate == rate
    gain = 10 ** (read_rows(old_runs, "samples")[0]["gain_db"] / 20)
    np.testing.assert_allclose(audio / gain, expected, atol=2e-4)
    assert tree(old_runs / "runs" / "t2a") == before


def test_the_super_resolution_run_restores(old_runs: Path) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(old_runs / "in.wav", 0.1 * rng.standard_normal(4000), 16000)
    result = run_cli(
        *("sample", "runs/sr", "--input", "in.wav", "--cutoff", 2000, "--output", "out.wav"),
        cwd=old_runs,
    )
    assert result.code == 0, result.stderr
    audio, rate = soundfile.read(old_runs / "out.wav")
    assert (rate, len(audio)) == (16000, 4000)
    assert np.isfinite(audio).all()
    assert np.abs(audio).max() > 0.01


@pytest.mark.parametrize(("kind", "flags"), [("t2a", ["--quick"]), ("sr", [])])
def test_evaluate_gives_the_scores_that_it_gave(
    kind: str, flags: list[str], old_runs: Path
) -> None:
    saved = next((OLD / kind / "evals").glob("*.json"))
    shutil.rmtree(old_runs / "runs" / kind / "evals")  # stored scores would be read, not computed
    result = run_cli("evaluate", f"runs/{kind}", *flags, "--json", cwd=old_runs)
    assert result.code == 0, result.stderr
    document = json.loads(result.stdout)
    scores = figures(document)
    expected = figures(json.loads(saved.read_text()))
    assert scores.keys() == expected.keys()
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), name


def figures(document: Any) -> dict[tuple[str, ...], float]:
    """Every number of the rows of an evaluation, by (system, metric, ...)."""
    numbers: dict[tuple[str, ...], float] = {}

    def collect(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(inner, (*path, key))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[path] = value

    for number, row in enumerate(document["rows"]):
        collect(row["metrics"], (str(number),))
    return numbers
