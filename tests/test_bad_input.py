"""Bad data and unwritable places: exit 2 before any step; a failing run keeps what it had."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import Result, losses_of, read_rows, run_cli, tree, write_recipe

RATE = 8000
Cli = Callable[..., Result]


def sound(seed: int, seconds: float = 0.5) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE))).astype(
        np.float32
    )


def data_set(folder: Path, good: int = 6) -> list[dict[str, Any]]:
    """Good clips in folder/data; the entries of their manifest, the last one of the valid split."""
    (folder / "data").mkdir()
    entries = []
    for i in range(good):
        soundfile.write(folder / "data" / f"good{i}.wav", sound(i), RATE)
        split = "valid" if i == good - 1 else "train"
        entries.append({"path": f"good{i}.wav", "caption": f"noise {i}", "split": split})
    return entries


def manifest(folder: Path, entries: list[Any]) -> Path:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "data" / "m.jsonl").write_text("\n".join(lines) + "\n")
    return write_recipe(
        folder / "bad.toml",
        data__source="manifest",
        data__path="data/m.jsonl",
        data__clips=None,
        train__steps=2,
    )


def truncated(path: Path) -> None:
    soundfile.write(path, sound(9), RATE)
    path.write_bytes(path.read_bytes()[:3000])


# name -> (writes the file, or does nothing where it is missing; what the message contains)
BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "file is missing"),
    "empty": (lambda path: path.write_bytes(b""), "file is empty"),
    "truncated": (truncated, "is truncated"),
    "no-samples": (lambda path: soundfile.write(path, sound(1)[:0], RATE), "holds no samples"),
    "silent": (lambda path: soundfile.write(path, 0 * sound(1), RATE), "is silent"),
    "nan": (
        lambda path: soundfile.write(path, sound(1) * np.nan, RATE, subtype="FLOAT"),
        "holds NaN",
    ),
    "text": (lambda path: path.write_text("not audio at all\n" * 20), "is not audio"),
    "low-rate": (
        lambda path: soundfile.write(path, sound(1), 4000),
        "sample rate 4000 Hz is below the recipe's 8000",
    ),
}


def refused(folder: Path, cli: Cli, recipe: Path) -> str:
    """The message of a start that is refused before any step; the dry run refuses it too."""
    before = tree(folder)
    dry = cli("train", recipe, "--dry-run")
    assert dry.code == 2
    assert tree(folder) == before, "a dry run wrote something"
    result = cli("train", recipe)
    assert result.code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert not list(folder.glob("runs/*/metrics.jsonl")), "a step was trained"
    assert not list(folder.glob("runs/*/checkpoints/*"))
    return result.stderr


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_with_its_line_and_a_corrected_one_trains(
    name: str, tmp_path: Path, cli: Cli
) -> None:
    make, what = BAD_FILES[name]
    entries = data_set(tmp_path)
    make(tmp_path / "data" / f"{name}.wav")
    recipe = manifest(
        tmp_path,
        [*entries[:2], {"path": f"{name}.wav", "caption": "x", "split": "train"}, *entries[2:]],
    )
    message = refused(tmp_path, cli, recipe)
    assert "data/m.jsonl:3" in message
    assert f"{name}.wav" in message
    assert what in message
    assert "on_bad_file" in message, "the hint"
    soundfile.write(tmp_path / "data" / f"{name}.wav", sound(7), RATE)  # corrected
    again = cli("train", recipe)
    assert again.code == 0, again.stderr


def test_bad_files_are_left_out_and_reported_by_name_and_count(tmp_path: Path, cli: Cli) -> None:
    entries = data_set(tmp_path)
    for name, (make, _) in BAD_FILES.items():
        make(tmp_path / "data" / f"{name}.wav")
        entries.append({"path": f"{name}.wav", "caption": "x", "split": "train"})
    recipe = manifest(tmp_path, ["{half", {"path": "good0.wav", "split": "train"}, *entries[1:]])
    sets = ("--set", 'data.on_bad_file="skip"')
    result = cli("train", recipe, *sets)
    assert result.code == 0, result.stderr
    count = len(BAD_FILES) + 2
    assert f"{count} clips left out" in result.stderr
    first_row = result.stderr.index("step 1/")
    for word in (
        *(f"{name}.wav" for name in BAD_FILES),
        "m.jsonl:1",
        "m.jsonl:2",
        f"{count} clips left out",
    ):
        assert 0 <= result.stderr.find(word) < first_row, f"{word} is not reported before training"
    events = [
        row for row in read_rows(tmp_path / "runs" / "bad", "events") if row["mechanism"] == "data"
    ]
    assert len(events[0]["evidence"]["clips"]) == count
    prepared = cli("train", recipe, *sets, "--prepare-only")
    assert prepared.code == 0
    assert f"{count} clips skipped" in prepared.stderr
    assert cli("train", recipe, *sets, "--quiet", "--name", "quiet").stderr == ""


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({"path": "good0.wav", "split": "train"}, 'no caption (key "caption")'),
        ({"path": "good0.wav", "caption": " ", "split": "train"}, "is empty"),
        ('{"path": "good0.wav", "caption"', "is not JSON"),
        ("[1, 2]", "is not a JSON object"),
        ({"caption": "x", "split": "train"}, "path"),
        ({"path": "good0.wav", "caption": "x", "split": "trian"}, "trian"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(
    line: Any, what: str, tmp_path: Path, cli: Cli
) -> None:
    entries = data_set(tmp_path)
    message = refused(tmp_path, cli, manifest(tmp_path, [*entries[1:4], line, *entries[4:]]))
    assert "data/m.jsonl:4" in message
    assert what in message


def test_every_problem_of_the_data_is_listed_at_once(tmp_path: Path, cli: Cli) -> None:
    entries = data_set(tmp_path)
    more = [{"path": f"gone{i}.wav", "caption": "x", "split": "train"} for i in range(3)]
    message = refused(tmp_path, cli, manifest(tmp_path, [*entries, *more, "{"]))
    assert all(f"m.jsonl:{len(entries) + 1 + i}" in message for i in range(4))


def test_a_start_that_failed_does_not_block_a_corrected_recipe(tmp_path: Path, cli: Cli) -> None:
    """The correction may be in the recipe: the same name must still be free for it."""
    entries = data_set(tmp_path)
    recipe = manifest(tmp_path, [*entries, {"path": "gone.wav", "caption": "x", "split": "train"}])
    refused(tmp_path, cli, recipe)
    assert json.loads((tmp_path / "runs" / "bad" / "run.json").read_text())["status"] == "failed"
    result = cli("train", recipe, "--set", 'data.on_bad_file="skip"', "--set", "train.lr=2e-3")
    assert result.code == 0, result.stderr
    assert "lr = 0.002" in (tmp_path / "runs" / "bad" / "recipe.toml").read_text()


def test_missing_data_and_an_unset_variable(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    recipe = write_recipe(
        tmp_path / "r.toml", data__source="manifest", data__path="nowhere/m.jsonl"
    )
    assert "nowhere/m.jsonl" in refused(tmp_path, cli, recipe)
    recipe = write_recipe(
        tmp_path / "v.toml", data__source="folder", data__path="${NO_SUCH_FOLDER}/x"
    )
    message = refused(tmp_path, cli, recipe)
    line = 1 + recipe.read_text().splitlines().index('path = "${NO_SUCH_FOLDER}/x"')
    assert f"v.toml:{line}:" in message
    assert "environment variable NO_SUCH_FOLDER is not set" in message
    assert not (tmp_path / "runs" / "v").exists()


def test_a_run_directory_that_cannot_be_written(tmp_path: Path, cli: Cli) -> None:
    recipe = write_recipe(tmp_path / "t2a.toml", train__steps=2)
    (tmp_path / "taken").write_text("a file in place of the runs directory")
    result = cli("train", recipe, "--runs-dir", "taken")
    assert result.code == 2
    assert (
        "taken/t2a" in result.stderr
        and "--runs-dir" in result.stderr
        and "Traceback" not in result.stderr
    )
    assert cli("train", recipe).code == 0


def test_a_full_disk_at_the_start_does_not_block_the_name(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    recipe = write_recipe(tmp_path / "t2a.toml", train__steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = cli("train", recipe)
    assert result.code == 2
    assert "No space left on device" in result.stderr and "Traceback" not in result.stderr
    assert cli("train", recipe).code == 0


@pytest.mark.parametrize("where", ["checkpoint", "rows", "samples"])
def test_a_full_disk_while_training(
    where: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 1, the checkpoint before it intact, and the same command goes on to the same end."""
    from stagecli.runs import checkpoint
    from stagecli.runs.directory import Run
    from stagecli.train import validation

    recipe = write_recipe(
        tmp_path / "t2a.toml", train__steps=8, train__checkpoint_every=2, train__sample_every=5
    )
    assert cli("train", recipe, "--name", "whole").code == 0
    no_space = OSError(errno.ENOSPC, "No space left on device")
    save = checkpoint.save_file
    append = Run.append
    fsync = os.fsync
    write_wav = validation.write_wav
    full = False

    def save_file(tensors: Any, path: Path) -> None:
        nonlocal full
        full = full or (
            where == "checkpoint" and "step_00000006" in str(path) and "trainer" in path.name
        )
        if full:
            raise no_space
        save(tensors, path)

    def append_row(run: Any, stream: str, row: Any) -> Any:
        nonlocal full
        full = full or (where == "rows" and row["step"] == 5)
        if full:
            raise no_space
        return append(run, stream, row)

    def sync(descriptor: int) -> None:
        if full:
            raise no_space
        fsync(descriptor)

    def write_sample(*args: Any, **keys: Any) -> None:
        nonlocal full
        full = full or where == "samples"
        if full:
            raise no_space
        write_wav(*args, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save_file)
        patch.setattr(os, "fsync", sync)
        patch.setattr(Run, "append", append_row)
        patch.setattr(validation, "write_wav", write_sample)
        result = cli("train", recipe, "--name", "cut")
    assert full, "the disk was never full"
    assert result.code == 1
    assert "No space left on device" in result.stderr and "same command" in result.stderr
    assert "Traceback" not in result.stderr
    run = tmp_path / "runs" / "cut"
    assert checkpoint.resolve(run / "checkpoints").name == "step_00000004"
    assert cli("sample", run, "--prompt", "a bell").code == 0, (
        "the checkpoint before it is not intact"
    )
    again = cli("train", recipe, "--name", "cut")
    assert again.code == 0, again.stderr
    weights = [
        p.parent / p.name / "checkpoints/step_00000008/model.safetensors"
        for p in (run, run.parent / "whole")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite(
    what: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 6 fails: its clips are named, the state of step 5 is saved, finite, and resumes."""
    import torch

    from stagecli.runs.checkpoint import load_weights
    from stagecli.train import trainer

    flow_loss = trainer.flow_loss
    calls = 0

    def failing(*args: Any, **keys: Any) -> Any:
        nonlocal calls
        calls += 1
        result = flow_loss(*args, **keys)
        if calls == 6:
            # The root of 0 is 0 and its slope infinite: the loss is finite, its gradient NaN.
            zero = (result.velocity_BTC - result.velocity_BTC.detach()).square().sum()
            result.loss_B = (
                result.loss_B * math.nan if what == "loss" else result.loss_B + zero.sqrt()
            )
        return result

    recipe = write_recipe(tmp_path / "t2a.toml")
    assert cli("train", recipe, "--name", "whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "flow_loss", failing)
        result = cli("train", recipe)
    run = tmp_path / "runs" / "t2a"
    assert result.code == 1
    assert f"the {what} is not finite at step 6" in result.stderr
    assert (
        "synth/train/" in result.stderr
        and "train.lr" in result.stderr
        and "Traceback" not in result.stderr
    )
    assert (run / "checkpoints" / "latest").read_text().strip() == "step_00000005"
    saved = load_weights(run / "checkpoints" / "step_00000005", "model")
    assert all(bool(torch.isfinite(value).all()) for value in saved.values())
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "failed" and f"the {what} is not finite" in info["message"]
    event = read_rows(run, "events")[-1]
    assert event["to"] == "failed" and len(event["evidence"]["clips"]) == 4
    assert losses_of(run) == losses_of(run.parent / "whole")[:5]
    assert cli("train", recipe).code == 0
    assert losses_of(run) == losses_of(run.parent / "whole")


def test_a_learning_rate_that_explodes(tmp_path: Path, cli: Cli) -> None:
    """The weights before the failure are so large that their validation loss is not finite."""
    recipe = write_recipe(
        tmp_path / "t2a.toml", train__lr=100, train__weight_decay=100, train__warmup_steps=0
    )
    for _ in range(2):  # the second time it resumes from that state, and must fail the same way
        result = cli("train", recipe)
        assert result.code == 1
        assert "is not finite at step" in result.stderr
        assert "Traceback" not in result.stderr
    shown = run_cli("inspect-regime", "runs/t2a", "--json", cwd=tmp_path)
    assert json.loads(shown.stdout)["status"] == "failed"
