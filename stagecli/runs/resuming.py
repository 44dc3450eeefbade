"""Whether a run may be resumed: the same recipe, comparable scores. No torch."""

from __future__ import annotations

from pathlib import Path

from stagecli.errors import Problem, StageError
from stagecli.files import JsonRow
from stagecli.recipe.load import load_from_run
from stagecli.recipe.signature import flatten, signature, signed_keys
from stagecli.report.rows import read_rows
from stagecli.runs.integrity import folders
from stagecli.schema import Recipe

MOST_ATTEMPTS = 10_000  # a larger number in a row is damage

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


def refuse_other_recipe(recipe: Recipe, folder: Path, info: JsonRow, before: Recipe | None) -> None:
    """Raises StageError, with the difference, where `folder` holds a run of another recipe.

    info: its run.json; before: its recipe, None where that cannot be read.
    """
    if info["signature"] == signature(recipe):
        return
    if before is None:
        problems = [Problem(str(folder / "recipe.toml"), "cannot be read, so they do not compare")]
    else:
        old = signed_keys(before)
        new = signed_keys(recipe)
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        problems = [
            Problem(key, f"{old.get(key)!r} in the run, {new.get(key)!r} now") for key in changed
        ]
    if not problems:  # signed by an earlier version, under which a key had another name
        return
    raise StageError(
        f"{folder} holds a run of a different recipe",
        problems=problems,
        hint="train under another name with --name, or with --restart, "
        "which moves the old run aside",
    )


def saved_recipe(folder: Path) -> tuple[Recipe | None, list[str]]:
    """(the recipe of a run, or that of its newest checkpoint, what could not be read)."""
    damage: list[str] = []
    for path in (folder, *folders(folder / "checkpoints").values()):
        try:
            return load_from_run(path / "recipe.toml"), damage
        except StageError as error:
            damage.append(f"{path / 'recipe.toml'}: {error.message}")
    return None, damage


def recipe_of_checkpoint(run: Path, checkpoint: Path) -> tuple[Recipe, list[str]]:
    """(the recipe to use a checkpoint with, why it is not that of the run).

    The run's recipe.toml is that, and may have newer settings of the evaluation. Where it cannot be
    read, or describes another model than the checkpoint's own copy, the copy is used. Raises
    StageError where neither can be read.
    """
    path = run / "recipe.toml"
    copy = checkpoint / "recipe.toml"
    if not copy.exists() or not copy.stat().st_size:
        return load_from_run(path), []
    try:
        recipe = load_from_run(path)
    except StageError as error:
        return load_from_run(copy), [f"{path}: {error.message}"]
    trained = load_from_run(copy)
    now = signed_keys(recipe)
    changed = [key for key, value in signed_keys(trained).items() if now.get(key) != value]
    if changed:
        return trained, [f"{path}: {', '.join(changed)} changed since the checkpoint"]
    return recipe, []


def attempts_in_rows(folder: Path) -> list[JsonRow]:
    """The attempts of a run whose run.json is lost, as far as its rows show them."""
    first: dict[int, int] = {}
    for row in read_rows(folder / "metrics.jsonl", [], expected=False):
        if 0 < row["attempt"] <= MOST_ATTEMPTS:
            first.setdefault(row["attempt"], max(0, row["step"] - 1))
    numbers = range(1, max(first, default=1) + 1)
    return [
        {"attempt": number, "from_step": first.get(number, 0), "ended": None, "status": "unknown"}
        for number in numbers
    ]


def evaluation_changes(before: Recipe, now: Recipe) -> list[str]:
    """Settings that make scores incomparable with those before, as "key: before -> now"."""
    old = flatten(before)
    new = flatten(now)
    keys = [key for key in new if key.startswith(SCORE_KEYS) and key not in NOT_SCORE_KEYS]
    return [f"{key}: {old.get(key)!r} -> {new[key]!r}" for key in keys if old.get(key) != new[key]]
