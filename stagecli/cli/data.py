"""`stagecli data`: what is in a data set, and how to make one."""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Check a data set before training on it."
)


@app.callback()
def _data() -> None:
    pass
