"""The command line: flags -> plain function calls. The only Typer file; torch is imported inside commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stagecli import __version__
from stagecli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, StageError
from stagecli.terminal.console import Console, progress
from stagecli.terminal.live import make_view

app = typer.Typer(
    name="stagecli",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train audio diffusion models stage-aware: text-to-audio (t2a) and super-resolution (sr).",
)
recipes_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List, show, copy and check recipes."
)
app.add_typer(recipes_app, name="recipes")

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key (repeatable)."),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Where runs lie.")]
Checkpoint = Annotated[str, typer.Option("--checkpoint", help="latest, best, or a step.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the sampling noise.")]
Steps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Sampler steps; default: the recipe's.")
]
CfgScale = Annotated[
    float | None,
    typer.Option("--cfg-scale", min=0, help="Scale of classifier-free guidance; 1 turns it off."),
]
Sampler = Annotated[str | None, typer.Option("--sampler", help="euler, heun or ab2.")]


def _version(show: bool) -> None:
    if show:
        sys.stdout.write(f"stagecli {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Examples:  stagecli train quickstart   |   stagecli train my.toml --set train.lr=1e-4 --name low-lr"
)
def train(
    recipe: Annotated[str, typer.Argument(help="Path of a recipe, or the name of a shipped one.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run; default: the recipe's.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    sets: Sets = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, print the plan, write nothing.")
    ] = False,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Check data, fill the caches, and stop.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew; the old run is moved aside.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.")] = False,
) -> None:
    """Train a recipe; the same command again resumes it."""
    from stagecli.recipe import load as recipes

    loaded = recipes.load(recipe, sets or [])
    out = Console()
    if dry_run:
        from stagecli.train.dry_run import dry_run as plan

        plan(loaded, out)
        return
    main_process = os.environ.get("RANK", "0") == "0"
    view = make_view(quiet or not main_process)
    if prepare_only:
        from stagecli.train.launch import prepare_only as prepare

        done = prepare(loaded, view.progress)
        view.close(
            "prepared",
            f"{len(done.train)} training and {len(done.valid)} validation clips are ready",
        )
        _report_skipped(done.source, out)
        return
    from stagecli.train.launch import train as run_training

    folder = runs_dir / (name or loaded.about.name or Path(recipe).stem)
    status = run_training(
        loaded, folder, view, argv=sys.argv[1:], overrides=sets or [], restart=restart
    )
    if status == "interrupted":
        if not main_process:
            raise typer.Exit(EXIT_INTERRUPTED)
        out.note(
            f"interrupted; resume with:  stagecli {' '.join(a for a in sys.argv[1:] if a != '--restart')}"
        )
        raise typer.Exit(EXIT_INTERRUPTED)
    if not quiet and main_process:
        out.note(f"run: {folder}   samples: {folder / 'samples'}")
        out.note(f"next:  stagecli evaluate {folder}   |   stagecli inspect-regime {folder}")


def _report_skipped(source: Any, out: Console) -> None:
    if source.skipped:
        out.warn(f"{len(source.skipped)} clips left out:")
        for problem in source.skipped:
            out.note(f"  {problem.where}  {problem.what}")


@app.command(
    epilog="Examples:  stagecli evaluate runs/quickstart   |   stagecli evaluate runs/a runs/b --markdown   |   "
    "stagecli evaluate --reference DIR --generated DIR --task t2a   |   ... --fail-if 'lsd > 1.2'"
)
def evaluate(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Runs; default: the newest finished one of --task.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="t2a or sr.")] = None,
    split: Annotated[str, typer.Option("--split", help="train, valid or test.")] = "test",
    checkpoint: Annotated[
        list[str] | None, typer.Option("--checkpoint", help="latest, best, or a step (repeatable).")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=2, help="Clips to score at most.")
    ] = None,
    seed: Seed = None,
    steps: Steps = None,
    cfg_scale: CfgScale = None,
    sampler: Sampler = None,
    cutoff: Annotated[
        list[float] | None, typer.Option("--cutoff", help="sr: test cutoff in Hz (repeatable).")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="sr: LSD convention, nuwave or ssr_eval.")
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="LABEL", help="sr: rows per value of a label too.")
    ] = None,
    perceptual: Annotated[
        bool,
        typer.Option(
            "--perceptual", help="sr: PESQ, STOI and ViSQOL too (extra `perceptual`; slow)."
        ),
    ] = False,
    judge: Annotated[
        str | None, typer.Option("--judge", help="t2a: SSL encoder that scores, as kind:model.")
    ] = None,
    clap: Annotated[
        str | None, typer.Option("--clap", metavar="MODEL", help="t2a: CLAP score; hub id, folder.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            help="t2a: label of prompt accuracy (repeatable); default: all that captions decide.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="t2a: distances only, none of the training split.")
    ] = False,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="Folder of real audio.")
    ] = None,
    generated: Annotated[
        Path | None, typer.Option("--generated", help="Folder of audio to score.")
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option("--training", help="t2a folders: training clips, to look for copies of them."),
    ] = None,
    gain: Annotated[
        bool, typer.Option("--match-gain", help="sr folders: scale each clip onto its reference.")
    ] = False,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if", metavar="TEST", help="Exit 1 where 'METRIC > NUMBER' (repeatable)."
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Write every figure to FILE, or - for stdout.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print tables for a page, with footnotes.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Score runs on real clips, or one folder of audio against another.

    A killed evaluation continues: give the same command again. Several runs or checkpoints: with differences
    from the first.
    """
    out = Console(as_json)
    _one_of("--task", task, ("t2a", "sr"), optional=not (reference or generated))
    _one_of("--split", split, ("train", "valid", "test"))
    _one_of("--sampler", sampler, ("euler", "heun", "ab2"), optional=True)
    _one_of("--preset", preset, ("nuwave", "ssr_eval"), optional=True)
    from stagecli.evaluate.command import Flags, work

    flags = Flags(
        runs or [],
        task,
        split,
        checkpoint or [],
        samples,
        seed,
        steps,
        cfg_scale,
        sampler,
        cutoff or [],
        preset,
        by,
        perceptual,
        judge,
        clap,
        label or [],
        quick,
        reference,
        generated,
        training,
        gain,
        fail_if or [],
        csv,
        markdown,
        runs_dir,
    )
    with _bars() as report:
        show = work(flags, report, out)
    if not show():
        raise typer.Exit(EXIT_FAILED)


class _bars:
    """One bar on stderr per thing that is counted."""

    def __enter__(self) -> Any:
        self.open: tuple[str, Any, Any, int] | None = None
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.open is None or self.open[0] != what:
            self.__exit__()
            manager = progress(what, total)
            self.open = (what, manager, manager.__enter__(), 0)
        name, manager, advance, before = self.open
        advance(done - before)
        self.open = (name, manager, advance, done)

    def __exit__(self, *_: object) -> None:
        if self.open is not None:
            self.open[1].__exit__(None, None, None)
            self.open = None


def _one_of(flag: str, value: str | None, allowed: tuple[str, ...], optional: bool = False) -> None:
    if value in allowed or (optional and value is None):
        return
    what = f"{flag} is needed" if value is None else f"{flag} {value!r} is not known"
    raise StageError(what, hint=f"one of: {', '.join(allowed)}")


@app.command(
    "inspect-regime",
    epilog="Examples:  stagecli inspect-regime runs/quickstart   |   ... --html report.html",
)
def inspect_regime(
    runs: Annotated[list[Path], typer.Argument(help="One or more run directories.")],
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the curves to FILE.png or FILE.svg.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one self-contained page.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show again what is new while a run trains.")
    ] = False,
    every: Annotated[
        float, typer.Option("--every", min=0.1, help="Seconds between looks, with --follow.")
    ] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Show where training is: the regime, loss by noise bin, speed, events, and a plain reading."""
    from stagecli.terminal.inspect import inspect

    out = Console(as_json)
    if follow:
        from stagecli.terminal.follow import follow as watch

        try:
            watch(runs, lambda: _look(runs, plot, html, None), out, every)
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        return
    summaries = _look(runs, plot, html, out)
    out.result(summaries if len(summaries) > 1 else summaries[0], lambda: inspect(summaries, out))


def _look(
    runs: list[Path], plot: Path | None, html: Path | None, out: Console | None
) -> list[dict[str, Any]]:
    """Summaries of the runs, their pictures written; out: says what was written and what could not be read."""
    from stagecli.report.run_report import read_run
    from stagecli.report.summary import summarize_run

    read = [read_run(run) for run in runs]
    if out:
        for damage in (damage for one in read for damage in one.damage):
            out.warn(damage)
    written: list[Path] = []
    if plot or html:
        from stagecli.files import write_atomic
        from stagecli.report.html import html_page
        from stagecli.report.plot import write_plot

        if plot:
            written.append(write_plot(read, plot))
        if html:
            write_atomic(html, html_page(read))
            written.append(html)
    if out:
        for path in written:
            out.note(f"wrote {path}")
    return [summarize_run(one) for one in read]


@app.command(
    epilog='Examples:  stagecli sample runs/quickstart -p "a loud bell"   |   stagecli sample runs/sr --input a.wav'
)
def sample(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Text to sound (t2a).")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="File of prompts, text or JSONL (t2a).")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--input", "-i", help="Audio file or folder to restore (sr).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder, or FILE.wav for one result.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=0.05, help="Length (t2a).")
    ] = None,
    cutoff: Annotated[
        float | None, typer.Option("--cutoff", min=1, help="Hz; the band below is kept (sr).")
    ] = None,
    checkpoint: Checkpoint = "latest",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sampling noise.")] = 0,
    steps: Steps = None,
    cfg_scale: CfgScale = None,
    sampler: Sampler = None,
    as_json: AsJson = False,
) -> None:
    """Generate audio from prompts, or restore the high band of files."""
    out = Console(as_json)
    _one_of("--sampler", sampler, ("euler", "heun", "ab2"), optional=True)
    if bool(prompt or prompts) == bool(source):
        raise StageError(
            "give either prompts or --input",
            hint='--prompt "TEXT", --prompts FILE, or --input FILE_OR_DIR',
        )
    from stagecli.generate import command as sampling

    shared: dict[str, Any] = {
        "seed": seed,
        "checkpoint": checkpoint,
        "steps": steps,
        "cfg_scale": cfg_scale,
        "sampler": sampler,
    }
    with _bars() as report:
        if source:
            rows = sampling.restore_files(
                run,
                source,
                output,
                cutoff=cutoff,
                warn=out.warn,
                progress=lambda d, n: report("files", d, n),
                **shared,
            )
        else:
            texts = [*(prompt or []), *(sampling.read_prompts(prompts) if prompts else [])]
            rows = sampling.sample_prompts(
                run,
                texts,
                output,
                seconds=seconds,
                progress=lambda d, n: report("clips", d, n),
                **shared,
            )
    columns = ("file", "prompt") if "prompt" in rows[0] else ("file", "input", "cutoff")
    out.result(rows, lambda: out.table("", columns, [[row[c] for c in columns] for row in rows]))


@recipes_app.command("list")
def recipes_list(as_json: AsJson = False) -> None:
    """List the shipped recipes."""
    from stagecli.recipe import load as recipes

    out = Console(as_json)
    rows = [{"name": name, **recipes.about(path)} for name, path in recipes.shipped().items()]
    columns = ("name", "summary", "needs")
    out.result(rows, lambda: out.table("", columns, [[row[c] for c in columns] for row in rows]))


@recipes_app.command("show")
def recipes_show(recipe: str, sets: Sets = None, as_json: AsJson = False) -> None:
    """Print a recipe with every default written out."""
    from stagecli.recipe import load as recipes

    loaded = recipes.load(recipe, sets or [])
    Console(as_json).result(
        loaded.model_dump(mode="json"), lambda: print(recipes.annotated(loaded))
    )


@recipes_app.command("copy")
def recipes_copy(
    recipe: str,
    destination: Path,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Copy a shipped recipe to a file of your own."""
    from stagecli.recipe import load as recipes

    source = recipes.find(recipe)
    target = destination / source.name if destination.is_dir() else destination
    if target.exists() and not force:
        raise StageError(f"{target} exists", hint="choose another name, or --force")
    try:
        target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise StageError(
            f"cannot write {target}: {error.strerror}", hint="choose another DESTINATION"
        ) from error
    Console().note(f"wrote {target};  train it with:  stagecli train {target}")


@recipes_app.command("check")
def recipes_check(recipe: str, sets: Sets = None, as_json: AsJson = False) -> None:
    """Check a recipe; exit 1 where it has problems."""
    from stagecli.recipe import load as recipes

    out = Console(as_json)
    try:
        loaded = recipes.load(recipe, sets or [])
    except StageError as error:
        if as_json:
            problems = [{"where": p.where, "what": p.what} for p in error.problems]
            out.result({"ok": False, "message": error.message, "problems": problems})
        else:
            out.error(error)
        raise typer.Exit(EXIT_FAILED) from None
    out.result({"ok": True, "name": loaded.about.name, "signature": recipes.signature(loaded)})


@app.command()
def doctor(runs_dir: RunsDir = Path("runs"), as_json: AsJson = False) -> None:
    """Check that this machine can train."""
    from stagecli.doctor import examine, show

    out = Console(as_json)
    document = examine(runs_dir)
    out.result(document, lambda: show(document, out))
    if not document["ok"]:
        raise typer.Exit(EXIT_FAILED)


def main() -> None:
    """Entry point: StageError -> message and exit code, no traceback unless STAGECLI_DEBUG=1."""
    try:
        app(standalone_mode=True)
    except StageError as error:
        if os.environ.get("STAGECLI_DEBUG") == "1":
            raise
        if os.environ.get("RANK", "0") == "0":
            Console().error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(EXIT_USAGE)
