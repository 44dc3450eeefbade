"""Whatever ends training: the last whole step is saved, and one error tells why."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
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
    tree,
    two_processes,
    write_recipe,
)
from helpers.resume import attempts, facts, killed, same

from stagecli.data import loader
from stagecli.train import shared_memory, trainer, validation

Cli = Callable[..., Result]
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/t2a, never interrupted: samples every 5 steps, validation every 3, of 10."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = write_recipe(
        folder / "t2a.toml", train__sample_every=5, train__validate_every=3, train__samples=3
    )
    assert run_cli("train", recipe, cwd=folder).code == 0
    return folder


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))


def one_error(stderr: str) -> None:
    """Assert that stderr has one error and no traceback."""
    assert stderr.count("error: ") == 1, stderr
    assert "Traceback" not in stderr


# -- errors in the loop --------------------------------------------------------------------------


def clips_of(folder: Path, data_dir: Path, count: int = 8) -> list[Path]:
    """Copies of some recordings, with a manifest beside them."""
    rows = [json.loads(line) for line in (data_dir / "fsdd/manifest.jsonl").open()][:count]
    paths = []
    lines = []
    for number, row in enumerate(rows):
        source = data_dir / "fsdd" / row["path"]
        paths.append(folder / f"{number}.flac")
        shutil.copy(source, paths[-1])
        split = "valid" if number < 2 else "train"
        lines.append(json.dumps({"path": paths[-1].name, "caption": "a word", "split": split}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return paths


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_file_that_vanishes_is_one_error_and_the_last_step_is_saved(
    workers: int, tmp_path: Path, cli: Cli, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = clips_of(tmp_path, data_dir)
    recipe = write_recipe(
        tmp_path / "r.toml",
        data__source="manifest",
        data__path="manifest.jsonl",
        data__clips=None,
        data__workers=workers,
        data__memory_mb=1,
        train__steps=40,
        train__checkpoint_every=100,
        train__samples=0,
    )
    monkeypatch.setattr("stagecli.data.memory.Memory.read", lambda self, clip: self.load(clip))
    after_step = trainer.Outputs.after_step

    def vanish(self: Any, lr: float) -> None:
        after_step(self, lr)
        if self.state.step == 3:
            for path in files[2:]:
                path.rename(path.with_suffix(".gone"))

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Outputs, "after_step", vanish)
        result = cli("train", recipe)
    assert result.code == 1
    one_error(result.stderr)
    assert "a training example cannot be loaded" in result.stderr and ".flac" in result.stderr
    (saved,) = checkpoints(tmp_path / "runs/r")
    assert saved >= 3 and f"saved step {saved}" in " ".join(result.stderr.split())
    event = read_rows(tmp_path / "runs/r", "events")[-1]
    assert event["to"] == "failed" and event["evidence"]["causes"]
    for path in files[2:]:
        path.with_suffix(".gone").rename(path)
    assert cli("train", recipe).code == 0
    assert attempts(tmp_path / "runs/r") == [0, saved]
    assert cli("train", recipe, "--name", "alone").code == 0
    assert losses_of(tmp_path / "runs/r") == losses_of(tmp_path / "runs/alone")


def test_a_loader_process_that_dies_is_one_error_and_the_last_step_is_saved(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "r.toml", data__workers=1, train__checkpoint_every=100)
    item = loader.Guarded.__getitem__

    def dying(self: Any, index: int) -> Any:
        if index == 33:
            os.kill(os.getpid(), signal.SIGKILL)
        return item(self, index)

    monkeypatch.setattr(loader.Guarded, "__getitem__", dying)
    result = cli("train", recipe)
    assert result.code == 1
    one_error(result.stderr)
    assert "a loader process has ended" in result.stderr and "data.workers=0" in result.stderr
    assert checkpoints(tmp_path / "runs/r") != []


def test_a_loader_that_hangs_is_an_error_in_the_end(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "PATIENCE", 1)
    monkeypatch.setattr(loader.Guarded, "__getitem__", lambda self, index: time.sleep(30))
    result = cli("train", write_recipe(tmp_path / "r.toml", data__workers=1))
    assert result.code == 1
    one_error(result.stderr)
    assert "no batch within 1 s" in result.stderr


@pytest.mark.parametrize(
    ("where", "saved"), [("flow_loss", [6]), ("learning_rate", [6]), ("stratified", [6])]
)
def test_any_exception_before_the_update_saves_the_step_before(
    where: str, saved: list[int], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on from there as if nothing had happened."""
    recipe = write_recipe(tmp_path / "r.toml", train__checkpoint_every=100)
    original = getattr(trainer, where)
    calls = 0

    def failing(*args: Any, **keys: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise RuntimeError("the device is lost") from OSError("cable")
        return original(*args, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, where, failing)
        result = cli("train", recipe)
    assert result.code == 1
    one_error(result.stderr)
    for words in ("failed at step 7", "RuntimeError: the device is lost", "OSError: cable"):
        assert words in result.stderr
    assert checkpoints(tmp_path / "runs/r") == saved
    assert json.loads((tmp_path / "runs/r/run.json").read_text())["status"] == "failed"
    assert cli("train", recipe).code == 0
    assert cli("train", recipe, "--name", "whole").code == 0
    same(tmp_path / "runs/r", tmp_path / "runs/whole")


def test_an_exception_in_the_update_saves_no_half_step(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "r.toml")
    observe = trainer.Stages.observe

    def failing(self: Any, signals: Any) -> Any:
        if signals.step == 7:
            raise RuntimeError("in the middle")
        return observe(self, signals)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Stages, "observe", failing)
        result = cli("train", recipe)
    assert result.code == 1
    one_error(result.stderr)
    assert "not saved" in result.stderr and "the newest checkpoint is of step 4" in result.stderr
    assert checkpoints(tmp_path / "runs/r") == [4]
    assert cli("train", recipe).code == 0
    assert cli("train", recipe, "--name", "whole").code == 0
    same(tmp_path / "runs/r", tmp_path / "runs/whole")


def test_an_error_while_validating_saves_the_step_and_the_resume_validates_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = trainer.Outputs.validate

    def failing(self: Any) -> None:
        if self.state.step == 6:
            raise FileNotFoundError("valid/0.wav")
        validate(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Outputs, "validate", failing)
        result = run_cli("train", whole / "t2a.toml", cwd=tmp_path)
    assert result.code == 1
    one_error(result.stderr)
    assert 6 in checkpoints(tmp_path / "runs/t2a")
    assert run_cli("train", whole / "t2a.toml", cwd=tmp_path).code == 0
    assert attempts(tmp_path / "runs/t2a") == [0, 6]
    same(tmp_path / "runs/t2a", whole / "runs/t2a")


# -- what is due is done when its record exists ----------------------------------------------------


@pytest.mark.parametrize("step", [4, 8, 10])
@pytest.mark.parametrize("file", [0, 2])
def test_a_kill_while_samples_are_drawn_draws_them_at_the_resume(
    step: int, file: int, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "t2a.toml", train__sample_every=4, train__samples=3)
    assert run_cli("train", recipe, "--name", "whole", cwd=tmp_path).code == 0

    def arrange() -> None:
        name = f"step_{step:08d}/{file:03d}.wav"
        die_at(validation, "write_listening", lambda path, *rest, **keys: str(path).endswith(name))

    killed(tmp_path, "train", recipe, arrange=arrange)
    result = run_cli("train", recipe, cwd=tmp_path)
    assert result.code == 0, result.stderr
    run = tmp_path / "runs/t2a"
    assert attempts(run) == [0, step]
    same(run, tmp_path / "runs/whole")
    assert tree(run / "samples") == tree(tmp_path / "runs/whole/samples")


def test_finished_only_with_all_samples(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "runs", tmp_path / "runs")
    shutil.copy(whole / "t2a.toml", tmp_path / "t2a.toml")
    (tmp_path / "runs/t2a/samples/step_00000010/samples.jsonl").unlink()
    assert run_cli("train", tmp_path / "t2a.toml", cwd=tmp_path).code == 0
    assert tree(tmp_path / "runs/t2a/samples") == tree(whole / "runs/t2a/samples")


def test_a_random_kill_loses_no_record(whole: Path, tmp_path: Path) -> None:
    """Killed after a random number of writes of any kind, again and again until it finishes."""
    draw = random.SystemRandom()
    run = tmp_path / "runs/t2a"
    for _ in range(4):
        count = draw.randrange(1, 40)

        def work(count: int = count) -> None:
            calls = 0

            def trace(event: str, args: tuple[Any, ...]) -> None:
                nonlocal calls
                inside = event == "open" and str(run) in os.path.abspath(str(args[0]))
                if inside and (run / "run.json").exists():
                    calls += 1
                    if calls >= count:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(trace)
            run_cli("train", whole / "t2a.toml", cwd=tmp_path)

        process = forked(work)
        process.join(600)
    result = run_cli("train", whole / "t2a.toml", cwd=tmp_path)
    assert result.code == 0, result.stderr
    same(run, whole / "runs/t2a")
    for partial in run.rglob(".*.tmp"):
        partial.unlink()  # a file that was being written belongs to no record
    assert tree(run / "samples") == tree(whole / "runs/t2a/samples")


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", ENDING)
def test_every_ending_signal_finishes_the_step_and_saves_it(
    sent: signal.Signals, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it stays ignored
    after_step = trainer.Outputs.after_step
    handlers = [signal.getsignal(number) for number in ENDING]

    def ending(self: Any, lr: float) -> None:
        after_step(self, lr)
        if self.state.step == 6:
            os.kill(os.getpid(), sent)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Outputs, "after_step", ending)
        result = run_cli("train", whole / "t2a.toml", cwd=tmp_path)
    assert result.code == 130
    assert [signal.getsignal(number) for number in ENDING] == handlers
    assert "resume with" in result.stderr
    assert 6 in checkpoints(tmp_path / "runs/t2a")
    assert json.loads((tmp_path / "runs/t2a/run.json").read_text())["status"] == "interrupted"
    assert run_cli("train", whole / "t2a.toml", cwd=tmp_path).code == 0
    same(tmp_path / "runs/t2a", whole / "runs/t2a")


def test_a_signal_while_the_loader_hangs_saves_the_last_step(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "r.toml", train__checkpoint_every=100)
    item = loader.Guarded.__getitem__

    def hanging(self: Any, index: int) -> Any:
        if index == 25:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        return item(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(loader.Guarded, "__getitem__", hanging)
        began = time.monotonic()
        result = cli("train", recipe)
    assert result.code == 130 and time.monotonic() - began < 25
    assert checkpoints(tmp_path / "runs/r") == [6]
    assert cli("train", recipe).code == 0
    assert cli("train", recipe, "--name", "whole").code == 0
    assert facts(tmp_path / "runs/r") == facts(tmp_path / "runs/whole")


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    """The first is SIGUSR1, the second SIGTERM, in the same step."""
    recipe = write_recipe(tmp_path / "r.toml")

    def work() -> None:
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
        original = trainer.flow_loss

        def ending(*args: Any, **keys: Any) -> Any:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            return original(*args, **keys)

        trainer.flow_loss = ending
        run_cli("train", recipe, cwd=tmp_path)

    process = forked(work)
    process.join(600)
    assert process.exitcode == -signal.SIGTERM


def test_nohup_keeps_training(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    after_step = trainer.Outputs.after_step

    def hanging_up(self: Any, lr: float) -> None:
        after_step(self, lr)
        os.kill(os.getpid(), signal.SIGHUP)

    try:
        monkeypatch.setattr(trainer.Outputs, "after_step", hanging_up)
        assert run_cli("train", whole / "t2a.toml", cwd=tmp_path).code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


# -- shared memory ---------------------------------------------------------------------------------


def test_too_little_shared_memory_is_refused_before_training_with_what_fits(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "r.toml", data__workers=4, train__steps=2)
    # A micro-batch of 4 clips of 0.4 s takes some 62 kB; 4 workers hold 16 of them.
    monkeypatch.setattr(shared_memory, "free_shared_memory", lambda: 400_000)
    refused = cli("train", recipe)
    assert refused.code == 2
    one_error(refused.stderr)
    assert "shared memory" in refused.stderr and "--set data.workers=1 fits" in refused.stderr
    assert not (tmp_path / "runs/r/metrics.jsonl").exists()
    assert cli("train", recipe, "--set", "data.workers=1").code == 0
    monkeypatch.setattr(shared_memory, "free_shared_memory", lambda: 0)
    assert "--set data.workers=0 fits" in cli("train", recipe, "--name", "b").stderr
    assert cli("train", recipe, "--set", "data.workers=0").code == 0


def test_doctor_shows_the_shared_memory(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "free_shared_memory", lambda: 64 * 2**20)
    document = json.loads(cli("doctor", "--json").stdout)
    details = {check["name"]: check["detail"] for check in document["checks"]}
    assert "64 MB free" in details["shared memory"] and "--shm-size" in details["shared memory"]


# -- several processes -----------------------------------------------------------------------------


def test_two_processes_stop_together_where_one_loses_its_data(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = loader.Guarded.__getitem__

    def losing(self: Any, index: int) -> Any:
        if index == 26:  # of the second process, in step 7
            return loader.Lost("clip-26", ("FileNotFoundError: gone",))
        return item(self, index)

    monkeypatch.setattr(loader.Guarded, "__getitem__", losing)
    errors = two_processes("train", whole / "t2a.toml", cwd=tmp_path, codes=[1, 1])
    assert "clip-26" in errors[0] and "Traceback" not in "".join(errors)
    assert 6 in checkpoints(tmp_path / "runs/t2a")
