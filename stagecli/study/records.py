"""The files of a study beside its runs: study.toml, study.json and scores.jsonl. No torch.

DIR/  study.toml (a copy)  study.json (what the report reads)  scores.jsonl  log.txt
      runs/ARM-SEED/       ordinary run directories

A row of scores.jsonl is the record that this (arm, seed, step, strength) is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stagecli.errors import Problem, StageError
from stagecli.evaluate.label_limits import VERSION
from stagecli.files import JsonRow, append_json_lines, read_json, read_json_lines, write_atomic
from stagecli.files import write_json as write_json_file
from stagecli.recipe.signature import flatten
from stagecli.schema import Recipe
from stagecli.study.plan import RunId, Study

SCORES = "scores.jsonl"
INFO = "study.json"
COPY = "study.toml"
LOG = "log.txt"

Done = set[tuple[int, float | None]]
"""(step, strength) that are scored."""


def scored(folder: Path, run: RunId) -> Done:
    """What is scored of a run."""
    path = folder / SCORES
    done: Done = set()
    for _, row in read_json_lines(path) if path.exists() else ():
        if not isinstance(row, dict) or (row.get("arm"), row.get("seed")) != run:
            continue
        step = row.get("step")
        strength = row.get("strength")
        if isinstance(step, int):
            done.add((step, None if strength is None else float(strength)))
    return done


def missing(study: Study, run: RunId) -> dict[int, list[float | None]]:
    """Step -> strengths of a run that are to be scored."""
    done = scored(study.folder, run)
    by_step = {
        step: [strength for strength in study.strengths if (step, strength) not in done]
        for step in study.score.steps
    }
    return {step: strengths for step, strengths in by_step.items() if strengths}


def append_scores(study: Study, run: RunId, rows: list[JsonRow]) -> None:
    """Add rows, which have step, strength and scores, of a run. Raises OSError."""
    head = {"arm": run.arm, "seed": run.seed}
    append_json_lines(study.folder / SCORES, [{**head, **row} for row in rows])


def write_study(study: Study, recipe: Recipe, metrics: Mapping[str, JsonRow]) -> None:
    """Write study.toml and study.json. recipe: of the baseline. Raises OSError."""
    arms = {
        name: {
            "summary": arm.summary,
            "seeds": list(arm.seeds),
            "set": dict(arm.overrides),
            "adaptive": arm.adaptive,
        }
        for name, arm in study.arms.items()
    }
    study.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(study.folder / COPY, study.text)
    write_json_file(
        study.folder / INFO,
        {
            "name": study.name,
            "recipe": recipe.about.name or study.recipe.stem,
            "task": study.task,
            "steps": study.steps,
            "baseline": study.baseline,
            "against": list(study.against),
            "primary": study.score.primary,
            "score_steps": list(study.score.steps),
            "strengths": list(study.strengths),
            "metrics": dict(metrics),
            "arms": arms,
            "scoring": scoring(study, recipe),
        },
    )


def scoring(study: Study, recipe: Recipe) -> JsonRow:
    """Everything besides the weights that a score depends on; recipe: of the baseline."""
    score = study.score
    keys = {key: value for key, value in flatten(recipe).items() if key.startswith("evaluate.")}
    unused = ("evaluate.samples", "evaluate.steps", "evaluate.cfg_scale", "evaluate.batch_size")
    recognised = {"label network": VERSION} if study.task == "t2a" else {}
    return {
        "score.split": score.split,
        "score.clips": score.clips,
        "score.sampler_steps": score.sampler_steps,
        **recognised,
        **{key: value for key, value in keys.items() if key not in unused},
    }


def refuse_other_scoring(study: Study, recipe: Recipe) -> None:
    """Raises StageError where the folder has scores that were made in another way."""
    try:
        before = read_json(study.folder / INFO)["scoring"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    if not (study.folder / SCORES).exists():
        return
    now = scoring(study, recipe)
    changed = [key for key, value in now.items() if before.get(key) != value]
    if changed:
        raise StageError(
            f"the scores in {study.folder} were made in another way",
            problems=[
                Problem(key, f"{before.get(key)!r} in the study, {now[key]!r} now")
                for key in changed
            ],
            hint="restore these values, or give another folder with -o",
        )
