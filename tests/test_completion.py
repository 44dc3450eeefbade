"""Completion in a shell: recipes, runs, keys with their choices; without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_results import Cli

from stagecli.cli import completion

PROGRAM = """
import sys
from stagecli import cli
sys.argv = ["stagecli"]
try:
    cli.main()
finally:
    heavy = {"torch", "transformers", "numpy", "scipy"} & set(sys.modules)
    assert not heavy, heavy
"""


def complete(*words: str, cwd: Path, shell: str = "zsh") -> str:
    """What a shell is offered for the last word, by a process that imports nothing heavy."""
    environment = {
        "_STAGECLI_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": " ".join(words),
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
        "PYTHONPATH": str(Path(completion.__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout


def write_run(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "finished"}))


def test_a_shell_is_offered_recipes_runs_and_choices(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "mine")
    assert "quickstart-sr" in complete("stagecli", "train", "quick", cwd=tmp_path)
    assert "mine" in complete("stagecli", "sample", "mi", cwd=tmp_path)
    offered = complete("stagecli", "train", "x", "--set", "codec.kind=m", cwd=tmp_path)
    assert "codec.kind=mel" in offered and "codec.kind=mdct" in offered and "dac" not in offered


def test_bash_splits_words_at_the_equals_sign(tmp_path: Path) -> None:
    words = ("stagecli", "train", "x", "--set", "data.clips", "=", "9", "--set", "codec.kind", "=")
    for more in ((), ("m",)):
        offered = complete(*words, *more, cwd=tmp_path, shell="bash")
        assert offered.split() == (
            ["mel", "mdct"] if more else ["mel", "mdct", "stft", "dac", "encodec"]
        )


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("train.sample", ["train.sample_every=", "train.samples="]),
        ("train.prec", [f"train.precision={word}" for word in ("auto", "fp32", "bf16", "fp16")]),
        ("train.precision=b", ["train.precision=bf16"]),
        (
            "train.activation",
            [f"train.activation_checkpointing={word}" for word in ("true", "false")],
        ),
        (
            "stage.structure.wh",
            [f"stage.structure.when={w}" for w in ("converged", "always", "step")],
        ),
        ("train.lr=", []),
        ("nothing", []),
    ],
)
def test_keys_and_their_choices(typed: str, offered: list[str]) -> None:
    assert [word for word, _ in completion.complete_setting(typed)] == offered


def test_paths_are_offered_beside_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "group" / "b")
    (tmp_path / "my.toml").write_text("")
    (tmp_path / "notes.txt").write_text("")
    assert [word for word, _ in completion.complete_run("")] == ["a", "group/b", "runs/"]
    assert [word for word, _ in completion.complete_run("runs/")] == ["runs/a/", "runs/group/"]
    assert [word for word, _ in completion.complete_recipe("m")] == ["my.toml"]
    assert completion.complete_run("no/such/folder/") == []


def test_help_stands_in_groups_with_examples(cli: Cli) -> None:
    text = cli("--help").stdout
    headings = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == [
        "Options:",
        "Train:",
        "Listen and measure:",
        "Data, recipes, runs and this machine:",
    ]
    commands = ("train", "study", "bench", "sample", "evaluate", "inspect-regime", "demo")
    commands += ("export", "runs", "doctor", "data check", "recipes new", "recipes show")
    for command in commands:
        lines = cli(*command.split(), "--help").stdout.splitlines()
        examples = lines[lines.index("  Examples:") + 1 :]
        assert examples and all(line.startswith("    stagecli ") for line in examples)
    assert "From files (sr):" in cli("sample", "--help").stdout
