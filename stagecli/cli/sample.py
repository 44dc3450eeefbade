"""`stagecli sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagecli.bounds import CLIP_SECONDS, HERTZ, SAMPLES_PER_PROMPT, SEED, STRENGTH
from stagecli.cli.completion import choices
from stagecli.cli.help import OUTPUT, SAMPLING, examples
from stagecli.cli.options import (
    AsJson,
    CfgScale,
    Force,
    Run,
    Sampler,
    Steps,
    number_option,
    one_of,
)
from stagecli.cli.progress import progress_bars
from stagecli.cli.sample_flags import check_flags, parse_span
from stagecli.terminal.console import Console

if TYPE_CHECKING:
    from stagecli.generate.output import Destination
    from stagecli.generate.prompts import Draws

EXAMPLES = examples(
    'stagecli sample quickstart -p "a loud bell" --num-samples 4 --cfg-scale 3',
    "stagecli sample quickstart --prompts prompts.txt --format flac -o clips/",
    'stagecli sample quickstart -p "a bell" --init-audio drum.wav --strength 0.6',
    'stagecli sample quickstart -p "a bell" --init-audio song.wav --inpaint 1.5:2',
    "stagecli sample runs/sr --input recordings/ --skip-bad",
)
FORMATS = ("wav", "flac", "mp3", "ogg")
T2A = "From prompts (t2a)"
INIT = "From prompts and audio (t2a)"
SR = "From files (sr)"

# The option types, in the order in which --help lists them.
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", "-p", help="Text prompt (repeatable).", rich_help_panel=T2A),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help="File of prompts: JSONL, or text with a prompt a line and comments that begin with #.",
        rich_help_panel=T2A,
    ),
]
NegativePrompt = Annotated[
    str | None,
    typer.Option(
        "--negative-prompt",
        help="What to lead away from; needs a --cfg-scale above 1.",
        rich_help_panel=T2A,
    ),
]
NumSamples = Annotated[
    int | None,
    number_option(
        "--num-samples",
        limits=SAMPLES_PER_PROMPT,
        help="Clips per prompt, with the seeds from --seed on; default: 1.",
        panel=T2A,
    ),
]
Seconds = Annotated[
    float | None,
    number_option(
        "--seconds",
        limits=CLIP_SECONDS,
        help="Length of each clip; default: that of training.",
        panel=T2A,
    ),
]
InitAudio = Annotated[
    Path | None,
    typer.Option(
        "--init-audio", help="Audio file to change, or to fill a gap of.", rich_help_panel=INIT
    ),
]
Strength = Annotated[
    float | None,
    number_option(
        "--strength",
        limits=STRENGTH,
        help="How much of it changes: t at which sampling starts from it; default: 0.7.",
        panel=INIT,
    ),
]
Inpaint = Annotated[
    str | None,
    typer.Option(
        "--inpaint",
        metavar="START:END",
        help="Change it between these seconds only; the rest stays as it is.",
        rich_help_panel=INIT,
    ),
]
Source = Annotated[
    Path | None,
    typer.Option("--input", "-i", help="Audio file or folder to restore.", rich_help_panel=SR),
]
Cutoff = Annotated[
    float | None,
    number_option(
        "--cutoff",
        limits=HERTZ,
        help="Regenerate the band above this frequency in Hz; default: measured in each file.",
        panel=SR,
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        help="Leave out files that cannot be used, and say which, instead of stopping.",
        rich_help_panel=SR,
    ),
]
Checkpoint = Annotated[
    str,
    typer.Option("--checkpoint", help="latest, best, or a step.", rich_help_panel=SAMPLING),
]
Seed = Annotated[
    int,
    number_option("--seed", limits=SEED, help="Seed of the sampling noise.", panel=SAMPLING),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Folder, or one file for a single result; default: a new folder in the run.",
        rich_help_panel=OUTPUT,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="wav, flac, mp3 or ogg; default: by the ending of --output, else wav.",
        callback=one_of("--format", *FORMATS),
        autocompletion=choices(*FORMATS),
        rich_help_panel=OUTPUT,
    ),
]
Subtype = Annotated[
    str | None,
    typer.Option(
        "--subtype",
        help="How samples are stored: FLOAT, PCM_16 or PCM_24 (wav), PCM_24 or PCM_16 (flac).",
        autocompletion=choices("FLOAT", "PCM_16", "PCM_24"),
        rich_help_panel=OUTPUT,
    ),
]


def sample(
    run: Run,
    *,
    prompts: Prompts = None,
    prompt_file: PromptFile = None,
    negative_prompt: NegativePrompt = None,
    num_samples: NumSamples = None,
    seconds: Seconds = None,
    init_audio: InitAudio = None,
    strength: Strength = None,
    inpaint: Inpaint = None,
    source: Source = None,
    cutoff: Cutoff = None,
    skip_bad: SkipBad = False,
    checkpoint: Checkpoint = "latest",
    seed: Seed = 0,
    steps: Steps = None,
    cfg_scale: CfgScale = None,
    sampler: Sampler = None,
    output: Output = None,
    format: Format = None,
    subtype: Subtype = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Generate audio from prompts, or restore the high band of files.

    Nothing is read but the run and what is given here: the data of the run may be gone.
    """
    # What to make.
    check_flags(
        {
            "--prompt": prompts or None,
            "--prompts": prompt_file,
            "--negative-prompt": negative_prompt,
            "--num-samples": num_samples,
            "--seconds": seconds,
            "--init-audio": init_audio,
            "--strength": strength,
            "--inpaint": inpaint,
            "--input": source,
            "--cutoff": cutoff,
            "--skip-bad": skip_bad,
        }
    )
    span = parse_span(inpaint) if inpaint is not None else None
    console = Console(as_json)
    destination = _destination(console, output, format, subtype, force=force)
    shared: dict[str, Any] = {
        "checkpoint": checkpoint,
        "steps": steps,
        "cfg_scale": cfg_scale,
        "sampler": sampler,
    }
    from stagecli.runs.names import find_run

    folder = find_run(run)

    # Make it, and show it.
    if source:
        shared |= {"seed": seed, "cutoff": cutoff, "skip_bad": skip_bad}
        rows = _restore(folder, source, destination, **shared)
        columns = ["file", "input", "cutoff"]
    else:
        from stagecli.generate.init_audio import InitAudio as Start
        from stagecli.generate.prompts import Draws

        draws = Draws(
            seed=seed,
            number=num_samples or 1,
            negative_prompt=negative_prompt or "",
            init=Start(init_audio, strength, span) if init_audio else None,
        )
        shared |= {"seconds": seconds, "prompt_file": prompt_file}
        rows = _generate(folder, prompts or [], destination, draws, **shared)
        columns = ["file", "prompt"]
    cells = [[row[column] for column in columns] for row in rows]
    console.result(rows, lambda: console.table("", columns, cells))


def _destination(
    console: Console, output: Path | None, format: str | None, subtype: str | None, *, force: bool
) -> Destination:
    from stagecli.generate.encoding import choose_encoding
    from stagecli.generate.output import Destination

    return Destination(
        output=output,
        encoding=choose_encoding(output, format, subtype),
        force=force,
        warn=console.warn,
        note=console.note,
    )


def _restore(
    run: Path, source: Path, destination: Destination, **flags: Any
) -> list[dict[str, Any]]:
    from stagecli.generate.restore import restore_files

    with progress_bars() as report:
        return restore_files(
            run,
            source,
            destination,
            progress=lambda done, total: report("restoring", done, total),
            **flags,
        )


def _generate(
    run: Path,
    prompts: list[str],
    destination: Destination,
    draws: Draws,
    *,
    prompt_file: Path | None,
    **flags: Any,
) -> list[dict[str, Any]]:
    from stagecli.generate.prompts import generate_files, read_prompts

    if prompt_file:
        prompts = [*prompts, *read_prompts(prompt_file)]
    with progress_bars() as report:
        return generate_files(
            run,
            prompts,
            destination,
            draws,
            inputs=[prompt_file] if prompt_file else [],
            progress=lambda done, total: report("generating", done, total),
            **flags,
        )
