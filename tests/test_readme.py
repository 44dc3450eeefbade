"""README, CONTRIBUTING and docs are true: module map, commands, recipes and links exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from stagecli.cli import app
from stagecli.recipe.source import shipped_recipes

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")))


def blocks(heading: str, text: str = TEXT) -> list[list[str]]:
    """Code blocks under a second-level heading, as lines."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [block.strip("\n").splitlines()[1:] for block in section.split("```")[1::2]]


def test_quick_start_is_two_lines() -> None:
    lines = blocks("Quick start")[0]
    assert len(lines) == 2
    assert "stagecli train quickstart" in lines[0]
    assert ".venv/bin/python -m pytest" in lines[1]


def test_module_map_matches_the_disk() -> None:
    tree = [line for line in blocks("Module map", CONTRIBUTING)[0] if line.strip()]
    named = {re.split(r"\s{2,}", line.strip())[0] for line in tree if line.startswith("  ")}
    rooms = {p.name for p in (ROOT / "stagecli").glob("*.py")} - {"__init__.py"}
    rooms |= {
        f"{p.name}/" for p in (ROOT / "stagecli").iterdir() if p.is_dir() and any(p.glob("*.py"))
    }
    assert named == rooms
    for line in tree:
        if not line.startswith(" "):
            assert (ROOT / line.split("/")[0]).is_dir()


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        file, _, fragment = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in {anchor(heading) for heading in headings}, target


def test_recipes_named_are_the_recipes_shipped() -> None:
    table = [line for line in TEXT.splitlines() if line.startswith("| `")]
    named = {name for line in table for name in re.findall(r"`([\w/-]+)`", line.split("|")[1])}
    assert named == set(shipped_recipes())


@pytest.mark.parametrize("line", [line.split("  #")[0] for line in blocks("Commands")[0]])
def test_commands_have_the_flags_shown(line: str) -> None:
    words = shlex.split(line)
    assert words[0] == "stagecli"
    command = get_command(app)
    rest = words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest[0]]
        rest = rest[1:]
    assert not hasattr(command, "commands"), f"no such command: {line}"
    flags = {flag for parameter in command.params for flag in parameter.opts}
    assert {word for word in rest if word.startswith("-")} <= flags
