"""Checkpoints: safetensors and JSON, written whole or not at all; no pickle.

checkpoints/step_00010000/  model.safetensors  ema.safetensors  codec.safetensors  recipe.toml
                            trainer.safetensors  state.json
checkpoints/latest          name of the newest one
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.files import finite, write_atomic


def name_of(step: int) -> str:
    return f"step_{step:08d}"


def pack(
    tree: Any, path: str = "", tensors: dict[str, Tensor] | None = None
) -> tuple[Any, dict[str, Tensor]]:
    """Nested dicts and lists -> (JSON with {"$tensor": key} in place of tensors, tensors by key)."""
    tensors = {} if tensors is None else tensors
    if isinstance(tree, Tensor):
        key = path or "tensor"
        while key in tensors:  # {"a/b": x, "a": {"b": y}} or {1: x, "1": y}
            key += "'"
        tensors[key] = tree.detach().cpu().contiguous().clone()
        return {"$tensor": key}, tensors
    if isinstance(tree, Mapping):
        return {
            "$dict": [[k, pack(v, f"{path}/{k}", tensors)[0]] for k, v in tree.items()]
        }, tensors
    if isinstance(tree, (list, tuple)):
        return [pack(v, f"{path}/{i}", tensors)[0] for i, v in enumerate(tree)], tensors
    return tree, tensors


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack`; tuples come back as lists."""
    if isinstance(tree, dict):
        if "$tensor" in tree:
            return tensors[tree["$tensor"]]
        return {k: unpack(v, tensors) for k, v in tree["$dict"]}
    return [unpack(v, tensors) for v in tree] if isinstance(tree, list) else tree


def save(
    folder: Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    trainer: Any,
    state: Mapping[str, Any],
    codec: Mapping[str, Tensor] | None = None,
    recipe: str = "",
) -> Path:
    """Write checkpoint `step` under `folder` and point `latest` at it.

    codec: its statistics; recipe: TOML text. With these a checkpoint can be used apart from its run.
    Raises StageError (exit 1) where it cannot be written; what was there before stays as it was.
    """
    final = folder / name_of(step)
    partial, stale = (folder / f".{final.name}.{kind}" for kind in ("partial", "stale"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        tree, tensors = pack(trainer)
        save_file(_plain(model), partial / "model.safetensors")
        save_file(_plain(ema), partial / "ema.safetensors")
        save_file(_plain(codec or {}), partial / "codec.safetensors")
        (partial / "recipe.toml").write_text(recipe, encoding="utf-8")
        save_file(tensors or {"empty": torch.zeros(1)}, partial / "trainer.safetensors")
        write_atomic(
            partial / "state.json",
            json.dumps({"step": step, **finite(dict(state)), "trainer": tree}),
        )
        for file in partial.iterdir():
            _sync(file)
        shutil.rmtree(stale, ignore_errors=True)
        if (
            final.exists()
        ):  # a step trained again after a kill: moved aside until the new one is in place
            os.replace(final, stale)
        os.replace(partial, final)
        _sync(folder)
        write_atomic(folder / "latest", final.name + "\n")
        shutil.rmtree(stale, ignore_errors=True)
    except Exception as error:  # safetensors reports a full disk by an error type of its own
        shutil.rmtree(partial, ignore_errors=True)
        if stale.exists() and not final.exists():
            stale.rename(final)
        raise StageError(
            f"cannot write the checkpoint of step {step}",
            problems=[Problem(str(final), str(error))],
            hint="the previous checkpoint is intact: free some space and run the same command again",
            exit_code=EXIT_FAILED,
        ) from error
    return final


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in state.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that are whole, in order."""
    names = (path.parent.name for path in folder.glob("step_*/state.json"))
    return sorted(int(name[5:]) for name in names if re.fullmatch("step_[0-9]{8,}", name))


def find(folder: Path, which: str = "latest") -> Path:
    """`latest`, a step number or a directory name -> checkpoint. Raises StageError naming those there are."""
    there = steps(folder)
    if which == "latest" and there:
        pointer = folder / "latest"
        named = pointer.read_text(encoding="utf-8").strip() if pointer.exists() else ""
        path = folder / named
        return path if named and (path / "state.json").exists() else folder / name_of(there[-1])
    digits = which.removeprefix("step_")
    if digits.isdecimal() and int(digits) in there:
        return folder / name_of(int(digits))
    raise StageError(
        f"no checkpoint {which!r} under {folder}",
        hint=f"there are: {', '.join(map(str, there))}"
        if there
        else "the run has not saved one yet",
    )


def load_weights(path: Path, which: str = "ema") -> dict[str, Tensor]:
    """Weights of a checkpoint, `ema` or `model`."""
    try:
        return load_file(path / f"{which}.safetensors")
    except Exception as error:
        raise StageError(
            f"the checkpoint {path} is damaged",
            problems=[Problem(f"{which}.safetensors", str(error))],
        ) from error


def load_state(path: Path) -> tuple[dict[str, Any], Any]:
    """(state.json without the trainer part, the trainer part with its tensors)."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        tensors = load_file(path / "trainer.safetensors")
    except Exception as error:
        raise StageError(
            f"the checkpoint {path} is damaged", problems=[Problem(str(path), str(error))]
        ) from error
    return state, unpack(state.pop("trainer"), tensors)


def rotate(folder: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one."""
    there = steps(folder)
    for step in there[:-keep]:
        if step != best_step:
            path = folder / name_of(step)
            (path / "state.json").unlink()  # first: what a kill leaves of it is then no checkpoint
            shutil.rmtree(path)
