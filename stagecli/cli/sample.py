"""`stagecli sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagecli.bounds import CLIP_SECONDS, HERTZ, SEED
from stagecli.cli.options import AsJson, CfgScale, Force, Sampler, Steps, number_option
from stagecli.cli.progress import progress_bars
from stagecli.errors import StageError
from stagecli.terminal.console import Console

if TYPE_CHECKING:
    from stagecli.generate.output import Destination

EXAMPLES = (
    'Examples:  stagecli sample runs/quickstart -p "a loud bell"   |   '
    "stagecli sample runs/sr --input a.wav"
)


def sample(
    run: Annotated[Path, typer.Argument(help="Folder or name of a run.")],
    *,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Text prompt (t2a; repeatable).")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompts", help="File of prompts, text or JSONL (t2a).")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--input", "-i", help="Audio file or folder to restore (sr).")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder, or FILE.wav for a single result; default: a new folder in the run.",
        ),
    ] = None,
    force: Force = False,
    seconds: Annotated[
        float | None,
        number_option("--seconds", limits=CLIP_SECONDS, help="Length of each clip (t2a)."),
    ] = None,
    cutoff: Annotated[
        float | None,
        number_option(
            "--cutoff", limits=HERTZ, help="Regenerate the band above this frequency, Hz (sr)."
        ),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="latest, best, or a step.")
    ] = "latest",
    seed: Annotated[
        int, number_option("--seed", limits=SEED, help="Seed of the sampling noise.")
    ] = 0,
    steps: Steps = None,
    cfg_scale: CfgScale = None,
    sampler: Sampler = None,
    as_json: AsJson = False,
) -> None:
    """Generate audio from prompts, or restore the high band of files.

    Nothing is read but the run and what is given here: the data of the run may be gone.
    """
    # What to make.
    console = Console(as_json)
    if bool(prompts or prompt_file) == bool(source):
        raise StageError(
            "give either prompts or --input",
            hint='--prompt "TEXT", --prompts FILE, or --input FILE_OR_DIR',
        )
    from stagecli.generate.output import Destination
    from stagecli.runs.names import find_run

    run = find_run(run)
    destination = Destination(output=output, force=force, warn=console.warn, note=console.note)
    shared: dict[str, Any] = {
        "seed": seed,
        "checkpoint": checkpoint,
        "steps": steps,
        "cfg_scale": cfg_scale,
        "sampler": sampler,
    }

    # Make it, and show it.
    if source:
        rows = _restore(run, source, destination, cutoff=cutoff, shared=shared)
        columns = ["file", "input", "cutoff"]
    else:
        rows = _generate(
            run,
            prompts or [],
            destination,
            prompt_file=prompt_file,
            seconds=seconds,
            shared=shared,
        )
        columns = ["file", "prompt"]
    cells = [[row[column] for column in columns] for row in rows]
    console.result(rows, lambda: console.table("", columns, cells))


def _restore(
    run: Path,
    source: Path,
    destination: Destination,
    *,
    cutoff: float | None,
    shared: dict[str, Any],
) -> list[dict[str, Any]]:
    from stagecli.generate.restore import restore_files

    with progress_bars() as report:
        return restore_files(
            run,
            source,
            destination,
            cutoff=cutoff,
            progress=lambda done, total: report("restoring", done, total),
            **shared,
        )


def _generate(
    run: Path,
    prompts: list[str],
    destination: Destination,
    *,
    prompt_file: Path | None,
    seconds: float | None,
    shared: dict[str, Any],
) -> list[dict[str, Any]]:
    from stagecli.generate.prompts import generate_files, read_prompts

    if prompt_file:
        prompts = [*prompts, *read_prompts(prompt_file)]
    with progress_bars() as report:
        return generate_files(
            run,
            prompts,
            destination,
            seconds=seconds,
            inputs=[prompt_file] if prompt_file else [],
            progress=lambda done, total: report("generating", done, total),
            **shared,
        )
