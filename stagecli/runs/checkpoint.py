"""Checkpoints: safetensors and JSON, written whole or not at all; no pickle.

checkpoints/step_00010000/  model.safetensors  ema.safetensors  codec.safetensors  recipe.toml
                            trainer.safetensors  state.json  sha256sums.txt
checkpoints/latest          name of the newest one, for other programs
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.files import JsonRow, finite, write_atomic
from stagecli.runs.integrity import (
    GENERATES,
    STATE,
    Warn,
    damage,
    folders,
    name_of,
    newest_whole,
    read_state,
    write_sums,
)

Tensors = Mapping[str, Tensor]
NAME_DIGITS = 13  # of the longest step in a name


def save(
    folder: Path,
    step: int,
    *,
    model: Tensors,
    ema: Tensors,
    trainer: Any,
    state: Mapping[str, Any],
    codec: Tensors | None = None,
    recipe: str = "",
) -> Path:
    """Write checkpoint `step` under `folder` and point `latest` at it.

    trainer: what a resume needs besides the weights, any tree that `pack` takes; state: numbers for
    state.json; codec: its statistics; recipe: TOML text. With the last two a checkpoint can be used
    apart from its run. Raises StageError (exit code 1) where it cannot be written; everything that
    was there before is then as it was.
    """
    final = folder / name_of(step)
    partial = folder / f".{final.name}.partial"
    stale = folder / f".{final.name}.stale"
    try:
        # Everything into a directory beside it.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        tree, tensors = pack(trainer)
        save_file(_plain(model), partial / "model.safetensors")
        save_file(_plain(ema), partial / "ema.safetensors")
        save_file(_plain(codec or {}), partial / "codec.safetensors")
        (partial / "recipe.toml").write_text(recipe, encoding="utf-8")
        save_file(tensors or {"empty": torch.zeros(1)}, partial / "trainer.safetensors")
        # The numbers are strict JSON; the trainer's tree keeps NaN, which a resume needs.
        content = {"step": step, **finite(dict(state)), "trainer": tree}
        write_atomic(partial / STATE, json.dumps(content))
        write_sums(partial)
        for file in partial.iterdir():
            _sync(file)

        # Into its place. A step trained again after a kill has an old directory there, which stays
        # available until then.
        shutil.rmtree(stale, ignore_errors=True)
        if final.exists():
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
            hint="the previous checkpoint is intact: "
            "free some space and run the same command again",
            exit_code=EXIT_FAILED,
        ) from error
    return final


def _plain(tensors: Tensors) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that have been written to the end, in order."""
    return sorted(step for step, path in folders(folder).items() if (path / STATE).exists())


def resolve(
    folder: Path,
    which: str = "latest",
    *,
    needed: Sequence[str] = GENERATES,
    warn: Warn | None = None,
) -> Path:
    """`latest` (the newest that is whole), a step or a directory name -> path of a checkpoint.

    needed: files that must be whole; warn: receives why newer ones are not. Raises StageError that
    names those there are.
    """
    if which == "latest":
        choice = newest_whole(folder, needed)
        if choice is not None:
            for path, reason in choice.passed_over:
                if warn is not None:
                    warn(f"{path} is damaged ({reason}): using {choice.path.name}")
            return choice.path
    saved = steps(folder)
    digits = which.removeprefix("step_")
    hint = f"there are: {', '.join(map(str, saved))}" if saved else "the run has not saved one yet"
    known = digits.isdecimal() and len(digits) <= NAME_DIGITS and int(digits) in saved
    if not known:
        raise StageError(f"no checkpoint {which!r} under {folder}", hint=hint)
    path = folder / name_of(int(digits))
    problem = damage(path, needed)
    if problem is not None:
        raise damaged(path, problem)
    return path


def damaged(path: Path, reason: str) -> StageError:
    """The error about a checkpoint that cannot be used, with the ways out."""
    others = [step for step in steps(path.parent) if name_of(step) != path.name]
    hint = "restore it from a backup, or train again: --restart moves the run aside"
    if others:
        hint = (
            f"use another one ({', '.join(map(str, others))}): "
            "--checkpoint STEP, or train --from-checkpoint STEP"
        )
    return StageError(
        f"the checkpoint {path} is damaged", problems=[Problem(str(path), reason)], hint=hint
    )


def load_weights(path: Path, which: str = "ema") -> dict[str, Tensor]:
    """Tensors of a checkpoint: `ema`, `model` or `codec`. Raises StageError where it is damaged."""
    try:
        return load_file(path / f"{which}.safetensors")
    except Exception as error:
        raise damaged(path, f"{which}.safetensors: {error}") from error


def load_state(path: Path) -> tuple[JsonRow, Any]:
    """(state.json without the trainer part, the trainer part with its tensors).

    Raises StageError where it is damaged.
    """
    try:
        state = read_state(path)
        tensors = load_file(path / "trainer.safetensors")
        return state, unpack(state.pop("trainer"), tensors)
    except Exception as error:
        raise damaged(path, str(error)) from error


def rotate(folder: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one."""
    for step in steps(folder)[:-keep]:
        if step != best_step:
            remove(folder, step)


def remove(folder: Path, step: int) -> None:
    """Remove a checkpoint; a kill leaves it whole or under a name that is swept. Raises OSError."""
    path = folder / name_of(step)
    removed = folder / f".{path.name}.removed"
    shutil.rmtree(removed, ignore_errors=True)
    path.rename(removed)
    shutil.rmtree(removed)


# -- nested state as JSON and tensors ------------------------------------------------------------


def pack(
    tree: Any, path: str = "", tensors: dict[str, Tensor] | None = None
) -> tuple[Any, dict[str, Tensor]]:
    """Nested dicts and lists -> (JSON with {"$tensor": key} for each tensor, tensors by key).

    path, tensors: where in the tree this part is, and what the parts before it hold; for recursion.
    """
    tensors = {} if tensors is None else tensors
    if isinstance(tree, Tensor):
        key = path or "tensor"
        while key in tensors:  # {"a/b": x, "a": {"b": y}} or {1: x, "1": y}
            key += "'"
        tensors[key] = tree.detach().cpu().contiguous().clone()
        return {"$tensor": key}, tensors
    if isinstance(tree, Mapping):
        pairs = [[k, pack(v, f"{path}/{k}", tensors)[0]] for k, v in tree.items()]
        return {"$dict": pairs}, tensors
    if isinstance(tree, (list, tuple)):
        return [pack(v, f"{path}/{i}", tensors)[0] for i, v in enumerate(tree)], tensors
    return tree, tensors


def unpack(tree: Any, tensors: Tensors) -> Any:
    """The inverse of `pack`; tuples come back as lists."""
    if isinstance(tree, dict):
        if "$tensor" in tree:
            return tensors[tree["$tensor"]]
        return {k: unpack(v, tensors) for k, v in tree["$dict"]}
    return [unpack(v, tensors) for v in tree] if isinstance(tree, list) else tree
