"""`train.accumulate` splits a step and changes nothing else, whatever mechanisms act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import read_rows, run_cli, write_recipe

GUIDED: dict[str, Any] = {
    "stage__guidance__schedule": "constant",
    "stage__guidance__hidden": 16,
}
REGIME: dict[str, Any] = {"stage__regime__every": 2, "stage__regime__clips": 4}
STRUCTURE: dict[str, Any] = {
    **REGIME,
    "train__validate_every": 3,
    "model__depth": 4,
    "stage__structure__action": "align",
    "stage__structure__when": "always",
    "stage__structure__ramp": 0.3,
}
MECHANISMS: dict[str, dict[str, Any]] = {
    "none": {},
    "guidance, measuring conflicts": {**GUIDED, "stage__guidance__conflict_every": 1},
    "guidance, every fourth frame": {**GUIDED, "stage__guidance__conflict_every": 5},
    "ablation": {**GUIDED, "stage__guidance__ablation": 1, "stage__guidance__ablation_start": 0.5},
    "structure": STRUCTURE,
    "timesteps by r": {**REGIME, "stage__timesteps__kind": "progress"},
    "weights of the loss": {
        "stage__timesteps__kind": "speed",
        "stage__timesteps__weighting": "min-snr",
    },
    "timesteps by the loss": {
        "stage__timesteps__kind": "loss-second-moment",
        "stage__timesteps__bins": 2,
        "stage__timesteps__history": 1,
    },
    "all": {
        **STRUCTURE,
        **GUIDED,
        "stage__structure__action": "diversify",
        "stage__timesteps__bins": 2,
        "stage__timesteps__history": 2,
    },
}
STEPS = 6
# Columns of metrics.jsonl that are not about time.
PREFIXES = ("train/", "stage/")


def figures(folder: Path, kind: str, changes: dict[str, Any], accumulate: int) -> list[Any]:
    """The figures of each step of a run in fp32 with small steps, so that rounding stays small."""
    folder.mkdir()
    recipe = write_recipe(
        folder / "r.toml",
        kind,
        **{"train__steps": STEPS, "train__samples": 0, "train__lr": 1e-5, **changes},
        train__accumulate=accumulate,
    )
    result = run_cli("train", recipe, cwd=folder)
    assert result.code == 0, result.stderr
    run = folder / "runs" / "r"
    rows = [row for row in read_rows(run) if "train/loss" in row]
    events = read_rows(run, "events") if (run / "events.jsonl").exists() else []
    kept = [{k: v for k, v in row.items() if k.startswith(PREFIXES)} for row in rows]
    return [*kept, [(event["step"], event["reason"]) for event in events]]


@pytest.mark.parametrize("mechanisms", MECHANISMS)
def test_accumulation_does_not_change_the_loss_of_a_step(mechanisms: str, tmp_path: Path) -> None:
    kind = "sr" if mechanisms == "structure" else "t2a"
    whole, *others = (
        figures(tmp_path / str(n), kind, MECHANISMS[mechanisms], n) for n in (1, 2, 4)
    )
    for split in others:
        assert split[0]["train/loss"] == pytest.approx(whole[0]["train/loss"], rel=1e-5)
        assert split[-1] == whole[-1], "the same events"
        for ours, theirs in zip(split[:-1], whole[:-1], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
