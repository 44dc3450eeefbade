"""Resume is exact: killed anywhere, the same command gives the same losses and weights."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    Result,
    die_at,
    forked,
    losses_of,
    read_rows,
    run_cli,
    two_processes,
    write_recipe,
)
from helpers.resume import STEPS, at_row, attempts, facts, killed, same, weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/t2a and runs/sr without interruption, with validation, evaluation and samples."""
    folder = tmp_path_factory.mktemp("whole")
    for kind in ("t2a", "sr"):
        # In t2a the evaluation chooses the best checkpoint, in sr the validation loss.
        evaluation = {
            "train__evaluate_every": 5,
            "train__best": "eval/kad" if kind == "t2a" else "valid/loss",
        }
        measured = {
            "train__validate_every": 3,
            "train__sample_every": 5,
            "train__evaluate_clips": 5,
            **evaluation,
        }
        recipe = write_recipe(folder / f"{kind}.toml", kind, **measured)
        assert run_cli("train", recipe, cwd=folder).code == 0
    return folder


@pytest.fixture
def again(whole: Path, tmp_path: Path) -> Callable[..., Result]:
    """The same command as the uninterrupted run's, in a folder of its own."""
    return lambda kind, *more: run_cli("train", whole / f"{kind}.toml", *more, cwd=tmp_path)


@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_kill_9_from_outside_at_a_random_step(
    kind: str, whole: Path, again: Any, tmp_path: Path
) -> None:
    step = random.SystemRandom().randrange(1, STEPS)
    rows = tmp_path / "runs" / kind / "metrics.jsonl"

    def slowly() -> None:
        from stagecli.runs.directory import Run

        append = Run.append

        def slow(
            run: Any, stream: str, row: Any
        ) -> Any:  # leave the other process time to see the step
            result = append(run, stream, row)
            time.sleep(0.03)
            return result

        Run.append = slow  # type: ignore[method-assign]
        again(kind)

    process = forked(slowly)
    while process.is_alive() and (not rows.exists() or f'"step": {step},' not in rows.read_text()):
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(600)
    assert process.exitcode == -signal.SIGKILL, f"step {step}"
    result = again(kind)
    assert result.code == 0, f"step {step}: {result.stderr}"
    assert len(attempts(tmp_path / "runs" / kind)) == 2
    same(tmp_path / "runs" / kind, whole / "runs" / kind)


@pytest.mark.parametrize("kind", ["t2a", "sr"])
@pytest.mark.parametrize(("step", "resumed"), [(1, 0), (7, 4), (9, 8)])
def test_kill_9_at_a_step(
    kind: str, step: int, resumed: int, *, whole: Path, again: Any, tmp_path: Path
) -> None:
    killed(tmp_path, "train", whole / f"{kind}.toml", arrange=at_row(step))
    assert again(kind).code == 0
    assert attempts(tmp_path / "runs" / kind) == [0, resumed]
    same(tmp_path / "runs" / kind, whole / "runs" / kind)


def test_two_kills_and_other_loader_workers(whole: Path, again: Any, tmp_path: Path) -> None:
    killed(tmp_path, "train", whole / "t2a.toml", arrange=at_row(6))
    killed(tmp_path, "train", whole / "t2a.toml", "--set", "data.workers=2", arrange=at_row(10))
    assert again("t2a", "--set", "data.workers=1").code == 0
    assert attempts(tmp_path / "runs" / "t2a") == [0, 4, 8]
    same(tmp_path / "runs" / "t2a", whole / "runs" / "t2a")


def test_sr_with_loader_workers_trains_the_same(whole: Path, again: Any, tmp_path: Path) -> None:
    assert again("sr", "--set", "data.workers=2").code == 0
    same(tmp_path / "runs" / "sr", whole / "runs" / "sr")


@pytest.mark.parametrize(
    "moment", ["before the weights", "before the rename", "before the pointer"]
)
def test_kill_9_while_a_checkpoint_is_written(
    moment: str, whole: Path, again: Any, tmp_path: Path
) -> None:
    """Step 8 is being written when the process dies: its checkpoint counts whole or not at all."""

    def arrange() -> None:
        from stagecli.runs import checkpoint

        if moment == "before the weights":
            die_at(checkpoint, "save_file", lambda tensors, path: "step_00000008" in str(path))
        elif moment == "before the rename":
            die_at(
                checkpoint.os, "replace", lambda a, b: str(b).endswith("checkpoints/step_00000008")
            )
        else:
            die_at(
                checkpoint, "write_atomic", lambda path, text: path.name == "latest" and "8" in text
            )

    killed(tmp_path, "train", whole / "t2a.toml", arrange=arrange)
    result = again("t2a")
    assert result.code == 0, result.stderr
    whole_at = 8 if moment == "before the pointer" else 4
    assert attempts(tmp_path / "runs" / "t2a") == [0, whole_at]
    same(tmp_path / "runs" / "t2a", whole / "runs" / "t2a")
    left = {p.name for p in (tmp_path / "runs" / "t2a" / "checkpoints").iterdir()}
    assert not {name for name in left if name.startswith(".")}, "the killed process left something"


def test_a_torn_row_is_ended_and_damages_no_other(whole: Path, again: Any, tmp_path: Path) -> None:
    def half(run: Any, stream: str, row: Any) -> None:
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 7, "train/lo')

    def arrange() -> None:
        from stagecli.runs.directory import Run

        die_at(
            Run, "append", lambda run, stream, row: stream == "metrics" and row["step"] == 7, half
        )

    killed(tmp_path, "train", whole / "t2a.toml", arrange=arrange)
    assert again("t2a").code == 0
    same(tmp_path / "runs" / "t2a", whole / "runs" / "t2a")
    shown = run_cli("inspect-regime", "runs/t2a", "--json", cwd=tmp_path)
    assert shown.code == 0
    assert json.loads(shown.stdout)["step"] == STEPS


@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_rows_of_a_log_window_that_a_checkpoint_cuts(kind: str, tmp_path: Path) -> None:
    """Rows every 3 steps, checkpoints every 4: a checkpoint carries the sums since the last row."""
    recipe = write_recipe(tmp_path / f"{kind}.toml", kind, train__log_every=3)
    assert run_cli("train", recipe, "--name", "whole", cwd=tmp_path).code == 0
    killed(
        tmp_path, "train", recipe, "--name", "cut", arrange=at_row(6)
    )  # has step 4 and the row of step 3
    assert run_cli("train", recipe, "--name", "cut", cwd=tmp_path).code == 0
    assert attempts(tmp_path / "runs" / "cut") == [0, 4]
    same(tmp_path / "runs" / "cut", tmp_path / "runs" / "whole")


def test_sigterm_to_the_whole_process_group_saves_and_resumes(tmp_path: Path) -> None:
    """As `timeout` and schedulers send it: loader processes get it too."""
    recipe = write_recipe(
        tmp_path / "g.toml", train__steps=100000, train__samples=0, data__workers=2
    )
    command = [sys.executable, "-m", "stagecli", "train", str(recipe)]
    process = subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "runs" / "g" / "metrics.jsonl"
    try:
        for _ in range(600):
            if metrics.exists() and metrics.read_text().count("\n") >= 2:
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert "resume with" in stderr
    assert list((tmp_path / "runs" / "g" / "checkpoints").glob("step_*"))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_and_saves_it(
    sent: signal.Signals, whole: Path, again: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagecli.terminal.views import PlainView

    row = PlainView.row
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    def interrupting(view: PlainView, values: dict[str, Any]) -> None:
        row(view, values)
        if values["step"] == 6 and "train/loss" in values:
            os.kill(os.getpid(), sent)

    with monkeypatch.context() as patch:
        patch.setattr(PlainView, "row", interrupting)
        result = again("t2a", "--restart")
    run = tmp_path / "runs" / "t2a"
    assert result.code == 130
    assert (
        f"resume with:  stagecli train {whole / 't2a.toml'}\n" in result.stderr
    )  # without --restart
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (run / "checkpoints" / "latest").read_text().strip() == "step_00000006"
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert again("t2a").code == 0
    assert attempts(run) == [0, 6]
    # The checkpoint of step 6 comes with a validation loss that the uninterrupted run has anyway.
    same(run, whole / "runs" / "t2a")


def test_ctrl_c_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while data are prepared: exit 130, no traceback; the same command trains."""
    from stagecli.terminal.views import PlainView

    def interrupting(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    recipe = write_recipe(tmp_path / "t2a.toml")
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job ignores it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(PlainView, "progress", interrupting)
            result = run_cli("train", recipe, cwd=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.code == 130
    assert "Traceback" not in result.stderr
    assert run_cli("train", recipe, cwd=tmp_path).code == 0


def test_a_changed_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "t2a.toml", train__steps=4)
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    before = weights(tmp_path / "runs" / "t2a", 4)
    changed = ("train", recipe, "--set", "train.lr=2e-3", "--set", "model.depth=1")
    refused = run_cli(*changed, cwd=tmp_path)
    assert refused.code == 2
    for word in ("train.lr", "0.001 in the run, 0.002 now", "model.depth", "--name", "--restart"):
        assert word in refused.stderr
    assert weights(tmp_path / "runs" / "t2a", 4) == before
    # Keys that have no effect on training may change.
    assert run_cli("train", recipe, "--set", "train.log_every=2", cwd=tmp_path).code == 0
    assert run_cli(*changed, "--restart", cwd=tmp_path).code == 0
    assert weights(tmp_path / "runs" / "t2a.old-1", 4) == before
    assert attempts(tmp_path / "runs" / "t2a") == [0]
    assert weights(tmp_path / "runs" / "t2a", 4) != before


def test_trainer_state_of_another_version_is_refused(tmp_path: Path) -> None:
    """The run itself stays as it is: it can still be inspected, sampled and evaluated."""
    recipe = write_recipe(tmp_path / "t2a.toml", train__steps=4)
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    run = tmp_path / "runs" / "t2a"
    state = run / "checkpoints" / "step_00000004" / "state.json"
    state.write_text(state.read_text().replace('"log_window"', '"interval"'))
    (state.parent / "sha256sums.txt").unlink()  # which that version did not write
    before = (run / "run.json").read_text()
    refused = run_cli("train", recipe, cwd=tmp_path)
    assert refused.code == 2
    assert "another version" in refused.stderr and "--name" in refused.stderr
    assert json.loads((run / "run.json").read_text()) == json.loads(before)
    assert run_cli("inspect-regime", "runs/t2a", cwd=tmp_path).code == 0
    assert run_cli("sample", "runs/t2a", "-p", "a bell", cwd=tmp_path).code == 0


def test_more_steps_continue_a_finished_run(tmp_path: Path) -> None:
    """With a schedule independent of the number of steps, extending equals a longer run."""
    recipe = write_recipe(tmp_path / "t2a.toml", train__schedule="constant", train__steps=6)
    longer = ("train", recipe, "--set", "train.steps=10")
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    assert run_cli(*longer, cwd=tmp_path).code == 0
    assert attempts(tmp_path / "runs" / "t2a") == [0, 6]
    assert json.loads((tmp_path / "runs" / "t2a" / "run.json").read_text())["steps"] == 10
    assert run_cli(*longer, "--name", "whole", cwd=tmp_path).code == 0
    assert weights(tmp_path / "runs" / "t2a") == weights(tmp_path / "runs" / "whole")
    extended, asked = (facts(tmp_path / "runs" / name) for name in ("t2a", "whole"))
    assert {k: v for k, v in extended.items() if k[1].startswith("train/")} == {
        k: v for k, v in asked.items() if k[1].startswith("train/")
    }


@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_accumulation_trains_the_same_batches(
    kind: str, whole: Path, again: Any, tmp_path: Path
) -> None:
    """Only the order of summation differs: equal to 1e-4, and not to the bit."""
    assert again(kind, "--set", "train.accumulate=2").code == 0
    assert losses_of(tmp_path / "runs" / kind) == pytest.approx(
        losses_of(whole / "runs" / kind), rel=1e-4
    )


@pytest.mark.parametrize(("kind", "accumulate"), [("t2a", 1), ("sr", 2)])
def test_two_processes_train_the_same_batches(
    kind: str, accumulate: int, whole: Path, again: Any, tmp_path: Path
) -> None:
    """Two processes over gloo, as a launcher starts them; of 5 validation clips, 3 and 2."""
    sets = ("--set", f"train.accumulate={accumulate}", "--set", "train.validate_clips=5")
    errors = two_processes("train", whole / f"{kind}.toml", *sets, cwd=tmp_path)
    assert "finished" in errors[0]
    assert errors[1] == "", "only the main process writes to the terminal"
    run = tmp_path / "runs" / kind
    assert losses_of(run) == pytest.approx(losses_of(whole / "runs" / kind), rel=1e-4)
    alone = run_cli("train", whole / f"{kind}.toml", *sets, "--name", "alone", cwd=tmp_path)
    assert alone.code == 0
    for name in ("valid/loss", "eval/kad" if kind == "t2a" else "eval/lsd"):  # shared out too
        shared, expected = (
            [r[name] for r in read_rows(p) if name in r] for p in (run, run.parent / "alone")
        )
        assert len(shared) >= 2
        assert shared == pytest.approx(expected, rel=1e-2)
