"""`stagecli data prepare`."""

from __future__ import annotations

import shlex
from pathlib import Path
from textwrap import wrap
from typing import Annotated

import typer

from stagecli.archives.catalogue import ARCHIVES
from stagecli.cli.help import examples
from stagecli.cli.options import AsJson, Force, one_of
from stagecli.errors import StageError
from stagecli.terminal.console import Console

EXAMPLES = examples("stagecli data prepare fsdd ~/data/free-spoken-digit-dataset")
WIDTH = 72  # columns of the help's lines on layouts
UNWRAPPED = "\b\n"  # begins a paragraph whose lines stay as they are
HELP = "\n\n".join(
    [
        "Write the manifest of a published data set from its extracted archive.",
        *(
            f"{UNWRAPPED}{name}: {archive.title}\n"
            f"  licence: {archive.licence}\n"
            f"  {archive.address}\n" + "\n".join(f"  {line}" for line in wrap(archive.holds, WIDTH))
            for name, archive in ARCHIVES.items()
        ),
    ]
)


def prepare(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help=f"One of {', '.join(ARCHIVES)}.",
            callback=one_of("NAME", *ARCHIVES),
        ),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder into which the archive was extracted.")
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Manifest to write; default: DIR/manifest.jsonl."),
    ] = None,
    skip_missing: Annotated[
        bool,
        typer.Option("--skip-missing", help="Leave out what the archive lacks, with a warning."),
    ] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    from stagecli.archives.prepare import manifest_text, read_archive, split_counts
    from stagecli.targets import Target, plan_targets, write_target

    # Where it goes, and what the archive holds.
    console = Console(as_json)
    target = output or folder / "manifest.jsonl"
    if target.suffix.lower() != ".jsonl":
        raise StageError(
            f"--output: {target} does not end in .jsonl", hint="a manifest is a .jsonl file"
        )
    contents = read_archive(name, folder, skip_missing=skip_missing)
    plan_targets([Target(target, "--output")], force=force)

    # The manifest, and what to do with it.
    for notice in contents.notices:
        console.note(notice)
    for gap in contents.gaps:
        console.warn(f"left out: {gap.where}: {gap.what}")
    write_target(target, manifest_text(contents, target), force=force)
    counts = dict(sorted(split_counts(contents).items()))
    console.result({"manifest": str(target), "clips": counts}, lambda: None)
    numbers = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    console.note(f"wrote {target}: {numbers} clips;  licence: {ARCHIVES[name].licence}")
    console.note(f"next:  {_next_command(name, target)}")


def _next_command(name: str, manifest: Path) -> str:
    archive = ARCHIVES[name]
    path = shlex.quote(str(manifest))
    if archive.recipe:
        return f"stagecli train {archive.recipe} --set data.path={path} --dry-run"
    return f"stagecli recipes new --data {path} --task {archive.task}"
