"""Help in groups: options and commands stand under the heading of their `rich_help_panel`.

Typer's own groups need Rich, which would double the time of `--help`, and draw boxes that screen
readers read aloud.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup

# Headings of `stagecli --help`, in this order.
TRAIN = "Train"
RESULTS = "Listen and measure"
FIND = "Data, recipes, runs and this machine"

SENTENCE = 150  # characters of the help of a command in a list of commands

# Headings that several commands share.
OUTPUT = "Output"
SAMPLING = "Sampling"


class GroupedCommand(TyperCommand):
    """A command whose options stand in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options under their headings, in the order of the signature."""
        entries = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                is_argument = isinstance(param, TyperArgument)
                default = "Arguments" if is_argument else "Options"
                entries.append((vars(param).get("rich_help_panel") or default, record))
        _write_sections(formatter, entries)


class GroupedCommands(TyperGroup):
    """A group of commands that stand in groups themselves."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands under their headings, in the order in which they were added."""
        commands = [self.commands[name] for name in self.list_commands(ctx)]
        shown = [command for command in commands if not command.hidden]
        _write_sections(
            formatter,
            [
                (
                    vars(command).get("rich_help_panel") or "Commands",
                    (command.name or "", command.get_short_help_str(SENTENCE)),
                )
                for command in shown
            ],
        )


def examples(*lines: str) -> str:
    """The epilog of a command: examples, one a line, which Typer would join."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def _write_sections(formatter: Any, entries: Iterable[tuple[str, tuple[str, str]]]) -> None:
    """Write (heading, (name, help)) entries; a heading comes where it is first met."""
    sections: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for heading, record in entries:
        sections[heading].append(record)
    for heading, records in sections.items():
        with formatter.section(heading):
            formatter.write_dl(records)
