"""The check of a data set as tables: what is in it, what must be mended, what fits it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagecli.errors import counted
from stagecli.report.data_table import data_table
from stagecli.terminal.console import Console

if TYPE_CHECKING:
    from stagecli.data.check import DataSetCheck

KINDS = {
    "folder": "a folder",
    "manifest": "a manifest",
    "shards": "tar shards",
    "huggingface": "a Hugging Face data set",
}
TASKS = {
    "t2a": "text-to-audio (t2a)",
    "sr": "super-resolution (sr), which needs no captions",
}


def show_data_check(check: DataSetCheck, console: Console) -> None:
    """Print a check on stdout, as its answer."""
    data = check.data
    console.text(f"{data.path}: {KINDS[data.source]}, checked for {TASKS[check.task]}")
    console.text()
    console.table("", *data_table(check.report.facts))
    if check.problems:
        console.text()
        rows = [[problem.where, problem.what] for problem in check.problems]
        console.table("must be mended", ["where", "problem"], rows)
    if check.report.doubts:
        console.text()
        console.table("worth a look", ["doubt"], [[doubt] for doubt in check.report.doubts])
    if check.advice:
        console.text()
        rows = [[entry.key, str(entry.value), entry.why] for entry in check.advice]
        console.table("keys of a recipe that fit", ["key", "value", "because"], rows)
    console.text()
    if check.problems:
        problems = counted(len(check.problems), "problem")
        console.text(f"not trainable yet: {problems} must be mended first", style="bold red")
    else:
        console.text("trainable", style="bold green")
