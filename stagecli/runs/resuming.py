"""Whether a run may be resumed: the same recipe, no other writer, comparable scores. No torch."""

from __future__ import annotations

import os
from pathlib import Path

from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.files import JsonRow
from stagecli.recipe.load import load_from_run
from stagecli.recipe.signature import flatten, signature, signed_keys
from stagecli.schema import Recipe

# Keys that scores of a run depend on besides the weights, as prefixes; and those that they do not
# depend on: of the `evaluate` command alone, or without effect on a score.
SCORE_KEYS = (
    "train.validate_clips",
    "train.validate_t",
    "train.evaluate_clips",
    "train.evaluate_steps",
    "evaluate.",
)
NOT_SCORE_KEYS = ("evaluate.batch_size", "evaluate.samples")


def refuse_other_recipe(recipe: Recipe, folder: Path, info: JsonRow) -> None:
    """Raises StageError, with the difference, where `folder` holds a run of another recipe.

    info: its run.json.
    """
    if info["signature"] == signature(recipe):
        return
    before = signed_keys(load_from_run(folder / "recipe.toml"))
    now = signed_keys(recipe)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if not changed:  # signed by an earlier version, under which a key had another name
        return
    raise StageError(
        f"{folder} holds a run of a different recipe",
        problems=[
            Problem(key, f"{before.get(key)!r} in the run, {now.get(key)!r} now") for key in changed
        ],
        hint="train under another name with --name, or with --restart, "
        "which moves the old run aside",
    )


def evaluation_changes(before: Recipe, now: Recipe) -> list[str]:
    """Settings that make scores incomparable with those before, as "key: before -> now"."""
    old = flatten(before)
    new = flatten(now)
    keys = [key for key in new if key.startswith(SCORE_KEYS) and key not in NOT_SCORE_KEYS]
    return [f"{key}: {old.get(key)!r} -> {new[key]!r}" for key in keys if old.get(key) != new[key]]


def refuse_second_writer(folder: Path, info: JsonRow) -> None:
    """Raises StageError where another living process writes the run; info: its run.json."""
    attempt = info["attempts"][-1] if info["attempts"] else None
    if not attempt or attempt["status"] != "running" or attempt["pid"] == os.getpid():
        return
    try:
        command = Path(f"/proc/{attempt['pid']}/cmdline").read_bytes()
    except OSError:
        return  # killed: the resume continues from its last checkpoint
    if b"stagecli" in command:
        raise StageError(
            f"{folder} is being written by process {attempt['pid']}",
            hint="wait for it or stop it first; `stagecli inspect-regime` can watch it",
            exit_code=EXIT_FAILED,
        )
