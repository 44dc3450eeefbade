"""Trackers: what they are sent, once each; they never stop a run; a missing package is an error."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import losses_of, read_rows, run_cli, write_recipe

from stagecli.recipe.parts import is_installed
from stagecli.train import tracker_kinds
from stagecli.train.tracker_rows import numbers_of

STEPS = list(range(1, 11))
MEASURED: dict[str, Any] = {
    "train__keep": 3,
    "train__sample_every": 5,
    "train__validate_every": 5,
    "stage__regime__every": 2,
    "stage__regime__clips": 4,
}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with runs/t2a, tracked by three; steps 5 to 10 were taken twice."""
    folder = tmp_path_factory.mktemp("tracked")
    names = ["tensorboard", "wandb", "trackio"]
    recipe = write_recipe(folder / "t2a.toml", "t2a", train__report_to=names, **MEASURED)
    env = {"TRACKIO_DIR": str(folder / "trackio")}  # which it reads when it is imported
    for more in ([], ["--from-checkpoint", "4"]):
        result = run_cli("train", recipe, *more, cwd=folder, env=env)
        assert result.code == 0, result.stderr
        assert result.stdout == ""
    yield folder
    import wandb

    wandb.teardown()


def test_tensorboard_has_every_step_once(tracked: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tracked / "runs" / "t2a"
    limits = {"scalars": 0, "audio": 0, "images": 0, "tensors": 0}
    log = EventAccumulator(str(run / "trackers" / "tensorboard"), size_guidance=limits)
    log.Reload()

    # Numbers are those of the run's own files.
    losses = {event.step: event.value for event in log.Scalars("train/loss")}
    assert [event.step for event in log.Scalars("train/loss")] == STEPS
    rows = {row["step"]: row["train/loss"] for row in read_rows(run) if "train/loss" in row}
    assert losses == pytest.approx(rows)
    assert [event.step for event in log.Scalars("regime/Dn")] == [2, 4, 6, 8, 10]
    assert {"valid/loss", "bins/t_0.00-0.10"} <= set(log.Tags()["scalars"])

    # Audio, curves, events and the recipe.
    assert [event.step for event in log.Audio("samples/000")] == [5, 10]
    assert log.Audio("samples/000")[0].content_type == "audio/wav"
    assert {event.step for event in log.Images("curves")} == {4, 8, 10}
    events = [
        event.tensor_proto.string_val[0] for event in log.Tensors("events/trainer/text_summary")
    ]
    assert b"stopped -> training: resumed from step 4" in events
    (recipe,) = log.Tensors("recipe/text_summary")
    assert b"batch_size = 4" in recipe.tensor_proto.string_val[0]


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: 32 KiB blocks of pieces with sum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    position = 7
    whole = b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_wandb_writes_offline_and_has_every_step_once(tracked: Path) -> None:
    folder = tracked / "runs" / "t2a" / "trackers" / "wandb"
    files = sorted(folder.glob("offline-run-*/*.wandb"))
    records = [record for path in files for record in wandb_records(path)]
    assert {record.run.run_id for record in records if record.HasField("run")} == {
        json.loads((tracked / "runs" / "t2a" / "run.json").read_text())["id"]
    }
    steps = []
    keys = set()
    for record in records:
        if record.HasField("history"):
            names = {item.key or item.nested_key[0] for item in record.history.item}
            keys |= names
            steps += [record.history.step.num] if "train/loss" in names else []
    assert steps == STEPS
    assert {"regime/Dn", "valid/loss", "samples/000", "curves", "events/trainer"} <= keys
    assert list(folder.glob("offline-run-*/files/media/audio/samples/*.wav"))


def test_trackio_has_every_step_once(tracked: Path) -> None:
    with sqlite3.connect(tracked / "trackio" / "stagecli.db") as store:
        query = "select run_name, step, metrics from metrics order by id"
        rows = [(name, step, json.loads(text)) for name, step, text in store.execute(query)]
    assert len({name for name, _, _ in rows}) == 1
    assert [step for _, step, values in rows if "train/loss" in values] == STEPS
    assert {5, 10} == {step for _, step, values in rows if "samples/000" in values}
    assert any("events/trainer" in values for _, _, values in rows)


def test_the_attempts_record_where_each_log_goes_on(tracked: Path) -> None:
    info = json.loads((tracked / "runs" / "t2a" / "run.json").read_text())
    first, second = (attempt["trackers"] for attempt in info["attempts"])
    assert first == second
    assert first["wandb"] == info["id"]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed")
def test_mlflow_has_every_step_once(tmp_path: Path) -> None:
    import mlflow

    recipe = write_recipe(tmp_path / "t2a.toml", "t2a", train__report_to=["mlflow"], **MEASURED)
    for more in ([], ["--from-checkpoint", "4"]):
        assert run_cli("train", recipe, *more, cwd=tmp_path).code == 0
    folder = tmp_path / "runs" / "t2a" / "trackers" / "mlflow"
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = mlflow.get_experiment_by_name("stagecli")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [entry.step for entry in history] == STEPS
    assert run.data.params["train.batch_size"] == "4"
    assert list(folder.glob("artifacts/*/artifacts/samples/step_00000005/000.wav"))


class Breaks:
    """A tracker that raises from step 3 on."""

    key = "k"

    def __init__(self) -> None:
        self.steps: list[int] = []

    def numbers(self, step: int, values: dict[str, float]) -> None:
        print("noise on stdout")
        if step >= 3:
            raise OSError(28, "No space left on device")
        self.steps.append(step)

    def text(self, step: int, name: str, text: str) -> None: ...
    def close(self) -> None: ...


def test_a_tracker_that_fails_never_stops_a_run(
    cli: Callable[..., Any],
    t2a_recipe: Callable[..., Path],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One breaks later, one at its start; what is trained does not change."""
    breaks = Breaks()

    def cannot_start(*_: object) -> Any:
        raise ImportError("libtracker.so: cannot open shared object file")

    monkeypatch.setitem(tracker_kinds.STARTS, "tensorboard", lambda *_: breaks)
    monkeypatch.setitem(tracker_kinds.STARTS, "wandb", cannot_start)
    result = cli("train", t2a_recipe(train__report_to=["tensorboard", "wandb"]))
    assert result.code == 0, result.stderr
    assert result.stdout == ""
    assert breaks.steps == [1, 1, 2, 2]  # metrics and noise bins

    lost = [row for row in read_rows(tmp_path / "runs" / "t2a", "events")]
    lost = [row for row in lost if row["mechanism"] == "tracker"]
    assert [(row["step"], row["to"]) for row in lost] == [(0, "wandb off"), (3, "tensorboard off")]
    assert "No space left on device; the run goes on" in lost[1]["reason"]
    assert result.stderr.count("warning: tensorboard off: ") == 1
    assert losses_of(tmp_path / "runs" / "t2a") == losses_of(trained / "runs" / "t2a")


def test_a_missing_package_is_an_error_before_anything_is_written(
    cli: Callable[..., Any],
    t2a_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stagecli.recipe.parts.find_spec", lambda name: None)
    recipe = t2a_recipe(train__report_to=["wandb", "mlflow"])
    for more in ([], ["--dry-run"]):
        result = cli("train", recipe, *more)
        assert result.code == 2
        for name in ("wandb", "mlflow"):
            assert f"needs the package `{name}`: pip install {name}" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_the_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as wandb leaves in the folder that a run is started from."""
    (tmp_path / "some_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_installed("some_tracker")
    assert is_installed("json")


def test_an_unknown_tracker_is_refused_with_the_known_ones(
    cli: Callable[..., Any], t2a_recipe: Callable[..., Path]
) -> None:
    result = cli("train", t2a_recipe(train__report_to=["tensorbord"]), "--dry-run")
    assert result.code == 2
    assert "train.report_to" in result.stderr
    assert "tensorboard" in result.stderr


def test_values_of_rows() -> None:
    row = {"step": 3, "time": 1.0, "attempt": 1, "train/loss": None, "optim/lr": 0.1, "note": "x"}
    assert numbers_of("metrics", row) == {"optim/lr": 0.1}
    bins = {"step": 3, "edges": [0, 0.5, 1], "count": [2, 0], "loss": [1.5, None]}
    assert numbers_of("bins", bins) == {"bins/t_0.00-0.50": 1.5}
    probe = {"step": 3, "Dn": 0.5, "stage": "acquisition", "frozen": False}
    assert numbers_of("probes", probe) == {"regime/Dn": 0.5}
