"""What people install by: the Dockerfile, the extras and the menu of the site fit the project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILE = (ROOT / ".ci" / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """(instruction, its text) of the Dockerfile, continued lines joined, comments left out."""
    joined = re.sub(r"\\\n\s*", " ", DOCKERFILE)
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]  # type: ignore[misc]


def test_the_image_installs_the_versions_of_the_project() -> None:
    pinned = [need for need in PROJECT["dependencies"] if "==" in need]
    assert len(pinned) == 2
    assert all(f'"{need}"' in DOCKERFILE for need in pinned)


def test_the_image_copies_what_the_package_is_built_from() -> None:
    """And `.dockerignore`, which leaves everything else out, lets it through."""
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = [name for kind, text in instructions() if kind == "COPY" for name in text.split()[:-1]]
    assert set(copied) == set(allowed)
    assert all((ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= set(copied)


def test_the_image_runs_doctor_and_not_as_root() -> None:
    order = [kind for kind, _ in instructions()]
    last = dict(instructions())
    assert last["USER"] == "stagecli"
    assert order.index("USER") > max(i for i, kind in enumerate(order) if kind in ("RUN", "COPY"))
    assert (last["ENTRYPOINT"], last["CMD"]) == ('["stagecli"]', '["doctor"]')


@pytest.mark.parametrize("page", ["install.md", "dependencies.md"])
def test_every_extra_is_documented(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = " ".join(line for line in text.splitlines() if line.startswith("|"))
    missing = [name for name in PROJECT["optional-dependencies"] if f"`{name}`" not in rows]
    assert missing == []


def test_every_page_is_in_the_menu_of_the_site() -> None:
    menu = re.findall(
        r"^ +- .+: (\S+\.md)$", (ROOT / ".ci" / "mkdocs.yml").read_text(), re.MULTILINE
    )
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert set(menu) == pages | {"index.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    assert len(menu) == len(set(menu))
