"""Text of strangers on the terminal: no control characters, and no values of `${VAR}` in errors."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, write_recipe

from stagecli.errors import EXIT_FAILED, EXIT_USAGE, Problem, StageError, printable
from stagecli.terminal.console import Console, LivePanel, progress
from stagecli.terminal.live import LiveView
from stagecli.terminal.views import PlainView, QuietView

Cli = Callable[..., Result]

# OSC 52 writes the clipboard, OSC 8 hides where a link leads; then C1, DEL, a right-to-left
# override, a carriage return that covers what stood before it, and half of a surrogate pair.
HOSTILE = "a\x1b]52;c;aGk=\x07b\x1b]8;;http://x\x1b\\c\x9b31md\x7fe\u202ef\rg\u2066h\u2028i\x00j\ud800k\x08"
FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
ROW = {"step": 1, "train/loss": 1.0, "mechanism": HOSTILE, "reason": HOSTILE}


def show_error() -> None:
    problem = Problem(f"{HOSTILE}:1:2", HOSTILE, HOSTILE)
    Console().error(StageError(HOSTILE, problems=[problem], hint=HOSTILE))


def show_view(view: Any) -> None:
    view.start({"name": HOSTILE, "run_dir": HOSTILE, "task": "t2a", "steps": 2, "step": 0})
    view.progress(HOSTILE, 1, 2)
    view.event({**ROW, "from": HOSTILE, "to": HOSTILE, "before": HOSTILE, "after": HOSTILE})
    view.row(ROW)
    view.note(HOSTILE)
    view.close("failed", HOSTILE)


def show_live_view() -> None:
    view = LiveView()
    view.board.info = {"name": HOSTILE, "run_dir": HOSTILE, "task": HOSTILE}
    view.board.add_event({**ROW, "from": HOSTILE, "to": HOSTILE})
    draw(view.panel)


def draw(panel: LivePanel) -> None:
    from rich.console import Console as RichConsole

    out = RichConsole(file=sys.stdout, color_system=None, width=100)
    out.print(panel.render(100, 30, plain=sys.stdout.encoding == "ascii"))


def show_progress() -> None:
    with progress(HOSTILE, 2) as advance:
        advance(2)


SHOWN: dict[str, Callable[[], None]] = {
    "an error": show_error,
    "a note": lambda: Console().note(HOSTILE),
    "a warning": lambda: Console().warn(HOSTILE),
    "a line": lambda: Console().text(HOSTILE, "bold"),
    "a table": lambda: Console().table(HOSTILE, [HOSTILE, "b"], [[HOSTILE, 1], [Path("x"), 2]]),
    "keys and values": lambda: Console().result({HOSTILE: HOSTILE}),
    "JSON": lambda: Console(as_json=True).result({HOSTILE: HOSTILE}),
    "lines of JSON": lambda: Console(as_json=True).line({HOSTILE: HOSTILE}),
    "the plain view": lambda: show_view(PlainView()),
    "the quiet view": lambda: show_view(QuietView()),
    "the live view": show_live_view,
    "a panel": lambda: draw(LivePanel(lambda *_: (HOSTILE, [[(HOSTILE, "red")]]))),
    "progress": show_progress,
}


@pytest.mark.parametrize("utf8", [True, False])
@pytest.mark.parametrize("shown", SHOWN)
def test_no_control_character_reaches_the_terminal(
    shown: str, utf8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding = "utf-8" if utf8 else "ascii"
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2)]
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])
    monkeypatch.setenv("NO_COLOR", "1")
    SHOWN[shown]()
    text = "".join(stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore
    assert "52;c" in text
    assert not FORBIDDEN.search(text)


def test_json_reads_back_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    Console(as_json=True).result({"name": HOSTILE})
    assert json.loads(capsys.readouterr().out) == {"name": HOSTILE}


def test_ordinary_text_is_not_changed() -> None:
    text = "naïve\t日本語 🎵 e\u0301\nΩ א"
    assert printable(text) == text


def test_a_hostile_file_name_in_an_error_and_in_its_traceback(cli: Cli, tmp_path: Path) -> None:
    name = HOSTILE.replace("\x00", "").replace("/", "").replace("\ud800", "\udcff")
    folder = tmp_path / name
    folder.mkdir()
    for env in ({}, {"STAGECLI_DEBUG": "1"}):
        result = cli("inspect-regime", folder, env=env)
        assert result.code == EXIT_USAGE
        assert "52;c" in result.stderr
        assert not FORBIDDEN.search(result.stderr)
        assert ("Traceback" in result.stderr) == bool(env)


TYPED = HOSTILE.replace("\x00", "")  # an argument of a command cannot hold NUL


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "r.toml", f"--{TYPED}"),
        ("train", "r.toml", f"-{TYPED}"),
        ("train", "r.toml", TYPED),
        (TYPED,),
        ("recipes", TYPED),
        ("sample", "run", "--steps", TYPED),
        ("sample", "run", "--sampler", TYPED),
        ("evaluate", "run", "--cfg-scale", TYPED),
        ("inspect-regime", "run", f"--json={TYPED}"),
        (f"--{TYPED}", "train"),
    ],
)
def test_a_hostile_argument_in_a_usage_error(arguments: tuple[str, ...], cli: Cli) -> None:
    result = cli(*arguments)
    assert result.code == EXIT_USAGE
    assert "error: " in result.stderr.lower()
    assert not result.stdout
    assert not FORBIDDEN.search(result.stderr)


def test_help_for_no_arguments_and_for_a_wrong_one_is_what_it_was(cli: Cli) -> None:
    assert cli().code == EXIT_USAGE
    assert "inspect-regime" in cli().stderr
    assert cli("--help").code == cli("--version").code == 0
    wrong = cli("train", "--nope")
    assert wrong.code == EXIT_USAGE
    assert "Usage: " in wrong.stderr
    assert "Error: No such option: --nope" in wrong.stderr


def test_a_message_of_another_library_in_the_traceback_of_an_unexpected_exception(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise ValueError(HOSTILE)

    monkeypatch.setattr("stagecli.recipe.load.read_about", failing)
    result = cli("recipes", "list")
    assert result.code == EXIT_FAILED
    assert "ValueError: a" in result.stderr
    assert not FORBIDDEN.search(result.stderr)


def test_a_hostile_recipe_is_refused_without_its_control_characters(
    cli: Cli, tmp_path: Path
) -> None:
    hostile = "a\u202eb\x9bc\x1bd"
    recipe = write_recipe(tmp_path / "r.toml", about__summary=hostile)
    result = cli("recipes", "show", recipe)
    assert result.code == 2
    assert "without control characters" in result.stderr
    assert not FORBIDDEN.search(result.stdout + result.stderr)


def test_a_hostile_run_is_inspected(cli: Cli, runs: Path) -> None:
    info = json.loads((runs / "t2a" / "run.json").read_text())
    (runs / "t2a" / "run.json").write_text(json.dumps({**info, "message": HOSTILE}))
    with (runs / "t2a" / "events.jsonl").open("a") as file:
        event = {**ROW, "time": 0, "from": HOSTILE, "to": HOSTILE, "evidence": {HOSTILE: HOSTILE}}
        file.write(json.dumps(event) + "\n")
    for flags in ((), ("--json",), ("--follow",)):
        result = cli("inspect-regime", "runs/t2a", *flags)
        assert result.code == 0, result.stderr
        assert not FORBIDDEN.search(result.stdout + result.stderr)


# --- ${VAR} ---------------------------------------------------------------------------------------

SECRET = "s3cr3t-t0ken/of-somebody"


@pytest.mark.parametrize(
    "changes",
    [
        {"data__source": "manifest", "data__path": "${SECRET}"},
        {"data__source": "manifest", "data__path": "/x/${SECRET}/manifest.jsonl"},
        {"data__source": "folder", "data__path": "${SECRET}/"},
        {"codec__vocoder": "./${SECRET}"},
        {"codec__kind": "dac", "codec__model": "${SECRET}"},
        {"condition__text": "transformers", "condition__model": "${SECRET}/x/y"},
        {"evaluate__judge": "transformers:./${SECRET}"},
        {"evaluate__judge": "${SECRET}"},
        {"stage__regime__monitor": "bundled:${SECRET}"},
    ],
)
@pytest.mark.parametrize("debug", ["", "1"])
def test_the_value_of_a_variable_is_not_in_an_error(
    changes: dict[str, str], debug: str, cli: Cli, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "r.toml", **changes)
    env = {"SECRET": SECRET, "STAGECLI_DEBUG": debug}
    for command in (("train", recipe), ("recipes", "check", recipe, "--json")):
        result = cli(*command, env=env)
        written = result.stdout + result.stderr
        assert SECRET not in written
        assert command[0] != "train" or result.code == EXIT_USAGE
        assert result.code == 0 or "${SECRET}" in written
    for file in (tmp_path / "runs").glob("*/run.json"):
        assert SECRET not in str(json.loads(file.read_text()).get("message"))


def test_a_short_value_does_not_turn_words_into_variables(cli: Cli, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.toml", data__source="manifest", data__path="${D}/x.jsonl")
    result = cli("train", recipe, env={"D": "data"})
    assert result.code == EXIT_USAGE
    assert "data/x.jsonl" in result.stderr
