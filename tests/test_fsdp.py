"""FSDP2 on the CPU: two processes that share out the weights train what one process trains."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, losses_of, read_rows, run_cli, two_processes, write_recipe
from helpers.resume import facts

from stagecli.runs import checkpoint
from stagecli.train import trainer

Cli = Callable[..., Result]
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "CUDA_VISIBLE_DEVICES": ""}
MECHANISMS: dict[str, Any] = {
    "model__depth": 4,
    "stage__regime__every": 2,
    "stage__regime__clips": 5,
    "stage__timesteps__kind": "progress",
    "stage__guidance__schedule": "constant",
    "stage__guidance__hidden": 16,
    "stage__guidance__conflict_every": 2,
    "stage__structure__action": "align",
    "stage__structure__when": "always",
}


def events_of(run: Path) -> list[tuple[int, str, str]]:
    """(step, mechanism, state) of every transition of a mechanism."""
    rows = read_rows(run, "events") if (run / "events.jsonl").exists() else []
    kept = [row for row in rows if row["mechanism"] not in ("trainer", "data")]
    return [(row["step"], row["mechanism"], row["to"]) for row in kept]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/plain and runs/all of one process, with measurements, and their recipes."""
    folder = tmp_path_factory.mktemp("fsdp")
    measured = {
        "train__validate_every": 3,
        "train__validate_clips": 5,
        "train__sample_every": 5,
        "train__evaluate_every": 5,
        "train__evaluate_clips": 5,
    }
    write_recipe(folder / "plain.toml", train__accumulate=2, **measured)
    write_recipe(folder / "all.toml", train__validate_every=3, **MECHANISMS)
    for name in ("plain", "all"):
        result = run_cli("train", folder / f"{name}.toml", cwd=folder)
        assert result.code == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def shared(folder: Path) -> Path:
    """shared/runs/plain and shared/runs/all of two processes; share0 and share1: what they hold."""
    path = folder / "shared"
    path.mkdir()
    finish = trainer.Outputs.finish

    def weighing(self: Any) -> str:
        state = self.state
        moments = state.optimizer.state_dict()["state"].values()
        tensors = [
            *state.network.parameters(),
            *state.ema.weights.values(),
            *(value for values in moments for value in values.values() if value.ndim),
        ]
        own = sum(tensor.to_local().numel() for tensor in tensors)
        share = own / sum(tensor.numel() for tensor in tensors)
        (path / f"share{os.environ['RANK']}").write_text(str(share))
        return str(finish(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Outputs, "finish", weighing)
        for name in ("plain", "all"):
            errors = two_processes("train", folder / f"{name}.toml", cwd=path, env=FSDP)
            assert "finished" in errors[0] and errors[1] == ""
    return path


@pytest.mark.parametrize("name", ["plain", "all"])
def test_two_processes_train_what_one_trains(name: str, folder: Path, shared: Path) -> None:
    ours = shared / "runs" / name
    theirs = folder / "runs" / name
    assert losses_of(ours) == pytest.approx(losses_of(theirs), rel=1e-4)
    assert events_of(ours) == events_of(theirs)
    for figure in ("valid/loss", *(["eval/kad"] if name == "plain" else [])):
        values, expected = (
            [row[figure] for row in read_rows(run) if figure in row] for run in (ours, theirs)
        )
        assert values == pytest.approx(expected, rel=1e-2) and len(values) >= 2


def test_each_process_holds_a_part_and_a_checkpoint_the_whole(folder: Path, shared: Path) -> None:
    """The weights, AdamW's moments and the EMA weights of a process are half of them."""
    shares = [float((shared / f"share{rank}").read_text()) for rank in range(2)]
    assert shares == pytest.approx([0.5, 0.5], abs=0.05) and sum(shares) == pytest.approx(1)
    weights = checkpoint.load_weights(shared / "runs/plain/checkpoints/step_00000010", "model")
    alone = checkpoint.load_weights(folder / "runs/plain/checkpoints/step_00000010", "model")
    assert {n: w.shape for n, w in weights.items()} == {n: w.shape for n, w in alone.items()}


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every process behave after a step as if it had got a signal."""
    after_step = trainer.Outputs.after_step

    def stopping(self: Any, lr: float) -> None:
        after_step(self, lr)
        if self.state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer.Outputs, "after_step", stopping)


def test_a_checkpoint_moves_between_one_process_and_two_with_parts_or_whole_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 1 to 3 by FSDP, 4 and 5 alone, 6 and 7 by DDP, and the rest by FSDP again."""
    recipe = folder / "all.toml"
    run = tmp_path / "runs/all"
    engines: tuple[tuple[int, dict[str, str] | None], ...] = ((3, FSDP), (5, None), (7, {}))
    for stop, env in engines:
        with monkeypatch.context() as patch:
            interrupted_at(stop, patch)
            if env is None:
                assert run_cli("train", recipe, cwd=tmp_path).code == 130
            else:
                two_processes("train", recipe, cwd=tmp_path, codes=(130, 130), env=env)
        latest = (run / "checkpoints/latest").read_text().strip()
        assert latest == f"step_{stop:08d}"
    two_processes("train", recipe, cwd=tmp_path, env=FSDP)
    assert losses_of(run) == pytest.approx(losses_of(folder / "runs/all"), rel=1e-4)
    assert events_of(run) == events_of(folder / "runs/all")
    for file in ("model", "ema"):
        ours, theirs = (
            checkpoint.load_weights(path / "checkpoints/step_00000010", file)
            for path in (run, folder / "runs/all")
        )
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-2, atol=1e-4)


def test_a_killed_process_ends_the_other_and_the_resume_is_exact(
    folder: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer.flow_loss
    calls = 0

    def killing(*args: Any, **keys: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 13 and os.environ["RANK"] == "1":  # in step 7: two micro-batches a step
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **keys)

    recipe = folder / "plain.toml"
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "flow_loss", killing)
        began = time.monotonic()
        errors = two_processes("train", recipe, cwd=tmp_path, codes=(1, -signal.SIGKILL), env=FSDP)
    assert time.monotonic() - began < 60
    assert errors[0].count("error: ") == 1 and "Traceback" not in errors[0]
    assert "another process of this run has ended" in errors[0]
    assert "the newest checkpoint is of step 4" in errors[0]
    two_processes("train", recipe, cwd=tmp_path, env=FSDP)
    resumed = facts(tmp_path / "runs/plain")
    assert resumed == facts(shared / "runs/plain")


def test_a_step_that_is_not_finite_is_saved_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer.flow_loss
    calls = 0

    def failing(*args: Any, **keys: Any) -> Any:
        nonlocal calls
        calls += 1
        result = original(*args, **keys)
        if calls == 14 and os.environ["RANK"] == "1":
            result.loss_B = result.loss_B * float("nan")
        return result

    monkeypatch.setattr(trainer, "flow_loss", failing)
    recipe = write_recipe(tmp_path / "r.toml", train__accumulate=2)
    errors = two_processes("train", recipe, cwd=tmp_path, codes=(1, 1), env=FSDP)
    assert "the loss is not finite at step 7" in errors[0]
    assert (tmp_path / "runs/r/checkpoints/latest").read_text().strip() == "step_00000006"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "train.activation_checkpointing=true"),
    ],
)
def test_settings_that_are_not_supported_are_refused_before_work(
    changes: dict[str, str], named: str, cli: Cli, tmp_path: Path
) -> None:
    launched = {"WORLD_SIZE": "2", "RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    result = cli("train", write_recipe(tmp_path / "r.toml"), env={**launched, **FSDP, **changes})
    assert result.code == 2 and result.stderr.count("error: ") == 1
    assert named in result.stderr and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("size", "offered"), [(10, "8 or 12"), (2, "4")])
def test_a_batch_that_cannot_be_split_is_refused_before_work(
    size: int, offered: str, cli: Cli, tmp_path: Path
) -> None:
    launched = {"WORLD_SIZE": "2", "RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    recipe = write_recipe(tmp_path / "r.toml", train__batch_size=size, train__accumulate=2)
    result = cli("train", recipe, env=launched)
    assert result.code == 2
    assert f"{size} is not divisible by 2 processes x accumulate 2" in result.stderr
    assert f"choose train.batch_size {offered}, or" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_counts_what_one_process_keeps(cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml", model__width=256, train__precision="fp32")
    env = {"WORLD_SIZE": "4", "RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    memory = []
    engines: tuple[dict[str, str], ...] = ({}, FSDP)
    for more in engines:
        plan = cli("train", recipe, "--dry-run", env={**env, **more}).stdout
        line = next(line for line in plan.splitlines() if line.startswith("memory"))
        memory.append(int(line.split()[2]))
    assert memory[0] > 2.5 * memory[1] > 0
