"""`stagecli data`: what is in a data set, and how to make one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from stagecli.bounds import Range
from stagecli.cli import prepare
from stagecli.cli.help import GroupedCommand, examples
from stagecli.cli.options import AsJson, Force, Overrides, number_option, one_of
from stagecli.cli.progress import progress_bars
from stagecli.errors import EXIT_FAILED
from stagecli.terminal.console import Console

MAX_LENGTH = Range(1, 10_000)  # as condition.max_length

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Check data sets, and make their manifests."
)


@app.callback()
def _data() -> None:
    pass


@app.command(
    "check",
    cls=GroupedCommand,
    epilog=examples(
        "stagecli data check sounds/",
        "stagecli data check clips.csv --set data.path_column=file_name",
        "stagecli data check hf:owner/name --task sr --json",
    ),
)
def check_data(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A folder, a manifest (.jsonl, .csv, .tsv), tar shards, or hf:NAME, hf:FOLDER.",
        ),
    ],
    *,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="t2a or sr; default: t2a if there are captions.",
            callback=one_of("--task", "t2a", "sr"),
        ),
    ] = None,
    max_length: Annotated[
        int,
        number_option(
            "--max-length",
            limits=MAX_LENGTH,
            help="Bytes at which captions would be cut (condition.max_length).",
        ),
    ] = 64,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Report on a data set and on recipe keys that fit it; exit 1 if something must be mended."""
    from stagecli.data.check import Question, check_data_set, locate
    from stagecli.recipe.data_keys import data_keys
    from stagecli.terminal.data_check import show_data_check

    keys = {**locate(path), **data_keys(overrides or [])}
    question = Question(keys=keys, task=task, max_length=max_length)
    with tempfile.TemporaryDirectory() as scratch, progress_bars() as report:
        check = check_data_set(question, base=Path.cwd(), cache_dir=Path(scratch), progress=report)
    console = Console(as_json)
    console.result(check.as_json(), lambda: show_data_check(check, console))
    if check.problems:
        raise typer.Exit(EXIT_FAILED)


@app.command(
    "pack",
    cls=GroupedCommand,
    epilog=examples("stagecli data pack clips.jsonl shards/ --shard-size 1GB"),
)
def pack_data(
    path: Annotated[
        str, typer.Argument(metavar="MANIFEST", help="A manifest, or a folder of audio.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the shards are written.")],
    *,
    shard_size: Annotated[
        str, typer.Option("--shard-size", help="Largest size of a shard, such as 500MB or 1GB.")
    ] = "1GB",
    overrides: Overrides = None,
    force: Force = False,
) -> None:
    """Write tar shards that data.source = "shards" reads, with an index and checksums."""
    from stagecli.data.check import LOWEST_RATE, locate
    from stagecli.data.pack import pack, parse_size
    from stagecli.recipe.data_keys import data_keys
    from stagecli.schema import Data

    shard_bytes = parse_size(shard_size)
    keys = {"sample_rate": LOWEST_RATE, "seconds": 1.0, **locate(path)}
    data = Data(**{**keys, **data_keys(overrides or [])})
    with tempfile.TemporaryDirectory() as scratch, progress_bars() as report:
        shards = pack(
            data,
            folder,
            shard_bytes=shard_bytes,
            force=force,
            cache_dir=Path(scratch),
            progress=report,
        )
    clips = sum(shard.last - shard.first for shard in shards)
    size = sum(shard.size for shard in shards)
    shown = f"{clips:,} clips in {len(shards):,} shards, {size:,} bytes"
    Console().note(
        f'wrote {shown}; read them with:  data.source = "shards", data.path = "{folder}"'
    )


app.command(cls=GroupedCommand, epilog=prepare.EXAMPLES, help=prepare.HELP)(prepare.prepare)
