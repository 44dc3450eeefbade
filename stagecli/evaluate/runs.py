"""Runs and checkpoints -> documents of scores, kept in the run, and differences between them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagecli import __version__
from stagecli.data.cache import Progress
from stagecli.data.examples import evenly
from stagecli.data.open import open_source
from stagecli.data.rows import Clip, Split
from stagecli.data.source import Source
from stagecli.errors import Problem, StageError
from stagecli.evaluate.clap import Clap
from stagecli.evaluate.ledger import Ledger, fingerprint
from stagecli.evaluate.sets import set_difference
from stagecli.evaluate.sr import SROptions, by_label, score_sr
from stagecli.evaluate.summary import JsonRow, difference, name_of
from stagecli.evaluate.t2a import T2AOptions, T2AScores, sampling_identity, score_t2a
from stagecli.files import finite, write_atomic
from stagecli.generate.pipeline import Pipeline, SamplerSettings, load_pipeline
from stagecli.recipe.load import load_from_run
from stagecli.runs import checkpoint
from stagecli.runs.directory import command_line, environment, read_info
from stagecli.schema import Recipe
from stagecli.ssl import open_encoder, same_checkpoint
from stagecli.ssl.base import Encoder
from stagecli.stage import registry

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What a command line asked for; None or empty: what the recipe says.

    task: refuse runs of another; sampling: sampler settings (steps, cfg_scale, sampler) that override the recipe's;
    quick (t2a): distances only, nothing that needs the whole training split; command: as typed, kept in the document.
    """

    task: str | None = None
    split: Split = "test"
    seed: int | None = None
    samples: int | None = None
    sampling: Mapping[str, Any] | None = None
    cutoffs: tuple[float, ...] = ()
    preset: str | None = None
    perceptual: bool = False
    by: str | None = None
    judge: str | None = None
    clap: str | None = None
    labels: tuple[str, ...] = ()
    quick: bool = False


@dataclass
class Outcome:
    """One run and checkpoint: the document, and what differences are taken of (per_clip of sr by cutoff)."""

    document: JsonRow
    per_clip: dict[str, dict[str, dict[str, float]]]
    sets: T2AScores | None = None


@dataclass
class Job:
    """One evaluation: what is scored, how, and what is known of it. decides: everything that the scores depend on."""

    folder: Path
    name: str
    pipeline: Pipeline
    source: Source
    clips: list[Clip]
    seed: int
    settings: SamplerSettings
    identity: JsonRow
    facts: JsonRow
    decides: JsonRow
    progress: Progress
    note: Say
    say: Say


def evaluate_run(
    run_dir: Path,
    which: str = "latest",
    asked: Asked | None = None,
    *,
    progress: Progress = lambda what, done, total: None,
    warn: Say = lambda line: None,
    say: Say = lambda line: None,
) -> Outcome:
    """Score one checkpoint of a run on clips of one split; the document is also written to the run's evals/.

    The same call again takes up what a killed one has finished: samples that were generated, clips that were scored.
    Raises StageError.
    """
    asked = asked or Asked()
    pipeline, path = load_pipeline(run_dir, which)
    recipe = pipeline.recipe
    kind = pipeline.recipe.task.kind
    _suits(run_dir, kind, asked)
    settings = SamplerSettings.of(recipe.evaluate, **(asked.sampling or {}))
    judge = _judge(recipe, asked.judge or recipe.evaluate.judge, warn) if kind == "t2a" else None
    full = kind == "t2a" and not asked.quick and asked.split != "train"
    if kind == "t2a" and asked.split == "train" and not asked.quick:
        warn(
            "split train: distances only; what is compared with the training split would be compared with itself"
        )
    if full and asked.split == "valid":
        warn(
            "split valid: the L2 of the classifier of prompt accuracy was chosen on the clips that are scored"
        )
    source = _source(recipe, asked.split, full, progress)
    clips = evenly(source.clips(asked.split), asked.samples or recipe.evaluate.samples)
    seed = recipe.evaluate.seed if asked.seed is None else asked.seed
    identity = sampling_identity(str(read_info(run_dir).get("id")), path / "ema.safetensors")
    facts: JsonRow = {
        "task": kind,
        "run": str(run_dir),
        "checkpoint": path.name,
        "split": asked.split,
        "clips": len(clips),
        "sample_rate": pipeline.sample_rate,
        "seed": seed,
        "sampler": settings.sampler,
        "steps": settings.steps,
        "cfg_scale": settings.cfg_scale,
    }
    decides: JsonRow = {
        **{k: v for k, v in facts.items() if k != "run"},
        **identity,
        "version": __version__,
        "cfg_interval": list(settings.cfg_interval),
        "batch_size": settings.batch_size,
        "data": recipe.data.model_dump(mode="json"),
        "clip_keys": fingerprint({"keys": [clip.key for clip in clips]}),
    }
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        warn(line)

    folder = run_dir / "evals"
    name = f"{path.name}_{asked.split}"
    try:
        folder.mkdir(exist_ok=True)
        write_atomic(folder / ".writable", "")
        (folder / ".writable").unlink()
    except OSError as error:
        problem = Problem(str(folder), error.strerror or str(error))
        raise StageError("cannot keep results in the run", problems=[problem]) from error
    job = Job(
        folder,
        name,
        pipeline,
        source,
        clips,
        seed,
        settings,
        identity,
        facts,
        decides,
        progress,
        note,
        say,
    )
    outcome, rows, conventions = _sr(job, asked) if judge is None else _t2a(job, asked, judge, full)
    document = {**facts, "conventions": conventions, "rows": rows, "notes": notes}
    document |= {
        "settings": decides,
        "command": " ".join(command_line()),
        "environment": environment(),
    }
    outcome.document = finite(document)
    file = folder / f"{name}_{fingerprint(decides)}.json"
    write_atomic(file, json.dumps(outcome.document, indent=1))
    outcome.document = {**outcome.document, "file": str(file)}
    return outcome


Scored = tuple[Outcome, list[JsonRow], dict[str, str]]


def _sr(job: Job, asked: Asked) -> Scored:
    table = job.pipeline.recipe.evaluate
    cutoffs = asked.cutoffs or table.cutoffs
    if asked.by:
        by_label(job.clips, asked.by)
    of_clip = {"filter": table.filter, "order": table.order, "preset": asked.preset or table.preset}
    job.decides |= {**of_clip, "perceptual": asked.perceptual}
    # Neither the list of cutoffs nor the grouping changes the scores of a clip.
    ledger = Ledger(job.folder / f"{job.name}_{fingerprint(job.decides)}.clips.jsonl")
    if ledger.found:
        job.say(f"{ledger.found} scores with the same settings are there already, in {ledger.path}")
    job.decides |= {"cutoffs": list(cutoffs), "by": asked.by}
    options = SROptions(True, asked.preset, asked.perceptual, asked.by, ledger, job.note)
    rows, conventions = score_sr(
        job.pipeline, job.source, job.clips, cutoffs, job.seed, job.settings, job.progress, options
    )
    outcome = Outcome({}, {})
    for cutoff in cutoffs:
        what = f"{cutoff:g} Hz"
        outcome.per_clip[what] = {
            clip.key: (ledger.get(what, clip.key) or {})["model"] for clip in job.clips
        }
    return outcome, rows, conventions


def _t2a(job: Job, asked: Asked, judge: Encoder, full: bool) -> Scored:
    clap = Clap(asked.clap, job.pipeline.device) if asked.clap else None
    samples = job.folder / f"{job.name}_{fingerprint({**job.identity, 'facts': job.facts})}_samples"
    job.decides |= {
        "judge": judge.label,
        "judge_weights": judge.fingerprint(),
        "full": full,
        "labels": list(asked.labels),
        "clap": clap.convention if clap else None,
    }
    options = T2AOptions(full, asked.labels, clap, job.identity, job.note)
    scores = score_t2a(
        job.pipeline,
        job.source,
        job.clips,
        job.seed,
        job.settings,
        samples,
        judge,
        job.progress,
        options,
    )
    job.facts |= {"judge": judge.label, "samples": str(samples)}
    if scores.memorisation:
        job.facts["memorisation"] = scores.memorisation
    return Outcome({}, {"samples": scores.per_clip}, scores), scores.rows, scores.conventions


def _suits(run_dir: Path, kind: str, asked: Asked) -> None:
    """Raises StageError where an option is for the other task, instead of passing over it."""
    if asked.task and asked.task != kind:
        raise StageError(f"{run_dir} is a {kind} run, not {asked.task}")
    options_of: dict[str, dict[str, Any]] = {
        "t2a": {
            "--cutoff": asked.cutoffs,
            "--preset": asked.preset,
            "--perceptual": asked.perceptual,
            "--by": asked.by,
        },
        "sr": {
            "--judge": asked.judge,
            "--clap": asked.clap,
            "--label": asked.labels,
            "--quick": asked.quick,
        },
    }
    wrong = [flag for flag, value in options_of[kind].items() if value]
    if wrong:
        raise StageError(
            f"{', '.join(wrong)}: not for {kind}",
            problems=[Problem(str(run_dir), f"is a {kind} run")],
        )


def _source(recipe: Recipe, split: Split, full: bool, progress: Progress) -> Source:
    splits: list[Split] = [split]
    if recipe.task.kind == "t2a":
        splits = list(dict.fromkeys(["train", *(["valid"] if full else []), split]))  # type: ignore[list-item]
    return open_source(
        recipe.data,
        need_captions=recipe.condition.text != "none",
        base=Path.cwd(),
        splits=splits,
        seed=recipe.train.seed,
        progress=lambda done, total: progress("checking audio", done, total),
    )


def _judge(recipe: Recipe, name: str, warn: Say) -> Encoder:
    """The judge. Raises StageError where it taught the run or steered it, under whatever name."""
    judge = open_encoder(name)
    for use in registry.encoders(recipe.stage):
        same = same_checkpoint(name, use.encoder)
        if not same:
            try:
                same = open_encoder(use.encoder).fingerprint() == judge.fingerprint()
            except StageError as error:
                warn(
                    f"the {use.role} {use.encoder} cannot be opened ({error.message}): "
                    "compared with the judge by name only"
                )
        if same:
            raise StageError(
                f"judge {name} was the {use.role} of this run, "
                "and would score what it has itself steered",
                problems=[Problem(use.key, f"is {use.encoder}")],
                hint="choose another encoder with --judge",
            )
    return judge


def evaluate_runs(
    runs: Sequence[Path],
    checkpoints: Sequence[str],
    asked: Asked,
    *,
    progress: Progress,
    warn: Say,
    say: Say,
) -> tuple[list[JsonRow], list[JsonRow]]:
    """Documents of every run and checkpoint, in order, and the differences of each from the first."""
    for run in runs:
        info = read_info(
            run
        )  # before any work: is it a run, do the options suit it, are the checkpoints there?
        _suits(run, str(info.get("task")), asked)
        if len(runs) > 1 and info.get("task") == "t2a":
            recipe = load_from_run(run / "recipe.toml")
            _judge(recipe, asked.judge or recipe.evaluate.judge, warn)
        for which in checkpoints:
            if which != "best":
                checkpoint.resolve(run / "checkpoints", which)
            elif not info.get("best"):
                raise StageError(
                    f"{run} has no best checkpoint yet", hint="use --checkpoint latest"
                )
    outcomes = [
        evaluate_run(run, which, asked, progress=progress, warn=warn, say=say)
        for run in runs
        for which in checkpoints
    ]
    first, *others = outcomes
    return [one.document for one in outcomes], [finite(compared(first, other)) for other in others]


def compared(a: Outcome, b: Outcome) -> JsonRow:
    """b - a, paired over the clips that both have scores of; rows as in a document, notes on what is left out."""
    result: JsonRow = {"a": name_of(a.document), "b": name_of(b.document), "rows": [], "notes": []}
    tasks = a.document["task"], b.document["task"]
    if tasks[0] != tasks[1]:
        result["notes"].append(f"a {tasks[0]} and a {tasks[1]} run have no metric in common")
        return result
    rates = a.document["sample_rate"], b.document["sample_rate"]
    if rates[0] != rates[1]:
        result["notes"].append(f"figures at {rates[0]} Hz and at {rates[1]} Hz do not compare")
        return result
    for what, scores in a.per_clip.items():
        other = b.per_clip.get(what, {})
        shared = sum(key in other for key in scores)
        if shared < len(scores) or shared < len(other):
            result["notes"].append(
                f"{what}: {shared} clips are in both, of {len(scores)} and {len(other)}"
            )
        if not shared:
            continue
        metrics = difference(scores, other, a.document["seed"])
        row: JsonRow = {"system": "samples" if a.sets else "model", "n": shared, "metrics": metrics}
        if a.sets and b.sets:
            if a.document["judge"] != b.document["judge"]:
                result["notes"].append(
                    "the runs were judged by different encoders: no difference of distances"
                )
            elif list(scores) == list(other):
                metrics |= set_difference(
                    a.sets.reference, a.sets.samples, b.sets.samples, a.document["seed"]
                )
            result["notes"].append(
                "no interval is given for differences of the other figures of sets"
            )
        else:
            row["cutoff"] = float(what.partition(" ")[0])
        result["rows"].append(row)
    return result
