"""Checkpoints of runs -> documents of scores, kept in the run, and differences between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagecli import __version__
from stagecli.data.cache import Progress
from stagecli.data.examples import evenly
from stagecli.errors import Problem, StageError
from stagecli.evaluate.chosen import CLASSIFIED, chosen_metrics
from stagecli.evaluate.data import ALL, open_data
from stagecli.evaluate.differences import Outcome, compare_outcomes
from stagecli.evaluate.flags import Flags, check_cutoffs, check_run_flags
from stagecli.evaluate.inputs import score_inputs
from stagecli.evaluate.job import Job, Scores
from stagecli.evaluate.ledger import fingerprint
from stagecli.evaluate.samples import sampling_identity
from stagecli.evaluate.sr import score_sr
from stagecli.evaluate.t2a import score_t2a
from stagecli.files import JsonRow, finite, write_atomic, write_json
from stagecli.generate.pipeline import Pipeline, SamplerSettings, load_pipeline
from stagecli.generate.trained import Trained, find_trained
from stagecli.recipe.load import load_from_run
from stagecli.recipe.signature import UNSIGNED
from stagecli.runs.directory import command_line, environment
from stagecli.runs.exports import read_model_info
from stagecli.schema import Recipe
from stagecli.ssl import open_encoder, same_checkpoint
from stagecli.ssl.base import Encoder
from stagecli.stage import registry

Say = Callable[[str], None]
# Keys of `[data]` that decide where and how clips are read, not which: not part of an evaluation.
PLACES = UNSIGNED["data"]


def evaluate_runs(
    flags: Flags, runs: Sequence[Path], *, progress: Progress, warn: Say, note: Say
) -> tuple[list[JsonRow], list[JsonRow]]:
    """Documents of every run and checkpoint, in order, and the difference of each from the first.

    Raises StageError; what concerns any of the runs is checked before work on the first begins.
    """
    checkpoints = flags.checkpoints or ["latest"]
    for run in runs:
        _check_run(run, checkpoints, flags, judged=len(runs) > 1, warn=warn)
    first, *others = [
        evaluate_run(run, which, flags, progress=progress, warn=warn, note=note)
        for run in runs
        for which in checkpoints
    ]
    differences = [finite(compare_outcomes(first, other)) for other in others]
    return [outcome.document for outcome in (first, *others)], differences


def _check_run(
    run: Path, checkpoints: Sequence[str], flags: Flags, *, judged: bool, warn: Say
) -> None:
    """Raise StageError unless run, checkpoints and flags fit; judged: check the judge too."""
    info = read_model_info(run)
    check_run_flags(flags, str(info.get("task")), run)
    if judged and info.get("task") == "t2a":
        recipe = load_from_run(run / "recipe.toml")
        _judge(recipe, flags.judge or recipe.evaluate.judge, warn)
    for which in checkpoints:
        find_trained(run, which)


def evaluate_run(
    run_dir: Path, which: str, flags: Flags, *, progress: Progress, warn: Say, note: Say
) -> Outcome:
    """Score one checkpoint (latest, best, or a step) of a run; the document is kept in its evals/.

    The same call after an interruption reuses what is finished: samples and scores of clips.
    Raises StageError.
    """
    notes: list[str] = []

    def keep_and_warn(line: str) -> None:
        notes.append(line)
        warn(line)

    # Refuse what does not fit before any work.
    pipeline, trained = load_pipeline(run_dir, which, warn=keep_and_warn)
    recipe = pipeline.recipe
    check_run_flags(flags, recipe.task.kind, run_dir)
    judge = None
    if recipe.task.kind == "t2a":
        judge = _judge(recipe, flags.judge or recipe.evaluate.judge, warn)
        _warn_about_split(flags, warn)
    else:
        cutoffs = flags.cutoffs or recipe.evaluate.cutoffs
        check_cutoffs(cutoffs, pipeline.sample_rate, flags.convention or recipe.evaluate.preset)

    # Score, and keep the document.
    start = _start(trained, pipeline, flags)
    job = None
    if flags.input:
        scores = score_inputs(
            run_dir,
            trained.name,
            flags,
            start.settings,
            preset=recipe.evaluate.preset,
            progress=progress,
            warn=keep_and_warn,
            note=note,
        )
    else:
        job = _job(start, progress=progress, warn=keep_and_warn, note=note)
        scores = score_sr(job) if judge is None else score_t2a(job, judge)
    settings = {**(job or start).settings, **scores.settings}
    document = _document((job or start).head, scores, settings, notes)
    stem = job.stem if job else f"{trained.name}_input"
    file = start.evals_dir / f"{stem}_{fingerprint(settings)}.json"
    write_json(file, document)
    return Outcome(document={**document, "file": str(file)}, scores=scores)


def _document(head: JsonRow, scores: Scores, settings: JsonRow, notes: list[str]) -> JsonRow:
    return finite(
        {
            **head,
            **scores.head,
            "conventions": scores.conventions,
            "rows": scores.rows,
            **({"files": scores.files} if scores.files else {}),
            "notes": notes,
            "settings": settings,
            "command": " ".join(command_line()),
            "environment": environment(),
        }
    )


@dataclass(frozen=True, kw_only=True)
class Start:
    """A checkpoint with the flags resolved against its recipe, before any data are opened.

    identity, head, settings, evals_dir: as in `Job`, as far as they do not depend on the clips.
    """

    run_dir: Path
    pipeline: Pipeline
    flags: Flags
    seed: int
    sampling: SamplerSettings
    evals_dir: Path
    identity: JsonRow
    head: JsonRow
    settings: JsonRow


def _start(trained: Trained, pipeline: Pipeline, flags: Flags) -> Start:
    """Resolve the flags. Raises StageError if the run cannot keep results."""
    # How clips are sampled.
    options = pipeline.recipe.evaluate
    sampling = SamplerSettings.of(
        options, steps=flags.steps, cfg_scale=flags.cfg_scale, sampler=flags.sampler
    )
    seed = options.seed if flags.seed is None else flags.seed

    # What identifies the evaluation.
    run_dir = trained.home
    identity = sampling_identity(str(trained.info.get("id")), trained.path / "ema.safetensors")
    named = flags.data or flags.input
    head: JsonRow = {
        "task": pipeline.recipe.task.kind,
        "run": str(run_dir),
        "checkpoint": trained.name,
        **({"data": str(named)} if named else {}),
        "sample_rate": pipeline.sample_rate,
        "seed": seed,
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        "cfg_scale": sampling.cfg_scale,
    }
    settings = {
        **{key: value for key, value in head.items() if key not in ("run", "data")},
        **identity,
        "version": __version__,
        "cfg_interval": list(sampling.cfg_interval),
        "batch_size": sampling.batch_size,
        "data": pipeline.recipe.data.model_dump(mode="json", exclude=PLACES),
    }
    return Start(
        run_dir=run_dir,
        pipeline=pipeline,
        flags=flags,
        seed=seed,
        sampling=sampling,
        evals_dir=_writable(run_dir / "evals"),
        identity=identity,
        head=head,
        settings=settings,
    )


def _job(start: Start, *, progress: Progress, warn: Say, note: Say) -> Job:
    """Open the data."""
    flags = start.flags
    recipe = start.pipeline.recipe
    data = open_data(recipe, flags, start.run_dir, progress=progress, warn=warn)
    most = flags.samples or (len(data.clips) if data.split == ALL else recipe.evaluate.samples)
    clips = evenly(data.clips, most)
    of_clips: JsonRow = {"split": data.split, "clips": len(clips)}
    settings = {
        **start.settings,
        **of_clips,
        "clip_keys": fingerprint({"keys": [clip.key for clip in clips]}),
        **({"contents": data.contents} if data.contents else {}),
    }
    return Job(
        flags=flags,
        pipeline=start.pipeline,
        source=data.source,
        clips=clips,
        seed=start.seed,
        sampling=start.sampling,
        evals_dir=start.evals_dir,
        stem=f"{start.head['checkpoint']}_{data.split}",
        identity=start.identity,
        head={**start.head, **of_clips},
        settings=settings,
        progress=progress,
        warn=warn,
        note=note,
    )


def _warn_about_split(flags: Flags, warn: Say) -> None:
    """Warn if clips that are scored have been used by the metrics themselves."""
    if flags.split == "train" and not (flags.quick or flags.metrics):
        warn("split train: distances only; comparing the training split with itself means nothing")
    if flags.split == "valid" and set(CLASSIFIED) & set(chosen_metrics(flags, "t2a")):
        warn(
            "split valid: the L2 penalty of classifiers on the judge's features was chosen on the "
            "clips that are scored, which favours what they score (see the conventions)"
        )


def _writable(folder: Path) -> Path:
    """The folder, created if missing. Raises StageError, before any work, if it is not writable."""
    trial = folder / ".writable"
    try:
        folder.mkdir(exist_ok=True)
        write_atomic(trial, "")
        trial.unlink()
    except OSError as error:
        problem = Problem(str(folder), error.strerror or str(error))
        raise StageError("cannot keep results in the run", problems=[problem]) from error
    return folder


def _judge(recipe: Recipe, name: str, warn: Say) -> Encoder:
    """The judge. Raises StageError if it taught or steered the run, under whatever name."""
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
