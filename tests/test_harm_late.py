"""Evaluations that could never give a number are refused when the recipe is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, write_recipe

from stagecli.errors import EXIT_USAGE
from stagecli.metrics.cutoffs import cutoff_problem
from stagecli.metrics.lsd_presets import LSD_PRESETS

Cli = Callable[..., Result]


@pytest.mark.parametrize(
    "case",
    [
        ("t2a", {"train__evaluate_clips": 1}, "train.evaluate_clips", "must be 2 or more"),
        ("sr", {"evaluate__cutoffs": [4000, 5]}, "evaluate.cutoffs", "must be above 20 Hz"),
        ("sr", {"data__seconds": 0.05}, "data.seconds", "more than 0.064 s"),
    ],
)
@pytest.mark.parametrize("command", [("train",), ("train", "--dry-run"), ("recipes", "check")])
def test_what_cannot_be_scored_is_refused_at_its_line(
    case: tuple[str, dict[str, Any], str, str], command: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    kind, changes, key, words = case
    recipe = write_recipe(tmp_path / "r.toml", kind, train__evaluate_every=2, **changes)
    result = cli(*command, recipe)
    assert result.code == (1 if command[0] == "recipes" else EXIT_USAGE)
    assert f"{recipe}:" in result.stderr and key in result.stderr and words in result.stderr
    assert not (tmp_path / "runs").exists()


def test_one_clip_is_enough_where_nothing_is_evaluated(cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml", train__evaluate_clips=1)
    assert cli("recipes", "check", recipe).code == 0


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_valid_split_of_one_clip_is_refused(
    dry: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    from stagecli.data.audio import write_wav
    from stagecli.data.synth import SynthSource
    from stagecli.recipe.load import load_recipe

    made = SynthSource(load_recipe(write_recipe(tmp_path / "synth.toml")).data, 0)
    lines = []
    for i, clip in enumerate(made.clips("train")[:4]):
        write_wav(tmp_path / f"{i}.wav", made.read(clip), made.sample_rate)
        split = "valid" if i == 0 else "train"
        lines.append(f'{{"path": "{i}.wav", "caption": "a", "split": "{split}"}}\n')
    (tmp_path / "m.jsonl").write_text("".join(lines))
    recipe = write_recipe(
        tmp_path / "r.toml",
        data__source="manifest",
        data__path=str(tmp_path / "m.jsonl"),
        data__clips=None,
        train__evaluate_every=2,
    )
    result = cli("train", recipe, *dry)
    assert result.code == EXIT_USAGE
    assert "has one clip" in result.stderr and "evaluate_every = 0" in result.stderr


@pytest.mark.parametrize("where", [("runs/sr",), ("--reference", "a.wav", "--generated", "a.wav")])
def test_a_cutoff_flag_too_low_to_score_is_refused_before_work(
    where: tuple[str, ...], cli: Cli, runs: Path, tmp_path: Path
) -> None:
    import numpy as np

    from stagecli.data.audio import write_wav

    audio = 0.1 * np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    write_wav(tmp_path / "a.wav", audio, 16000)
    result = cli("evaluate", *where, "--task", "sr", "--cutoff", "5")
    assert result.code == EXIT_USAGE
    assert "--cutoff" in result.stderr and "above 20 Hz" in result.stderr
    assert not list((runs / "sr").glob("evals/*"))


def test_the_lowest_cutoff_leaves_a_bin_below_it() -> None:
    preset = LSD_PRESETS["nuwave"]
    assert cutoff_problem(23, 48000, preset) is not None
    assert cutoff_problem(24, 48000, preset) is None
    assert "half the sample rate" in (cutoff_problem(24000, 48000, preset) or "")
