"""The command line: exit codes, stdout and stderr, error messages, and the reading commands."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cli_results import Cli, document
from conftest import TERMINAL, run_cli, tree, write_recipe

# --- exit codes and errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--version"], 0, []),
        (["--help"], 0, []),
        (["recipes", "list"], 0, []),
        (["recipes", "check", "good.toml"], 0, []),
        (["recipes", "check", "bad.toml"], 1, ["bad.toml"]),
        (["recipes", "check", "nowhere.toml"], 1, ["nowhere.toml"]),
        (["inspect-regime", "runs/t2a"], 0, []),
        (["tarin"], 2, ["tarin"]),
        (["train"], 2, ["Missing argument"]),
        (["train", "good.toml", "--stepz", "3"], 2, ["--stepz"]),
        (["train", "bad.toml"], 2, ["bad.toml:", "hint:"]),
        (["train", "quikstart"], 2, ["quikstart", "did you mean `quickstart`?"]),
        (["train", "good.toml", "--set", "train.lr"], 2, ["--set train.lr", "key=VALUE"]),
        (["inspect-regime", "nowhere"], 2, ["nowhere", "hint:"]),
        (["evaluate", "nowhere"], 2, ["nowhere", "hint:"]),
        (["evaluate", "runs/t2a", "--task", "music"], 2, ["music", "t2a, sr"]),
        (["evaluate", "runs/t2a", "--task", "sr"], 2, ["runs/t2a is a t2a run, not sr"]),
        (["evaluate", "runs/t2a", "--split", "dev"], 2, ["dev", "train, valid, test"]),
        (["evaluate", "runs/t2a", "--checkpoint", "77"], 2, ["'77'", "there are: "]),
        (["evaluate", "--runs-dir", "empty"], 2, ["empty", "hint:"]),
        (["evaluate", "--reference", "runs"], 2, ["--task", "t2a, sr"]),
        (["evaluate", "--reference", "runs", "--task", "sr"], 2, ["--generated"]),
        (["sample", "runs/t2a"], 2, ["--prompt", "--input"]),
        (["sample", "runs/t2a", "--input", "good.toml"], 2, ["good.toml"]),
        (["sample", "runs/t2a", "--prompt", "x", "--sampler", "ddim"], 2, ["ddim", "euler"]),
        (["sample", "runs/t2a", "--prompt", "x", "--steps", "0"], 2, ["--steps"]),
        (["sample", "runs/t2a", "-p", "x", "-p", "y", "-o", "one.wav"], 2, ["2 prompts"]),
        (["sample", "runs/t2a", "--prompts", "gone.txt"], 2, ["gone.txt"]),
        (["sample", "runs/sr", "--prompt", "x"], 2, ["super-resolution", "--input"]),
        (["sample", "runs/sr", "--input", "gone.wav"], 2, ["gone.wav", "missing"]),
    ],
)
def test_exit_code(
    arguments: list[str],
    code: int,
    words: list[str],
    *,
    cli: Cli,
    runs: Path,
    tmp_path: Path,
    sr_recipe: Any,
) -> None:
    write_recipe(tmp_path / "good.toml")
    write_recipe(tmp_path / "bad.toml", train__stepz=3)
    (tmp_path / "empty").mkdir()
    result = cli(*arguments)
    assert result.code == code, result
    for word in words:
        assert word in " ".join(result.stderr.split()), result.stderr
    assert "Traceback" not in result.stderr
    if code == 2:
        assert result.stdout == "", "stdout is for data"
    if code == 0:
        assert result.stdout


def test_ctrl_c_in_a_reading_command_is_130(
    cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagecli.report import run_report

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_report, "read_run", interrupted)
    result = cli("inspect-regime", runs / "t2a")
    assert (result.code, result.stdout) == (130, "")
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(cli: Cli) -> None:
    result = cli("inspect-regime", "nowhere", env={"STAGECLI_DEBUG": "1"})
    assert result.code == 2
    assert "Traceback" in result.stderr
    assert "nowhere" in result.stderr


def test_every_mistake_of_a_recipe_at_once_each_with_its_place(cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "bad.toml",
        train__stepz=3,
        model__width=33,
        codec__kind="mdtc",
        data__sample_rate="fast",
    )
    lines = recipe.read_text().splitlines()
    result = cli("train", recipe, "--set", "train.batch_size=0")
    assert result.code == 2
    for text, word in (
        ("stepz", "did you mean `steps`?"),
        ('kind = "mdtc"', "mdct"),
        ("sample_rate", "'fast'"),
    ):
        number = next(i for i, line in enumerate(lines, 1) if line.startswith(text))
        assert f"bad.toml:{number}:" in result.stderr and word in result.stderr
    assert "--set train.batch_size=0" in result.stderr
    assert "width 33" in result.stderr
    assert not (tmp_path / "runs").exists()


# --- help and start -------------------------------------------------------------------------------

OPTIONS = {
    "train": [
        "--name",
        "--runs-dir",
        "--set",
        "--dry-run",
        "--prepare-only",
        "--restart",
        "--quiet",
        "Path of a recipe",
    ],
    "evaluate": [
        "--task",
        "--split",
        "--checkpoint",
        "--samples",
        "--cutoff",
        "--reference",
        "--generated",
        "--json",
    ],
    "inspect-regime": ["--plot", "--html", "--follow", "--every", "--json", "run directories"],
    "sample": [
        "--prompt",
        "--prompts",
        "--input",
        "--output",
        "--seconds",
        "--cutoff",
        "--seed",
        "--json",
    ],
    "recipes": ["list", "show", "copy", "check"],
    "recipes show": ["--set", "--json"],
    "recipes copy": ["--force"],
    "recipes check": ["--set", "--json"],
    "doctor": ["--runs-dir", "--json"],
    "bench": ["--steps", "--set", "--json"],
    "": [
        "train",
        "evaluate",
        "inspect-regime",
        "sample",
        "recipes",
        "bench",
        "doctor",
        "--version",
    ],
}


@pytest.mark.parametrize("command", OPTIONS)
def test_help_mentions_every_option(command: str, cli: Cli) -> None:
    result = cli(*command.split(), "--help")
    assert result.code == 0
    assert result.stderr == ""
    for option in OPTIONS[command]:
        assert option in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 100


HELP_PROBE = """
import resource, sys
from stagecli import cli
sys.argv = ["stagecli", *{arguments!r}]
try:
    cli.main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"torch", "transformers", "numpy", "accelerate", "pydantic"}} & set(sys.modules)
assert not heavy, heavy
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, file=sys.stderr)
"""


@pytest.mark.parametrize("command", OPTIONS)
def test_help_is_fast_and_imports_nothing_heavy(command: str) -> None:
    """At most 0.3 s of CPU time, of the process rather than the clock: tests share few cores."""
    code = HELP_PROBE.format(arguments=[*command.split(), "--help"])
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        seconds.append(float(done.stderr))
        if seconds[-1] <= 0.3:
            break
    assert min(seconds) <= 0.3


def test_the_list_of_recipes_imports_no_torch() -> None:
    code = """
import sys
from stagecli import cli
sys.argv = ["stagecli", "recipes", "list"]
try:
    cli.main()
except SystemExit as end:
    assert not end.code, end.code
assert not {"torch", "transformers", "numpy", "accelerate"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_as_the_command_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stagecli", "train", "nowhere.toml"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "nowhere.toml" in done.stderr and "Traceback" not in done.stderr


# --- train ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_dry_run_shows_the_plan_and_writes_nothing(kind: str, cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml", kind)
    before = tree(tmp_path)
    result = cli("train", recipe, "--dry-run")
    assert result.code == 0, result.stderr
    assert tree(tmp_path) == before and sorted(p.name for p in tmp_path.iterdir()) == ["r.toml"]
    for word in (
        "training clips",
        "24",
        "width 32, depth 2",
        "parameters",
        "none (plain training)",
    ):
        assert word in result.stdout


def test_prepare_only_trains_nothing(cli: Cli, tmp_path: Path) -> None:
    result = cli("train", write_recipe(tmp_path / "r.toml"), "--prepare-only")
    assert result.code == 0, result.stderr
    assert "24 training" in result.stderr
    assert not list(tmp_path.glob("runs/r"))


def test_one_line_per_interval_where_there_is_no_terminal(cli: Cli, tmp_path: Path) -> None:
    result = cli("train", write_recipe(tmp_path / "r.toml", train__log_every=4))
    assert result.code == 0
    assert result.stdout == ""
    steps = [
        line.split()[1]
        for line in result.stderr.splitlines()
        if line.startswith("step") and "loss" in line
    ]
    assert steps == ["4/10", "8/10", "10/10"]
    assert "\r" not in result.stderr and "\x1b" not in result.stderr
    assert result.stderr.isascii()
    assert result.stderr.splitlines()[-1].startswith("next:  stagecli evaluate runs/r")
    assert cli("train", tmp_path / "r.toml", "--name", "q", "--quiet").stderr == ""


# --- recipes --------------------------------------------------------------------------------------


def test_recipes_list_show_and_check_as_json(cli: Cli, tmp_path: Path) -> None:
    listed = json.loads(cli("recipes", "list", "--json").stdout)
    assert "quickstart" in {row["name"] for row in listed}
    shown = json.loads(
        cli("recipes", "show", "quickstart", "--set", "train.lr=3e-4", "--json").stdout
    )
    assert shown["train"]["lr"] == 3e-4
    good = cli("recipes", "check", "quickstart", "--json")
    assert good.code == 0 and json.loads(good.stdout)["ok"] is True
    bad = cli("recipes", "check", write_recipe(tmp_path / "bad.toml", train__stepz=3), "--json")
    assert bad.code == 1
    problems = json.loads(bad.stdout)["problems"]
    assert (
        len(problems) == 1
        and "stepz" in problems[0]["what"]
        and "bad.toml:" in problems[0]["where"]
    )


def test_a_shown_recipe_is_the_recipe(cli: Cli, tmp_path: Path) -> None:
    shown = cli("recipes", "show", "quickstart-sr").stdout
    (tmp_path / "shown.toml").write_text(shown)
    signatures = [
        json.loads(cli("recipes", "check", r, "--json").stdout)
        for r in ("quickstart-sr", "shown.toml")
    ]
    assert signatures[0]["signature"] == signatures[1]["signature"]


def test_recipes_copy_never_replaces_a_file(cli: Cli, tmp_path: Path) -> None:
    assert cli("recipes", "copy", "quickstart", "mine.toml").code == 0
    (tmp_path / "mine.toml").write_text("# my work\n")
    refused = cli("recipes", "copy", "quickstart", "mine.toml")
    assert refused.code == 2
    assert "mine.toml exists" in refused.stderr and "--force" in refused.stderr
    assert (tmp_path / "mine.toml").read_text() == "# my work\n"
    assert cli("recipes", "copy", "quickstart", "mine.toml", "--force").code == 0
    assert 'name = "quickstart"' in (tmp_path / "mine.toml").read_text()
    (tmp_path / "folder").mkdir()
    assert cli("recipes", "copy", "quickstart", "folder").code == 0
    assert cli("recipes", "copy", "quickstart", "folder").code == 2
    assert cli("recipes", "copy", "quikstart", "other.toml").code == 2
    nowhere = cli("recipes", "copy", "quickstart", "no/such/folder/r.toml")
    assert nowhere.code == 2 and "no/such/folder" in nowhere.stderr


def test_a_copy_of_a_recipe_that_extends_another_stands_alone(cli: Cli, tmp_path: Path) -> None:
    data = {"STAGECLI_DATA": str(tmp_path)}
    assert cli("recipes", "copy", "fsdd-t2a-stage", "mine.toml").code == 0
    copied = tomllib.loads((tmp_path / "mine.toml").read_text())
    assert "extends" not in copied
    assert copied["train"]["steps"] == 2000
    assert copied["data"]["path"].startswith("${STAGECLI_DATA}")
    checked = [
        document(cli("recipes", "check", recipe, "--json", env=data))
        for recipe in ("fsdd-t2a-stage", "mine.toml")
    ]
    assert checked[0] == checked[1]


def test_a_mistake_in_an_extended_recipe_is_shown_with_its_file_and_line(
    cli: Cli, tmp_path: Path
) -> None:
    write_recipe(tmp_path / "base.toml", train__stepz=3)
    lines = (tmp_path / "base.toml").read_text().splitlines()
    number = lines.index("stepz = 3") + 1
    (tmp_path / "mine.toml").write_text('extends = "base.toml"\n')
    result = cli("train", "mine.toml")
    assert result.code == 2
    assert "mine.toml has 1 problem" in result.stderr
    assert f"base.toml:{number}:1" in result.stderr


# --- the machine -------------------------------------------------------------------------------


def test_the_terminal_is_pinned() -> None:
    """The tests above rely on the width and colours that `run_cli` sets."""
    assert run_cli("--version", cwd=Path.cwd()).stdout.startswith("stagecli ")
    assert TERMINAL["COLUMNS"] == "100"


@pytest.mark.parametrize(("fast", "expected"), [(True, "bf16"), (False, "fp32")])
def test_precision_auto_is_resolved_by_the_machine_and_kept(
    fast: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    recipe = write_recipe(
        tmp_path / "a.toml", train__precision="auto", train__steps=1, train__samples=0
    )
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    kept = tomllib.loads((tmp_path / "runs" / "a" / "recipe.toml").read_text())
    assert kept["train"]["precision"] == expected
    assert run_cli("train", recipe, cwd=tmp_path).code == 0  # resumes: nothing has changed
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not fast)
    other = run_cli("train", recipe, cwd=tmp_path)
    assert other.code == 2 and "precision" in other.stderr
