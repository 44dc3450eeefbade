"""Fine-tuning: `train.init` starts from another run's EMA weights, `train.freeze` keeps some."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import losses_of, read_rows, run_cli, tree, write_recipe
from helpers.resume import at_row, attempts, killed, same
from safetensors.torch import load_file

import stagecli

MECHANISMS = {
    "model__depth": 4,
    "stage__regime__every": 2,
    "stage__regime__clips": 4,
    "stage__guidance__hidden": 16,
    "stage__structure__when": "always",
}


@pytest.fixture(scope="module")
def home(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/t2a, which is the source, and runs/tuned, which fine-tuned it."""
    folder = tmp_path_factory.mktemp("finetune")
    shutil.copytree(trained / "runs" / "t2a", folder / "runs" / "t2a")
    recipe = tuned(folder, "tuned")
    done = run_cli("train", recipe, cwd=folder)
    assert done.code == 0, done.stderr
    return folder


def tuned(folder: Path, name: str, **changes: Any) -> Path:
    """A recipe that fine-tunes runs/t2a."""
    return write_recipe(
        folder / f"{name}.toml",
        **{"train__init": "runs/t2a", "train__validate_every": 5, **changes},
    )


def weights(run: Path, step: int = 10, kind: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / f"{kind}.safetensors")


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(run, "events") if row["to"] == kind]


@pytest.fixture
def train(home: Path, tmp_path: Path) -> Callable[..., Any]:
    """Train a recipe that fine-tunes, in a folder of its own with a copy of the source."""
    shutil.copytree(home / "runs" / "t2a", tmp_path / "runs" / "t2a")

    def call(name: str, *arguments: object, **changes: Any) -> Any:
        return run_cli("train", tuned(tmp_path, name, **changes), *arguments, cwd=tmp_path)

    return call


# --- weights --------------------------------------------------------------------------------------


def test_it_starts_at_the_loss_of_its_source(home: Path) -> None:
    source = [row for row in read_rows(home / "runs" / "t2a") if "valid/loss" in row][-1]
    first = next(row for row in read_rows(home / "runs" / "tuned") if "valid/loss" in row)
    assert (source["step"], first["step"]) == (10, 0)
    columns = [name for name in source if name.startswith("valid/")]
    assert {name: source[name] for name in columns} == {name: first[name] for name in columns}


def test_it_is_a_run_of_its_own(home: Path) -> None:
    run = home / "runs" / "tuned"
    assert attempts(run) == [0]
    before = weights(home / "runs" / "t2a", kind="ema")
    assert any(not torch.equal(value, before[name]) for name, value in weights(run).items())
    info = stagecli.load(run).recipe
    assert info.train.init == "runs/t2a"


def test_what_was_loaded_is_recorded_and_shown(train: Callable[..., Any], tmp_path: Path) -> None:
    done = train("other", model__depth=3, condition__width=64, train__steps=2)
    assert done.code == 0, done.stderr
    (event,) = events(tmp_path / "runs" / "other", "fine-tuning")
    evidence = event["evidence"]
    assert evidence["new"] == ["dit.blocks.2.*"] and evidence["unused"] == []
    assert "bytes.embed.weight" in evidence["skipped"]
    assert {"dit.blocks.0.*", "bytes.out.bias", "dit.output.*"} <= set(evidence["loaded"])
    assert evidence["step"] == 10 and len(evidence["sha256"]) == 64
    for words in ("EMA weights of runs/t2a, step 10", "22 not there", "of another shape"):
        assert words in event["reason"] and words in done.stderr.replace("\n", " ")


def test_an_export_is_a_source_too(train: Callable[..., Any], tmp_path: Path) -> None:
    assert run_cli("export", "t2a", "model", cwd=tmp_path).code == 0
    assert train("a", train__steps=1).code == 0
    assert train("b", train__init="model", train__steps=1).code == 0
    assert train("c", train__init="t2a", train__steps=1).code == 0
    losses = [losses_of(tmp_path / "runs" / name) for name in "abc"]
    assert losses[0] == losses[1] == losses[2]


# --- the codec's statistics -----------------------------------------------------------------------


def test_statistics_are_those_of_the_source(train: Callable[..., Any], tmp_path: Path) -> None:
    """Other clips: fitted to them, the statistics would be others."""
    assert train("same", train__steps=1, train__seed=5, data__clips=30).code == 0
    (event,) = events(tmp_path / "runs" / "same", "codec statistics")
    assert event["reason"].startswith("those of runs/t2a")
    runs = tmp_path / "runs"
    assert load_equal(runs / "t2a" / "codec.safetensors", runs / "same" / "codec.safetensors")


def test_another_codec_has_its_own(train: Callable[..., Any], tmp_path: Path) -> None:
    done = train("hop", codec__hop=100, train__steps=1)
    assert done.code == 0, done.stderr
    (event,) = events(tmp_path / "runs" / "hop", "codec statistics")
    assert "codec.hop 80 -> 100" in event["reason"] and "codec.hop 80 -> 100" in done.stderr
    runs = tmp_path / "runs"
    assert not load_equal(runs / "t2a" / "codec.safetensors", runs / "hop" / "codec.safetensors")


def load_equal(one: Path, other: Path) -> bool:
    a = load_file(one)
    b = load_file(other)
    return all(torch.equal(a[name], b[name]) for name in a)


# --- parameters that stay -------------------------------------------------------------------------


def test_frozen_parameters_stay(train: Callable[..., Any], tmp_path: Path) -> None:
    done = train("frozen", train__freeze=["bytes.*", "dit.blocks.0.*"])
    assert done.code == 0, done.stderr
    run = tmp_path / "runs" / "frozen"
    before = weights(tmp_path / "runs" / "t2a", kind="ema")
    for kind in ("model", "ema"):
        after = weights(run, kind=kind)
        stays = {name for name in after if torch.equal(after[name], before[name])}
        frozen = {name for name in after if name.startswith(("bytes.", "dit.blocks.0."))}
        assert frozen <= stays
        assert not any(name.startswith("dit.blocks.1.attention.q.") for name in stays)
    state = load_file(run / "checkpoints" / "step_00000010" / "trainer.safetensors")
    moments = [name for name in state if name.endswith("exp_avg")]
    assert len(moments) == len(after) - len(frozen)
    (event,) = events(run, "frozen")
    assert event["evidence"]["parameters"] == ["bytes.*", "dit.blocks.0.*"]
    assert "parameters stay as they are (bytes.*, dit.blocks.0.*)" in done.stderr


def test_frozen_parameters_take_less_memory(tmp_path: Path) -> None:
    from stagecli.recipe.load import load_recipe
    from stagecli.train.memory import estimate_memory

    whole, part = (
        estimate_memory(
            load_recipe(tuned(tmp_path, "m", train__freeze=patterns)), frames=40, channels=16
        )
        for patterns in ([], ["dit.blocks.*"])
    )
    assert 0 < part.gradients < whole.gradients / 1.5
    assert whole.fixed - part.fixed == 2 * (whole.gradients - part.gradients)


def test_mechanisms_and_frozen_parameters(train: Callable[..., Any], tmp_path: Path) -> None:
    done = train("late", train__freeze=["dit.blocks.0.*", "dit.blocks.3.*"], **MECHANISMS)
    assert done.code == 0, done.stderr
    shallow = ["bytes.*", "dit.input.*", "dit.time.*", "dit.pooled.*", "dit.blocks.0.*"]
    refused = train("early", train__freeze=[*shallow, "dit.blocks.1.*"], **MECHANISMS)
    assert refused.code == 2 and "cannot change block" in refused.stderr


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__init": "nothing"}, "no run or export 'nothing'"),
        ({"train__init": "."}, "neither a run nor an export"),
        ({"train__init": "nobody/nothing"}, "cannot be fetched"),
        ({"train__freeze": ["byts.*", "x"]}, "'x' matches none"),
        ({"train__freeze": ["*"]}, "nothing to train"),
        ({"train__init": "", "train__freeze": ["bytes.*"]}, "needs train.init"),
        ({"train__freeze": [""]}, "train.freeze"),
        ({"model__width": 64, "condition__width": 64, "codec__n_mels": 20}, "fit this model"),
    ],
)
def test_what_is_refused(
    changes: dict[str, Any], words: str, train: Callable[..., Any], tmp_path: Path
) -> None:
    for flags in (["--dry-run"], []):
        refused = train("bad", *flags, **changes)
        assert refused.code == 2 and words in refused.stderr, refused.stderr
        assert "hint:" in refused.stderr
    assert not (tmp_path / "runs" / "bad" / "codec.safetensors").exists(), "work was done before"


def test_a_dry_run_says_what_it_starts_from(train: Callable[..., Any], tmp_path: Path) -> None:
    before = tree(tmp_path / "runs")
    shown = train("plan", "--dry-run", train__freeze=["bytes.*"])
    assert shown.code == 0, shown.stderr
    for words in ("starts from the EMA weights of", "parameters stay as they are"):
        assert words in shown.stdout
    assert tree(tmp_path / "runs") == before


def test_another_source_is_another_run(train: Callable[..., Any], tmp_path: Path) -> None:
    assert train("run", train__steps=2).code == 0
    refused = train("run", train__steps=2, train__init="")
    assert refused.code == 2 and "train.init" in refused.stderr


# --- resume ---------------------------------------------------------------------------------------


def test_kill_and_resume_are_exact_without_the_source(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "runs" / "t2a", tmp_path / "runs" / "t2a")
    recipe = tuned(tmp_path, "tuned")
    killed(tmp_path, "train", recipe, arrange=at_row(7))
    shutil.rmtree(tmp_path / "runs" / "t2a")
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    assert attempts(tmp_path / "runs" / "tuned") == [0, 4]
    same(tmp_path / "runs" / "tuned", home / "runs" / "tuned")


def test_a_frozen_run_resumes_exactly(train: Callable[..., Any], tmp_path: Path) -> None:
    frozen = {"train__freeze": ["bytes.*"]}
    assert train("whole", **frozen).code == 0
    killed(tmp_path, "train", tuned(tmp_path, "cut", **frozen), arrange=at_row(6))
    assert train("cut", **frozen).code == 0
    same(tmp_path / "runs" / "cut", tmp_path / "runs" / "whole")


def test_before_the_first_checkpoint_the_source_must_be_the_same(
    home: Path, train: Callable[..., Any], tmp_path: Path
) -> None:
    killed(tmp_path, "train", tuned(tmp_path, "tuned"), arrange=at_row(2))
    source = tmp_path / "runs" / "t2a"
    shutil.rmtree(source / "checkpoints" / "step_00000010")
    refused = train("tuned")
    assert refused.code == 2 and "is not what this run was started from" in refused.stderr
    assert "--restart" in refused.stderr
    shutil.rmtree(source)
    shutil.copytree(home / "runs" / "t2a", source)
    assert train("tuned").code == 0
    same(tmp_path / "runs" / "tuned", home / "runs" / "tuned")
