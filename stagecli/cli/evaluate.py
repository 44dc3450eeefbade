"""`stagecli evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagecli.bounds import HERTZ, SCORED_CLIPS, SEED
from stagecli.cli.completion import choices, complete_run
from stagecli.cli.help import OUTPUT, SAMPLING, examples
from stagecli.cli.options import (
    AsJson,
    CfgScale,
    Force,
    RunsDir,
    Sampler,
    Steps,
    number_option,
    one_of,
)
from stagecli.cli.progress import progress_bars
from stagecli.errors import EXIT_FAILED, StageError
from stagecli.terminal.console import Console

if TYPE_CHECKING:
    from stagecli.evaluate.command import Flags

HELP = """Score runs on real clips, or one folder of audio against another.

Repeat the command to continue an evaluation that was killed. Several runs or checkpoints are
reported with their differences from the first.
"""
EXAMPLES = examples(
    "stagecli evaluate quickstart",
    "stagecli evaluate runs/a runs/b --markdown",
    "stagecli evaluate my-sr --data ~/music --fail-if 'lsd > 1.2'",
    "stagecli evaluate --reference DIR --generated DIR --task t2a",
)

WHAT = "What is scored"
SR = "Super-resolution (sr)"
T2A = "Text to audio (t2a)"
FOLDERS = "Folders of audio"

# The option types, in the order in which --help lists them.
Runs = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Run directories, or names of runs; default: the newest finished run of --task.",
        autocompletion=complete_run,
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="t2a or sr.",
        callback=one_of("--task", "t2a", "sr"),
        autocompletion=choices("t2a", "sr"),
        rich_help_panel=WHAT,
    ),
]
Split = Annotated[
    str,
    typer.Option(
        "--split",
        help="train, valid or test.",
        callback=one_of("--split", "train", "valid", "test"),
        autocompletion=choices("train", "valid", "test"),
        rich_help_panel=WHAT,
    ),
]
Checkpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoint", help="latest, best, or a step (repeatable).", rich_help_panel=WHAT
    ),
]
Clips = Annotated[
    int | None,
    number_option(
        "--samples", limits=SCORED_CLIPS, help="Maximum number of clips to score.", panel=WHAT
    ),
]
Seed = Annotated[
    int | None,
    number_option(
        "--seed",
        limits=SEED,
        help="Seed of the sampling noise; default: the recipe's.",
        panel=SAMPLING,
    ),
]
Cutoffs = Annotated[
    list[float] | None,
    number_option("--cutoff", limits=HERTZ, help="sr: test cutoff in Hz (repeatable).", panel=SR),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="sr: LSD convention, nuwave or ssr_eval.",
        callback=one_of("--preset", "nuwave", "ssr_eval"),
        rich_help_panel=SR,
    ),
]
Lsd = Annotated[
    str | None,
    typer.Option(
        "--lsd",
        metavar="n_fft=N,hop=N,eps=X",
        help="sr: any LSD convention; form=clamp, add or ratio and pad=reflect or constant.",
        rich_help_panel=SR,
    ),
]
By = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="LABEL",
        help="sr: add rows for each value of this label.",
        rich_help_panel=SR,
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="NAME,...",
        help="Compute these only; an unknown name lists all.",
        rich_help_panel=WHAT,
    ),
]
Perceptual = Annotated[
    bool,
    typer.Option(
        "--perceptual",
        help="sr: add PESQ, STOI and ViSQOL (extra `perceptual`; slow).",
        rich_help_panel=SR,
    ),
]
Judge = Annotated[
    str | None,
    typer.Option(
        "--judge", help="t2a: SSL encoder that scores, as kind:model.", rich_help_panel=T2A
    ),
]
Clap = Annotated[
    str | None,
    typer.Option(
        "--clap",
        metavar="MODEL",
        help="t2a: add the CLAP score of a model: hub id or folder.",
        rich_help_panel=T2A,
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        help="t2a: label for prompt accuracy (repeatable); default: all that captions determine.",
        rich_help_panel=T2A,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Data to score the run on: its own at a new place, or others (manifest, folder, data "
        "set); sr: any folder of audio, filtered as the recipe's evaluation does.",
        rich_help_panel=WHAT,
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="t2a: distances only, nothing that needs the training split.",
        rich_help_panel=T2A,
    ),
]
Reference = Annotated[
    Path | None, typer.Option("--reference", help="Folder of real audio.", rich_help_panel=FOLDERS)
]
Generated = Annotated[
    Path | None,
    typer.Option("--generated", help="Folder of audio to score.", rich_help_panel=FOLDERS),
]
Inputs = Annotated[
    Path | None,
    typer.Option(
        "--input",
        help="sr: low-resolution files. With a run, which restores them, their --reference is in "
        "full band; with two folders, for rows of the unprocessed input and copy-up.",
        rich_help_panel=FOLDERS,
    ),
]
Training = Annotated[
    Path | None,
    typer.Option(
        "--training",
        help="t2a folders: folder of training clips, to detect copies of them.",
        rich_help_panel=FOLDERS,
    ),
]
MatchGain = Annotated[
    bool,
    typer.Option(
        "--match-gain",
        help="sr files: scale each clip to the level of its reference.",
        rich_help_panel=FOLDERS,
    ),
]
FailIf = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        metavar="TEST",
        help="Exit 1 if 'METRIC > NUMBER' holds (repeatable).",
        rich_help_panel=OUTPUT,
    ),
]
Csv = Annotated[
    Path | None,
    typer.Option(
        "--csv", help="Write every figure to FILE, or - for stdout.", rich_help_panel=OUTPUT
    ),
]
Markdown = Annotated[
    bool,
    typer.Option(
        "--markdown", help="Print Markdown tables with footnotes.", rich_help_panel=OUTPUT
    ),
]


def evaluate(
    runs: Runs = None,
    *,
    task: Task = None,
    split: Split = "test",
    checkpoints: Checkpoints = None,
    samples: Clips = None,
    seed: Seed = None,
    steps: Steps = None,
    cfg_scale: CfgScale = None,
    sampler: Sampler = None,
    cutoffs: Cutoffs = None,
    preset: Preset = None,
    lsd: Lsd = None,
    by: By = None,
    metrics: Metrics = None,
    perceptual: Perceptual = False,
    judge: Judge = None,
    clap: Clap = None,
    labels: Labels = None,
    quick: Quick = False,
    data: Data = None,
    reference: Reference = None,
    generated: Generated = None,
    input: Inputs = None,
    training: Training = None,
    match_gain: MatchGain = False,
    fail_if: FailIf = None,
    csv: Csv = None,
    force: Force = False,
    markdown: Markdown = False,
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
) -> None:
    from stagecli.evaluate.command import Flags
    from stagecli.runs.names import find_run

    # The flags as typed.
    flags = Flags(
        runs=[find_run(run, runs_dir) for run in runs or []],
        task=task,
        split=split,
        checkpoints=checkpoints or [],
        samples=samples,
        seed=seed,
        steps=steps,
        cfg_scale=cfg_scale,
        sampler=sampler,
        cutoffs=cutoffs or [],
        preset=preset,
        lsd=lsd,
        by=by,
        metrics=[] if metrics is None else [name.strip() for name in metrics.split(",")],
        perceptual=perceptual,
        judge=judge,
        clap=clap,
        labels=labels or [],
        quick=quick,
        data=data,
        reference=reference,
        generated=generated,
        input=input,
        training=training,
        match_gain=match_gain,
        fail_if=fail_if or [],
        csv=csv,
        force=force,
        markdown=markdown,
        runs_dir=runs_dir,
    )
    # Scores, and an exit code that depends on --fail-if.
    _run(flags, Console(as_json))


def _run(flags: Flags, console: Console) -> None:
    from stagecli.evaluate.command import work

    if flags.of_folders and flags.task is None:
        raise StageError("two folders need --task", hint="one of: t2a, sr")
    with progress_bars() as report:
        show = work(flags, report, console)
    if not show():
        raise typer.Exit(EXIT_FAILED)
