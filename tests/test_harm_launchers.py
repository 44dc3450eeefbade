"""Launchers, and terminals that go away: as many processes as asked for, one error, no orphans."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, forked, losses_of, run_cli, two_processes, write_recipe

from stagecli import launcher
from stagecli.cli import main
from stagecli.train import processes, trainer

Cli = Callable[..., Result]


# -- the environment -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "left_over",
    [{"RANK": "3"}, {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}, {"LOCAL_RANK": "1"}],
)
def test_a_rank_in_the_environment_without_a_launcher_silences_no_error(
    left_over: dict[str, str], cli: Cli
) -> None:
    for command in (("train", "absent.toml"), ("recipes", "check", "absent.toml")):
        result = cli(*command, env=left_over)
        assert result.code in (1, 2) and "absent.toml" in result.stderr


def test_a_rank_alone_trains_and_reports(tmp_path: Path, cli: Cli) -> None:
    result = cli("train", write_recipe(tmp_path / "r.toml", train__steps=2), env={"RANK": "3"})
    assert result.code == 0 and "finished" in result.stderr


def test_processes_that_nobody_started_are_refused(tmp_path: Path, cli: Cli) -> None:
    env = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}
    result = cli("train", write_recipe(tmp_path / "r.toml"), env=env)
    assert result.code == 2 and result.stderr.count("error: ") == 1
    assert "8 processes" in result.stderr and "unset RANK" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_accelerate_launch_that_starts_fewer_than_asked_for_is_refused(
    tmp_path: Path, cli: Cli
) -> None:
    """`accelerate launch --num_processes 2 --cpu` sets an address and starts one process.

    With 1 it passes on an address of the shell, which looks the same: both ways out are named.
    """
    env = {
        "ACCELERATE_USE_CPU": "True",
        "ACCELERATE_MIXED_PRECISION": "no",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    result = cli("train", write_recipe(tmp_path / "r.toml"), env=env)
    assert result.code == 2 and "torchrun --nproc_per_node" in result.stderr
    assert "for one process unset MASTER_ADDR" in result.stderr
    assert not (tmp_path / "runs").exists()
    alone = {name: value for name, value in env.items() if not name.startswith("MASTER")}
    recipe = write_recipe(tmp_path / "r.toml", train__steps=2)
    assert cli("train", recipe, env=alone).code == 0


def test_fewer_processes_than_asked_for_are_refused(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = processes.Accelerator
    monkeypatch.setattr(processes, "Accelerator", lambda cpu, **keys: whole(cpu=False, **keys))
    env = {"WORLD_SIZE": "2", "RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    result = cli("train", write_recipe(tmp_path / "r.toml"), env=env)
    assert result.code == 2 and "2 processes were asked for, and 1 would train" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_torchrun_without_a_gpu_trains_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not told to use the CPU, as `torchrun --nproc_per_node 2` starts them."""
    recipe = write_recipe(tmp_path / "r.toml", train__steps=4)
    errors = two_processes("train", recipe, cwd=tmp_path, env={"ACCELERATE_USE_CPU": "false"})
    assert "finished" in errors[0] and errors[1] == ""
    assert len(losses_of(tmp_path / "runs/r")) == 4
    assert run_cli("train", recipe, "--name", "alone", cwd=tmp_path).code == 0
    assert losses_of(tmp_path / "runs/r") == pytest.approx(losses_of(tmp_path / "runs/alone"), 1e-4)


@pytest.mark.parametrize(
    ("parent", "expected"),
    [
        (
            "python /opt/bin/accelerate launch --num_processes 2 -m stagecli train a.toml",
            "accelerate launch --num_processes 2 -m stagecli train a.toml",
        ),
        (
            "python3 /opt/bin/torchrun --nproc_per_node 2 -m stagecli train a.toml",
            "torchrun --nproc_per_node 2 -m stagecli train a.toml",
        ),
        (
            "python -m torch.distributed.run --nproc_per_node=2 -m stagecli train a.toml",
            "python -m torch.distributed.run --nproc_per_node=2 -m stagecli train a.toml",
        ),
        ("slurmstepd: [1.0]", "stagecli train a.toml"),
    ],
)
def test_the_command_to_resume_repeats_the_launcher(
    parent: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "PARENT_COMMAND", parent.split(" "))
    monkeypatch.setattr("sys.argv", ["stagecli", "train", "a.toml"])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert launcher.command(["train", "a.toml"]) == expected
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert launcher.command(["train", "a b.toml"]) == "stagecli train 'a b.toml'"


# -- a launcher or another process that ends -------------------------------------------------------


def test_a_process_whose_launcher_is_gone_saves_and_stops(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "PARENT", os.getppid())
    after_step = trainer.Outputs.after_step

    def orphaned(self: Any, lr: float) -> None:
        after_step(self, lr)
        if self.state.step == 6:
            launcher.PARENT = -1

    recipe = write_recipe(tmp_path / "r.toml")
    monkeypatch.setattr(trainer.Outputs, "after_step", orphaned)
    assert cli("train", recipe, "--name", "alone").code == 0, "nobody launched this one"
    monkeypatch.setattr(launcher, "PARENT", os.getppid())
    result = cli("train", recipe, env={"TORCHELASTIC_RUN_ID": "none"})
    assert result.code == 130
    latest = tmp_path / "runs/r/checkpoints/latest"
    assert latest.read_text().strip() == "step_00000006"


@pytest.mark.parametrize("dying", [0, 1])
def test_a_killed_process_ends_the_others_in_one_error(
    dying: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer.flow_loss
    calls = 0

    def killing(*args: Any, **keys: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7 and os.environ["RANK"] == str(dying):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **keys)

    monkeypatch.setattr(trainer, "flow_loss", killing)
    recipe = write_recipe(tmp_path / "r.toml", train__checkpoint_every=100)
    codes = [1, 1]
    codes[dying] = -signal.SIGKILL
    errors = two_processes("train", recipe, cwd=tmp_path, codes=codes)
    survivor = errors[1 - dying]
    assert survivor.count("error: ") == 1 and "Traceback" not in survivor
    assert "another process of this run has ended" in survivor
    saved = [path.name for path in (tmp_path / "runs/r/checkpoints").glob("step_*")]
    assert saved == ([] if dying == 0 else ["step_00000006"])


# -- terminals -------------------------------------------------------------------------------------


class Broken(io.StringIO):
    """A pipe whose reader has gone after the first line."""

    def write(self, text: str) -> int:
        if "\n" in self.getvalue():
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


def test_a_broken_pipe_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`stagecli train R 2>&1 | head -1`."""
    write_recipe(tmp_path / "r.toml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stagecli", "train", "r.toml"])
    monkeypatch.setattr("sys.stderr", Broken())
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    info = json.loads((tmp_path / "runs/r/run.json").read_text())
    assert info["status"] == "finished"


@pytest.mark.parametrize("closed", [(2,), (1, 2), (0, 1, 2)])
def test_closed_streams_do_not_stop_training_and_nothing_is_written_into_files(
    closed: tuple[int, ...], tmp_path: Path
) -> None:
    """`stagecli train R 2>&-`: the next file opened would be number 2, where libraries write."""
    recipe = write_recipe(tmp_path / "r.toml")

    def work() -> None:
        for descriptor in closed:
            os.close(descriptor)
        os.chdir(tmp_path)
        import sys

        sys.argv = ["stagecli", "train", str(recipe)]
        sys.stderr = None  # type: ignore[assignment]
        if 1 in closed:
            sys.stdout = None  # type: ignore[assignment]
        try:
            main()
        except SystemExit as end:
            os._exit(int(end.code or 0))
        os._exit(0)

    process = forked(work)
    process.join(600)
    assert process.exitcode == 0
    assert json.loads((tmp_path / "runs/r/run.json").read_text())["status"] == "finished"
    assert len(losses_of(tmp_path / "runs/r")) == 10
