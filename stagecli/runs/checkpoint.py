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
from stagecli.files import JsonRow, finite, write_atomic

Tensors = Mapping[str, Tensor]


def name_of(step: int) -> str:
    """Directory name of a checkpoint."""
    return f"step_{step:08d}"


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
        write_atomic(partial / "state.json", json.dumps(content))
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
    """Steps of the checkpoints that are whole, in order; links to elsewhere are none.

    Raises StageError where the folder itself leads out of its run.
    """
    if not folder.resolve().is_relative_to(folder.parent.resolve()):
        raise StageError(
            f"{folder} is a link that leads out of the run",
            hint="move its target into the run; to train on another disk, use --runs-dir there",
        )
    inside = [
        path.parent.name
        for path in folder.glob("step_*/state.json")
        if path.resolve() == folder.resolve() / path.parent.name / path.name
    ]
    return sorted(int(name[5:]) for name in inside if re.fullmatch("step_[0-9]{8,}", name))


def resolve(folder: Path, which: str = "latest") -> Path:
    """`latest`, a step number or a directory name -> path of a checkpoint.

    Raises StageError, which names those there are.
    """
    saved = steps(folder)
    if which == "latest" and saved:
        pointer = folder / "latest"
        name = pointer.read_text(encoding="utf-8").strip() if pointer.exists() else ""
        if name in map(name_of, saved):
            return folder / name
        return folder / name_of(saved[-1])
    digits = which.removeprefix("step_")
    if digits.isdecimal() and int(digits) in saved:
        return folder / name_of(int(digits))
    hint = f"there are: {', '.join(map(str, saved))}" if saved else "the run has not saved one yet"
    raise StageError(f"no checkpoint {which!r} under {folder}", hint=hint)


def load_weights(path: Path, which: str = "ema") -> dict[str, Tensor]:
    """Tensors of a checkpoint: `ema`, `model` or `codec`. Raises StageError where it is damaged."""
    try:
        return load_file(path / f"{which}.safetensors")
    except Exception as error:
        raise StageError(
            f"the checkpoint {path} is damaged",
            problems=[Problem(f"{which}.safetensors", str(error))],
        ) from error


def load_state(path: Path) -> tuple[JsonRow, Any]:
    """(state.json without the trainer part, the trainer part with its tensors).

    Raises StageError where it is damaged.
    """
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
    for step in steps(folder)[:-keep]:
        if step != best_step:
            path = folder / name_of(step)
            (path / "state.json").unlink()  # first, so that a kill leaves no half checkpoint
            shutil.rmtree(path)


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
