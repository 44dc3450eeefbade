"""Checkpoints: what goes in comes out to the bit, and a failed save harms nothing."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from stagecli.errors import EXIT_FAILED, StageError
from stagecli.runs import checkpoint


def same(a: Any, b: Any) -> bool:
    """Equal to the bit; a tuple equals a list."""
    if isinstance(a, Tensor):
        return (
            isinstance(b, Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.contiguous()
            .flatten()
            .view(torch.uint8)
            .equal(b.contiguous().flatten().view(torch.uint8))
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b


def save(folder: Path, step: int, value: float = 1.0, **trainer: Any) -> Path:
    weights = {"w": torch.full((64,), value)}
    return checkpoint.save(
        folder,
        step,
        model=weights,
        ema=weights,
        trainer=trainer,
        state={"samples": step, "best": None},
    )


def value_of(path: Path, which: str = "model") -> float:
    return float(checkpoint.load_weights(path, which)["w"][0])


# --- pack and unpack ------------------------------------------------------------------------------

dtypes = st.sampled_from(
    [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    values = torch.arange(math.prod(shape)).reshape(shape) + draw(st.integers(0, 5))
    tensor = values.to(draw(dtypes))
    if tensor.is_floating_point() and tensor.numel():
        tensor.view(-1)[0] = draw(st.sampled_from([float("nan"), float("inf"), -0.0, 1 / 3]))
    return tensor.T if tensor.ndim == 2 and draw(st.booleans()) else tensor


# "/" and "$tensor" are what keys are built of inside; numbers and their digits are different keys.
keys = st.sampled_from(
    ["a", "b", "a/b", "", "$tensor", "$dict", "0", "__metadata__", "ü"]
) | st.integers(0, 2)
leaves = tensors() | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(trees)
def test_pack_and_unpack(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    """Through JSON and safetensors, as in a checkpoint."""
    packed, held = checkpoint.pack(tree)
    path = tmp_path_factory.getbasetemp() / "packed.safetensors"
    save_file(held, path)
    unpacked = checkpoint.unpack(json.loads(json.dumps(packed)), checkpoint.load_file(path))
    assert same(tree, unpacked)


def test_tensors_of_different_keys_are_kept_apart() -> None:
    tree = {
        "a/b": torch.zeros(1),
        "a": {"b": torch.ones(1)},
        1: torch.full((1,), 2.0),
        "1": torch.full((1,), 3.0),
    }
    assert same(tree, checkpoint.unpack(*checkpoint.pack(tree)))


def test_packed_tensors_are_copies() -> None:
    weight = torch.zeros(2)
    _, held = checkpoint.pack([weight, weight])
    weight += 1
    assert [float(t.sum()) for t in held.values()] == [0.0, 0.0]


# --- save and load --------------------------------------------------------------------------------


def trained(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = network(torch.linspace(-1, 1, 12).reshape(4, 3)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_optimizer_state_goes_on_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        groups = [{"params": [network[0].weight, network[1].weight], "weight_decay": 0.1}]
        groups += [{"params": [network[0].bias, network[1].bias], "weight_decay": 0.0}]
        return network, torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.95))

    network, optimizer = make()
    trained(network, optimizer, 3)
    state = network.state_dict()
    path = checkpoint.save(
        tmp_path,
        3,
        model=state,
        ema=state,
        trainer={"optimizer": optimizer.state_dict()},
        state={"x": 1},
    )
    expected = trained(network, optimizer, 3)
    other, fresh = make()
    state, trainer = checkpoint.load_state(path)
    other.load_state_dict(checkpoint.load_weights(path, "model"))
    fresh.load_state_dict(trainer["optimizer"])
    assert trained(other, fresh, 3) == expected
    assert same(optimizer.state_dict(), checkpoint.unpack(*checkpoint.pack(fresh.state_dict())))
    assert state == {"step": 3, "x": 1}


def test_model_and_ema_are_kept_apart(tmp_path: Path) -> None:
    weights = {"a": torch.ones(2, 2).T, "b": torch.zeros(1, requires_grad=True)}
    average = {"a": torch.full((2, 2), 2.0), "b": torch.ones(1)}
    path = checkpoint.save(tmp_path, 1, model=weights, ema=average, trainer=None, state={})
    assert same(checkpoint.load_weights(path), average)
    assert same(checkpoint.load_weights(path, "model"), {k: v.detach() for k, v in weights.items()})
    assert checkpoint.load_state(path) == ({"step": 1}, None)
    assert checkpoint.load_weights(path, "codec") == {}
    assert not [p.name for p in path.iterdir() if p.suffix in (".pt", ".pkl", ".bin")]


def test_a_checkpoint_carries_what_it_is_used_with(tmp_path: Path) -> None:
    statistics = {"mean_C": torch.ones(3), "std_C": torch.zeros(3)}
    path = checkpoint.save(
        tmp_path,
        1,
        model={},
        ema={},
        trainer={},
        state={},
        codec=statistics,
        recipe='[task]\nkind = "ü"\n',
    )
    assert same(checkpoint.load_weights(path, "codec"), statistics)
    assert (path / "recipe.toml").read_text(encoding="utf-8") == '[task]\nkind = "ü"\n'


def test_state_json_is_strict_json(tmp_path: Path) -> None:
    path = checkpoint.save(
        tmp_path, 1, model={}, ema={}, trainer={}, state={"best": {"value": float("nan")}}
    )

    def refuse(name: str) -> None:
        raise AssertionError(name)

    state = json.loads((path / "state.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert state["best"] == {"value": None}


def test_a_step_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    save(tmp_path, 5, 1.0)
    path = save(tmp_path, 5, 2.0)
    assert value_of(path) == 2.0
    assert sorted(os.listdir(tmp_path)) == ["latest", "step_00000005"]


# --- a save that fails ----------------------------------------------------------------------------


def listing(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def fail_at(number: int, real: Callable[..., Any], half: bool = False) -> Callable[..., Any]:
    """`real`, but call `number` (from 1) finds the disk full, at times after half a file."""
    calls = 0

    def call(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            if half:
                Path(args[1]).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **options)

    return call


@pytest.mark.parametrize("same_step", [False, True])
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("save_file", 1),
        ("save_file", 2),
        ("save_file", 4),
        ("write_atomic", 1),
        ("fsync", 4),
        ("replace", 2),  # after state.json inside it
    ],
)
def test_a_failed_save_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, same_step: bool
) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    before = listing(tmp_path)
    target = os if name in ("replace", "fsync") else checkpoint
    if name == "replace" and same_step:
        number += 1  # the old directory of the step is renamed before the new one
    with monkeypatch.context() as patch:
        patch.setattr(
            target, name, fail_at(number, getattr(target, name), half=name == "save_file")
        )
        with pytest.raises(StageError, match="cannot write the checkpoint of step") as caught:
            save(tmp_path, 2 if same_step else 3, 7.0)
    assert caught.value.exit_code == EXIT_FAILED
    assert "No space left" in str(caught.value)
    assert "previous checkpoint is intact" in (caught.value.hint or "")
    assert listing(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["latest", "step_00000001", "step_00000002"]
    assert checkpoint.resolve(tmp_path).name == "step_00000002"
    assert value_of(save(tmp_path, 3, 9.0)) == 9.0  # once there is space again


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(
            f"cannot mount a small disk here: {getattr(error, 'stderr', '') or error}".strip()
        )
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=10)


def test_a_full_disk(small_disk: Path) -> None:
    save(small_disk, 1)
    before = listing(small_disk)
    big = {"w": torch.zeros(40_000)}
    with pytest.raises(StageError, match="cannot write the checkpoint of step 2"):
        checkpoint.save(small_disk, 2, model=big, ema=big, trainer={}, state={})
    assert listing(small_disk) == before
    assert sorted(os.listdir(small_disk)) == ["latest", "step_00000001"]
    assert value_of(save(small_disk, 2, 3.0)) == 3.0


# --- finding and rotating -------------------------------------------------------------------------


def test_resolve(tmp_path: Path) -> None:
    for step in (10, 200):
        save(tmp_path, step)
    assert checkpoint.steps(tmp_path) == [10, 200]
    assert (tmp_path / "latest").read_text() == "step_00000200\n"
    for which in ("10", "step_10", "step_00000010"):
        assert checkpoint.resolve(tmp_path, which).name == "step_00000010"
    assert checkpoint.resolve(tmp_path).name == "step_00000200"
    for pointer in (b"step_00000010\n", b"step_00000999\n", b"\xff", b"../elsewhere"):
        (tmp_path / "latest").write_bytes(pointer)  # for other programs: nothing here follows it
        assert checkpoint.resolve(tmp_path).name == "step_00000200"
    (tmp_path / "latest").unlink()
    assert checkpoint.resolve(tmp_path).name == "step_00000200"


@pytest.mark.parametrize("which", ["11", "step_11", "best", "", "²", "latest2"])
def test_resolve_names_the_checkpoints_there_are(tmp_path: Path, which: str) -> None:
    for step in (10, 200):
        save(tmp_path, step)
    with pytest.raises(StageError, match="no checkpoint") as caught:
        checkpoint.resolve(tmp_path, which)
    assert "10, 200" in (caught.value.hint or "")


def test_resolve_without_checkpoints(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(StageError, match="no checkpoint 'latest'") as caught:
            checkpoint.resolve(folder)
        assert "not saved one yet" in (caught.value.hint or "")


def test_an_incomplete_checkpoint_is_not_counted(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / "step_00000020").mkdir()
    (tmp_path / ".step_00000030.partial").mkdir()
    (tmp_path / ".step_00000030.partial" / "state.json").write_text("{}")
    (tmp_path / "step_00000010_backup").mkdir()  # a copy that a user made
    (tmp_path / "step_00000010_backup" / "state.json").write_text("{}")
    assert checkpoint.steps(tmp_path) == [10]
    assert value_of(save(tmp_path, 20, 4.0)) == 4.0
    assert value_of(save(tmp_path, 30, 5.0)) == 5.0
    assert ".step_00000030.partial" not in os.listdir(tmp_path)


def test_damage_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "ema.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(StageError, match="damaged") as caught:
        checkpoint.load_weights(path)
    assert caught.value.problems[0].what.startswith("ema.safetensors: ")
    (path / "trainer.safetensors").unlink()
    with pytest.raises(StageError, match="damaged"):
        checkpoint.load_state(path)
    with pytest.raises(StageError, match="damaged"):
        checkpoint.load_weights(path, "nonesuch")


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(1, None, [5]), (2, None, [4, 5]), (2, 1, [1, 4, 5]), (2, 5, [4, 5]), (9, 2, [1, 2, 3, 4, 5])],
)
def test_rotate_keeps_the_newest_and_the_best(
    tmp_path: Path, keep: int, best: int | None, left: list[int]
) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    checkpoint.rotate(tmp_path, keep, best)
    assert checkpoint.steps(tmp_path) == left
    assert sorted(os.listdir(tmp_path)) == ["latest", *map(checkpoint.name_of, left)]
    checkpoint.rotate(tmp_path, keep, best)
    assert checkpoint.steps(tmp_path) == left


def test_a_kill_while_rotating_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(tmp_path, step)

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.rotate(tmp_path, 1, None)
    assert checkpoint.steps(tmp_path) == [2]
