"""`stagecli data`: what is in a data set, and how to make one."""

from __future__ import annotations

import typer

from stagecli.cli import prepare

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Check data sets, and make their manifests."
)


@app.callback()
def _data() -> None:
    pass


app.command(epilog=prepare.EXAMPLES, help=prepare.HELP)(prepare.prepare)
