"""`train.compile`: what it refuses, how old values read, and what the graphs of `step` are.

There is no GPU here: `record` returns what it would have recorded, so that what goes in and comes
out, and when it is recorded anew, can be tested.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, losses_of, read_rows, run_cli, write_recipe

from stagecli.condition.text import PAD
from stagecli.errors import StageError
from stagecli.model.dit import DiT
from stagecli.recipe.history import update_old_keys
from stagecli.recipe.load import load_recipe
from stagecli.train import graph
from stagecli.train.graph import GraphedLoss, check_compile, pad_text

Cli = Callable[..., Result]
CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Makes `step` run on a CPU; the hidden states of each recording."""
    recordings: list[tuple[int, ...]] = []

    def record(loss: Any, tensors: Any) -> Any:
        recordings.append(loss.hidden)
        return loss

    monkeypatch.setattr(graph, "record", record)
    monkeypatch.setattr("stagecli.train.processes.check_compile", lambda *_: None)
    monkeypatch.setattr(DiT, "compile_blocks", lambda _: None)
    return recordings


# -- recipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [("true", "blocks"), ("false", "none")])
def test_the_old_values_are_refused_with_the_new_ones(old: str, new: str) -> None:
    with pytest.raises(StageError) as error:
        load_recipe("quickstart", [f"train.compile={old}"])
    assert f'train.compile: this is now "{new}"' in str(error.value.problems[0])


@pytest.mark.parametrize(("old", "new"), [(True, "blocks"), (False, "none"), ("step", "step")])
def test_a_finished_run_reads_its_old_value(old: object, new: str) -> None:
    tree: dict[str, Any] = {"train": {"compile": old}}
    update_old_keys(tree)
    assert tree == {"train": {"compile": new}}


def test_step_accumulates_nothing() -> None:
    with pytest.raises(StageError) as error:
        load_recipe("quickstart", ["train.compile=step", "train.accumulate=2"])
    assert "accumulate = 1" in str(error.value.problems)


def test_a_machine_that_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each refusal says why, and a mode that works there."""
    step = load_recipe("quickstart", ["train.compile=step"])
    blocks = load_recipe("quickstart", ["train.compile=blocks"])
    check_compile(load_recipe("quickstart"), CPU, 4)
    check_compile(step, CUDA, 1)
    check_compile(blocks, CPU, 4)
    for recipe, device, count, words in (
        (step, CPU, 1, ("needs a GPU", "train.compile=blocks")),
        (step, CUDA, 2, ("is for one process, and 2 train", "train.compile=blocks")),
    ):
        with pytest.raises(StageError) as error:
            check_compile(recipe, device, count)
        assert words[0] in str(error.value) and words[1] in str(error.value.hint)
    monkeypatch.setenv("PATH", "")
    for device in (CPU, CUDA):
        with pytest.raises(StageError, match="needs a compiler") as error:
            check_compile(blocks, device, 1)
        assert "train.compile=none" in str(error.value.hint)


def test_step_on_a_cpu_is_refused_before_any_work(cli: Cli, tmp_path: Path) -> None:
    result = cli("train", write_recipe(tmp_path / "r.toml", train__compile="step"))
    assert result.code == 2
    assert "needs a GPU with CUDA" in result.stderr
    assert not (tmp_path / "runs").exists()


# -- the graphs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_a_recorded_step_trains_the_same(
    kind: str, recorded: list[tuple[int, ...]], tmp_path: Path
) -> None:
    """Longer padding moves the losses of t2a in their last digits. One recording for all steps."""
    for mode in ("none", "step"):
        recipe = write_recipe(tmp_path / f"{mode}.toml", kind, train__compile=mode)
        assert run_cli("train", recipe, cwd=tmp_path).code == 0
    losses = [losses_of(tmp_path / "runs" / mode) for mode in ("none", "step")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert recorded == [()]


def test_nothing_is_recorded_anew_while_r_and_a_weight_move(
    recorded: list[tuple[int, ...]], tmp_path: Path
) -> None:
    """Once with guidance and once after its end, though r and lambda move at every probe."""
    stages = {
        "stage__regime__every": 2,
        "stage__regime__clips": 4,
        "stage__regime__source": "linear",
        "stage__guidance__schedule": "regime",
        "stage__guidance__fade": 0.1,
        "stage__guidance__end": 0.6,
        "stage__guidance__hidden": 16,
        "stage__guidance__conflict_every": 3,
        "stage__timesteps__kind": "progress",
    }
    recipe = write_recipe(tmp_path / "r.toml", train__compile="step", train__steps=20, **stages)
    result = run_cli("train", recipe, cwd=tmp_path)
    assert result.code == 0, result.stderr
    rows = read_rows(tmp_path / "runs" / "r")
    weights = {row["stage/guidance/lambda"] for row in rows if "stage/guidance/lambda" in row}
    assert len(weights) > 3 and 0 in weights
    assert len(recorded) == 2 and recorded[0] and recorded[1] == ()
    assert any("stage/guidance/gradient_cosine" in row for row in rows)


def test_texts_are_padded_to_one_length() -> None:
    batch = {
        "text_ids": torch.tensor([[1, 5]]),
        "text": torch.ones(1, 2, 3),
        "text_mask": torch.ones(1, 2, dtype=torch.bool),
        "x0": torch.zeros(1, 4, 2),
    }
    padded = pad_text(batch, 4)
    assert padded["text_ids"].tolist() == [[1, 5, PAD, PAD]]
    assert padded["text"].shape == (1, 4, 3) and float(padded["text"].sum()) == 6
    assert padded["text_mask"].tolist() == [[True, True, False, False]]
    assert padded["x0"] is batch["x0"]


def test_other_shapes_are_recorded_anew(recorded: list[tuple[int, ...]]) -> None:
    class Network(torch.nn.Module):
        def forward(self, x: Any, t: Any, batch: Any, hidden: Any) -> Any:
            from stagecli.model.dit import Output

            return Output(x * 0, {k: x for k in hidden})

    loss = GraphedLoss(Network(), 8)
    for size, hidden in ((2, ()), (2, ()), (3, ()), (3, (1,)), (3, (1,))):
        batch = {"x0": torch.zeros(size, 4, 2), "noise": torch.ones(size, 4, 2)}
        result = loss({**batch, "index": torch.arange(size)}, torch.full((size,), 0.5), hidden)
        assert result.loss_B.tolist() == [1.0] * size
        assert tuple(result.hidden) == hidden
    assert recorded == [(), (), (1,)]
