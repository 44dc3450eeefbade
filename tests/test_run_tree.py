"""The tree of a run directory, in README and in two docstrings, is what a real run writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import run_cli, write_recipe

from stagecli.runs import checkpoint, directory

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
STEP = "step_00010000"  # the step in the documentation
CONTINUED = 16  # spaces before a line that continues the folder above


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that measures, scores, samples and saves, and is evaluated afterwards."""
    folder = tmp_path_factory.mktemp("tree")
    features = {
        "stage__regime__every": 2,
        "stage__regime__clips": 4,
        "stage__guidance__hidden": 16,
        "train__validate_every": 4,
        "train__evaluate_every": 4,
        "train__evaluate_clips": 4,
        "train__sample_every": 4,
        "train__steps": 8,
        "train__keep": 1,
    }
    recipe = write_recipe(folder / "t2a.toml", "t2a", **features)
    for command in (("train", recipe), ("evaluate", "runs/t2a", "--quick")):
        result = run_cli(*command, cwd=folder)
        assert result.code == 0, result.stderr
    return folder / "runs" / "t2a"


def documented(text: str) -> set[str]:
    """Paths in a tree drawn as text: braces are expanded, prose and notes in parentheses dropped.

    Fields of a line are two or more spaces apart. What follows a checkpoint's folder, on its line
    or on lines indented under it, lies in the folder.
    """
    paths = set()
    inside = ""
    for line in text.splitlines():
        if not line.startswith(" " * CONTINUED):
            inside = ""
        for field in re.split(r"\s{2,}", re.sub(r"\([^)]*\)", "", line).strip()):
            pieces = field.strip().split(", ")
            if not all(re.fullmatch(r"[\w./{},<>-]+", piece) for piece in pieces):
                continue
            for piece in pieces:
                if piece.startswith("runs/<name>"):
                    continue
                if not re.search(r"[./]|^latest$", piece):
                    continue
                path = piece if piece.startswith("checkpoints/") else inside + piece
                if piece == "latest":
                    path = "checkpoints/latest"
                head = re.match(r"checkpoints/step_\d+/", path)
                inside = head.group() if head else inside
                paths |= set(expanded(path))
    return paths


def expanded(path: str) -> list[str]:
    """`a/{b,c}.d` -> [`a/b.d`, `a/c.d`]."""
    match = re.search(r"\{([^}]*)\}", path)
    if match is None:
        return [path]
    return [path[: match.start()] + name + path[match.end() :] for name in match[1].split(",")]


def written(run: Path) -> set[str]:
    """Top-level entries of a run, and of its checkpoints, by the names in the documentation."""
    paths = {f"{path.name}/" if path.is_dir() else path.name for path in run.iterdir()}
    saved = checkpoint.steps(run / "checkpoints")[-1]
    for path in (run / "checkpoints").rglob("*"):
        name = path.relative_to(run).as_posix().replace(f"step_{saved:08d}", STEP)
        paths.add(f"{name}/" if path.is_dir() else name)
    return paths - {"checkpoints/"}


def tree_in(text: str) -> str:
    """The part of a text that begins with `runs/<name>/`, up to the end of its block."""
    return re.split(r"\n\s*\n|\n```", text[text.index("runs/<name>/") :])[0]


def test_the_reader_of_trees_reads() -> None:
    text = """runs/<name>/  recipe.toml (resolved)  run.json
      a.jsonl  b.jsonl     flat rows: step, time, ...
      checkpoints/step_00010000/{model,ema}.safetensors, state.json    latest
                                recipe.toml
      samples/  logs/attempt_1/
    """
    folder = f"checkpoints/{STEP}/"
    assert documented(text) == {
        *("recipe.toml", "run.json", "a.jsonl", "b.jsonl", "samples/", "logs/attempt_1/"),
        *(f"{folder}{name}" for name in ("model.safetensors", "ema.safetensors", "state.json")),
        *(f"{folder}recipe.toml", "checkpoints/latest"),
    }


def test_the_docstring_of_the_run_directory(run: Path) -> None:
    paths = documented(tree_in(directory.__doc__ or ""))
    contents = {path for path in written(run) if not path.startswith(f"checkpoints/{STEP}/")}
    assert paths == {*contents, f"checkpoints/{STEP}/"}


def test_the_docstring_of_checkpoints(run: Path) -> None:
    paths = documented((checkpoint.__doc__ or "").partition("\n\n")[2])
    contents = {path for path in written(run) if path.startswith("checkpoints/")}
    assert paths | {f"checkpoints/{STEP}/"} == contents


def test_the_tree_in_the_readme(run: Path) -> None:
    asked_for = {"trackers/"}  # by train.report_to
    assert documented(tree_in(README)) - asked_for == written(run) - {f"checkpoints/{STEP}/"}
