"""Damaged runs: every file of a run, damaged in every way, is named, worked around or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, read_rows, run_cli, tree, write_recipe
from helpers.damage import damages, flipped
from helpers.resume import attempts, weights

from stagecli.errors import StageError
from stagecli.report.run_report import read_run
from stagecli.report.summary import summarize_run

PROBED = {
    "stage__regime__every": 2,
    "stage__regime__clips": 4,
    "stage__guidance__hidden": 16,
    "train__checkpoint_every": 4,
    "train__keep": 3,
}
NEWEST = "step_00000010"
EARLIER = "step_00000008"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished and evaluated run. Do not change it: use `damaged`."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = write_recipe(folder / "t2a.toml", **PROBED)
    for command in (("train", recipe), ("evaluate", "runs/t2a", "--quick")):
        result = run_cli(*command, cwd=folder)
        assert result.code == 0, result.stderr
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of the run, in which `cli` works."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs" / "t2a"


Cli = Callable[..., Result]


def files(run: Path) -> list[Path]:
    """Every file of a run that is read again, relative to it; of the checkpoints, the newest's."""
    return [
        path.relative_to(run)
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.suffix != ".wav" and "step_0000000" not in str(path)
    ]


# --- every file, every damage ---------------------------------------------------------------------


def inspects(run: Path) -> None:
    report = read_run(run)
    document = summarize_run(report)
    assert json.dumps(document, allow_nan=False)


def samples(run: Path) -> None:
    from stagecli.generate.pipeline import load_pipeline

    load_pipeline(run)
    load_pipeline(run, "best")


def evaluates(run: Path) -> None:
    from stagecli.evaluate import runs
    from stagecli.evaluate.flags import Flags

    def only_loads(run: Path, which: str, *args: object, **options: object) -> None:
        runs.load_pipeline(run, which)
        raise StageError("loaded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "evaluate_run", only_loads)
        flags = Flags(runs=[run], checkpoints=["latest", "best"], quick=True)
        runs.evaluate_runs(flags, [run], progress=print, warn=print, note=print)


def resumes(run: Path) -> None:
    from stagecli.recipe.load import load_recipe
    from stagecli.runs import checkpoint
    from stagecli.runs.opening import open_run
    from stagecli.train.setup import starting_point

    recipe = load_recipe(run.parents[1] / "t2a.toml")
    opened = open_run(recipe, run, argv=[], overrides=[])
    try:
        start = starting_point(run / "checkpoints", None)
        assert start is not None
        checkpoint.load_state(start.path)
        for name in ("model", "ema"):
            checkpoint.load_weights(start.path, name)
    finally:
        opened.close()


COMMANDS = {
    "inspect-regime": inspects,
    "sample": samples,
    "evaluate": evaluates,
    "train": resumes,
}
ONLY_INSPECTED = (".jsonl", "environment.json", "_test_")


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_damage_of_every_file_is_worked_around_or_one_error(run: Path, command: str) -> None:
    """And no other file changes: a reader changes none, `train` none but those it writes."""
    tried = 0
    for name in files(run):
        if command != "inspect-regime" and any(part in str(name) for part in ONLY_INSPECTED):
            continue
        path = run / name
        content = path.read_bytes()
        others = {key: value for key, value in tree(run).items() if key != str(name)}
        for damage, damaged in damages(path):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            try:
                with suppress(StageError):
                    COMMANDS[command](run)
            except Exception as error:
                raise AssertionError(f"{command} on {name}, {damage}: {error!r}") from error
            tried += 1
            after = tree(run)
            if command == "train":
                for key in ("run.json", "recipe.toml", ".lock"):
                    others.pop(key, None)
            changed = [key for key, value in others.items() if after.get(key) != value]
            assert not changed, f"{command} on {name}, {damage}: {changed}"
            path.write_bytes(content)
            for left in run.glob("run.json.damaged-*"):
                left.unlink()
    assert tried > 138


# --- the newest whole checkpoint ------------------------------------------------------------------


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(flipped(content, len(content) // 2))


def events(run: Path, after: str) -> list[str]:
    return [row["reason"] for row in read_rows(run, "events") if row["to"] == after]


def resumed(run: Path, *more: str) -> Result:
    folder = run.parents[1]
    return run_cli("train", folder / "t2a.toml", *more, cwd=folder)


FILES = ("model.safetensors", "ema.safetensors", "trainer.safetensors", "state.json")


@pytest.mark.parametrize("name", [*FILES, "codec.safetensors", "recipe.toml", "sha256sums.txt"])
def test_a_flipped_bit_in_the_newest_checkpoint_is_noticed_and_the_one_before_is_used(
    run: Path, name: str
) -> None:
    from stagecli.runs import integrity

    flip(run / "checkpoints" / NEWEST / name)
    choice = integrity.newest_whole(run / "checkpoints")
    assert choice is not None and choice.path.name == EARLIER
    ((path, reason),) = choice.passed_over
    assert path.name == NEWEST and name in reason


def test_training_continues_from_the_newest_whole_checkpoint_and_an_event_says_so(
    run: Path, whole: Path
) -> None:
    flip(run / "checkpoints" / NEWEST / "trainer.safetensors")
    result = resumed(run)
    assert result.code == 0, result.stderr
    assert attempts(run) == [0, 8]
    assert weights(run) == weights(whole / "runs" / "t2a")
    (reason,) = events(run, "checkpoint passed over")
    assert f"{NEWEST} trainer.safetensors has changed since it was written" in reason
    assert f"continuing from {EARLIER}" in reason and f"{NEWEST}.old-1" in reason
    assert reason[:40] in result.stderr
    assert (run / "checkpoints" / f"{NEWEST}.old-1" / "trainer.safetensors").exists()


def test_sample_and_evaluate_report_on_stderr_which_checkpoint_they_use(run: Path) -> None:
    flip(run / "checkpoints" / NEWEST / "ema.safetensors")
    folder = run.parents[1]
    result = run_cli("sample", "runs/t2a", "-p", "a bell", "--json", cwd=folder)
    assert result.code == 0, result.stderr
    warning = " ".join(result.stderr.split())
    assert NEWEST in warning and "ema.safetensors has changed" in warning
    assert f"using {EARLIER}" in warning
    (row,) = json.loads(result.stdout)
    assert EARLIER in row["checkpoint"]
    scored = run_cli("evaluate", "runs/t2a", "--quick", "--json", cwd=folder)
    assert scored.code == 0 and f"using {EARLIER}" in " ".join(scored.stderr.split())


def test_a_damaged_trainer_state_does_not_keep_from_sampling(run: Path) -> None:
    flip(run / "checkpoints" / NEWEST / "trainer.safetensors")
    result = run_cli("sample", "runs/t2a", "-p", "a", "--json", cwd=run.parents[1])
    assert result.code == 0 and NEWEST in json.loads(result.stdout)[0]["checkpoint"]
    assert "damaged" not in result.stderr


def test_a_damaged_checkpoint_that_was_asked_for_is_refused_with_the_others(run: Path) -> None:
    flip(run / "checkpoints" / NEWEST / "ema.safetensors")
    result = run_cli("sample", "runs/t2a", "-p", "a", "--checkpoint", "10", cwd=run.parents[1])
    assert result.code == 2
    assert "is damaged" in result.stderr and "4, 8" in result.stderr


def test_a_run_without_a_whole_checkpoint_is_refused_and_left_as_it_is(run: Path) -> None:
    for path in (run / "checkpoints").glob("step_*/state.json"):
        path.write_text("{}")
    before = tree(run / "checkpoints")
    result = resumed(run)
    assert result.code == 1
    assert "no checkpoint" in result.stderr and "--restart" in result.stderr
    assert tree(run / "checkpoints") == before


def test_a_step_of_10_to_the_30_is_not_finished(run: Path) -> None:
    """Also without sums, as earlier versions wrote it."""
    folder = run / "checkpoints" / NEWEST
    (folder / "sha256sums.txt").unlink()
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "step": 10**30}))
    assert resumed(run).code == 0
    assert attempts(run) == [0, 8]


def test_checkpoints_of_earlier_versions_load_and_a_cut_one_is_noticed(run: Path) -> None:
    from stagecli.runs import integrity

    for path in (run / "checkpoints").glob("step_*/sha256sums.txt"):
        path.unlink()
    choice = integrity.newest_whole(run / "checkpoints")
    assert choice is not None and choice.path.name == NEWEST
    file = run / "checkpoints" / NEWEST / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    choice = integrity.newest_whole(run / "checkpoints")
    assert choice is not None and choice.path.name == EARLIER


@pytest.mark.parametrize("part", ["optimizer", "stages", "log_window", "ema_updates"])
def test_trainer_state_of_a_wrong_type_is_one_error_that_names_a_way_out(
    run: Path, part: str
) -> None:
    folder = run / "checkpoints" / NEWEST
    (folder / "sha256sums.txt").unlink()
    state: Any = json.loads((folder / "state.json").read_text())
    state["trainer"] = {
        "$dict": [[k, [1] if k == part else v] for k, v in state["trainer"]["$dict"]]
    }
    (folder / "state.json").write_text(json.dumps(state))
    result = resumed(run)
    assert result.code == 2, result.stderr
    assert "is damaged" in result.stderr and "--from-checkpoint" in result.stderr


# --- an older checkpoint by name ------------------------------------------------------------------


def test_an_older_checkpoint_can_be_named_and_newer_ones_are_kept(run: Path, whole: Path) -> None:
    result = resumed(run, "--from-checkpoint", "4")
    assert result.code == 0, result.stderr
    assert attempts(run) == [0, 4]
    assert weights(run) == weights(whole / "runs" / "t2a")
    assert len(events(run, "checkpoint passed over")) == 2
    kept = {path.name for path in (run / "checkpoints").glob("*.old-1")}
    assert kept == {f"{NEWEST}.old-1", f"{EARLIER}.old-1"}


@pytest.mark.parametrize(
    "more", [["--from-checkpoint", "5"], ["--from-checkpoint", "4", "--restart"]]
)
def test_a_checkpoint_that_cannot_be_continued_is_refused_before_anything_changes(
    run: Path, more: list[str]
) -> None:
    before = tree(run)
    result = resumed(run, *more)
    assert result.code == 2
    assert "--restart" in more or "4, 8, 10" in result.stderr
    assert tree(run) == before


# --- run.json, recipe.toml, codec.safetensors -----------------------------------------------------


@pytest.mark.parametrize(
    "content", [b'{"schema": 1, "na', b"[]", b"null", b"{}", b'"caf\xe9"', None]
)
def test_a_damaged_run_json_is_made_again_and_kept(run: Path, content: bytes | None) -> None:
    path = run / "run.json"
    path.unlink() if content is None else path.write_bytes(content)
    result = resumed(run)
    assert result.code == 0, result.stderr
    info = json.loads(path.read_text())
    assert (info["status"], info["steps"], len(info["attempts"])) == ("finished", 10, 2)
    assert info["best"]["step"] in (4, 8, 10)
    assert len(events(run, "run.json made again")) == 1
    kept = [kept.read_bytes() for kept in run.glob("run.json.damaged-*")]
    assert kept == ([] if content is None else [content])


def test_a_damaged_run_json_does_not_stop_restart(run: Path) -> None:
    (run / "run.json").write_text('{"schema": 1, "na')
    result = resumed(run, "--restart")
    assert result.code == 0, result.stderr
    assert (run.parent / "t2a.old-1" / "run.json").read_text() == '{"schema": 1, "na'
    assert attempts(run) == [0]


def test_a_run_whose_run_json_is_lost_still_refuses_another_recipe(run: Path) -> None:
    (run / "run.json").write_text("{}")
    result = resumed(run, "--set", "train.lr=0.5")
    assert result.code == 2 and "train.lr" in result.stderr


def test_sample_names_the_damaged_run_json_and_the_command_that_makes_it_again(run: Path) -> None:
    (run / "run.json").write_text("[1]")
    before = tree(run)
    result = run_cli("sample", "runs/t2a", "-p", "a", cwd=run.parents[1])
    assert result.code == 2 and tree(run) == before
    assert "run.json" in result.stderr and "stagecli train" in result.stderr


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_damaged_codec_statistics_are_taken_from_the_checkpoint(run: Path, damage: str) -> None:
    path = run / "codec.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-9] if damage == "cut" else flipped(content, len(content) - 5))
    result = run_cli("sample", "runs/t2a", "-p", "a", cwd=run.parents[1])
    assert result.code == 0, result.stderr
    assert "codec.safetensors" in result.stderr
    assert f"using that of {NEWEST}" in " ".join(result.stderr.split())
    assert resumed(run).code == 0
    assert path.read_bytes() == content
    assert len(events(run, "made again")) == (damage != "missing")


def test_a_bit_of_recipe_toml_that_changes_the_model_is_noticed(run: Path) -> None:
    path = run / "recipe.toml"
    path.write_text(path.read_text().replace("sample_rate = 8000", "sample_rate = 8001"))
    result = run_cli("sample", "runs/t2a", "-p", "a", cwd=run.parents[1])
    assert result.code == 0
    assert "data.sample_rate changed" in " ".join(result.stderr.split())


# --- caches ---------------------------------------------------------------------------------------


def test_a_poisoned_cache_of_checks_is_made_again_and_an_event_says_so(tmp_path: Path) -> None:
    import numpy as np

    from stagecli.data.audio import write_wav

    clips = tmp_path / "clips"
    clips.mkdir()
    rows = []
    for i in range(8):
        noise = np.random.default_rng(i).uniform(-0.5, 0.5, 8000).astype(np.float32)
        write_wav(clips / f"{i}.wav", noise, 8000)
        split = ("train", "train", "valid", "test")[i % 4]
        rows.append({"path": f"{i}.wav", "caption": "noise", "split": split})
    (clips / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = write_recipe(
        tmp_path / "own.toml",
        data__source="manifest",
        data__path=str(clips / "m.jsonl"),
        train__steps=2,
    )
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    checks = tmp_path / "runs" / ".cache" / "checks.jsonl"
    poison = [None, 7, [[1, 2], "x"], [[0, 1, 1], None], [None, None], {"a": 1}]
    lines = [json.loads(line) for line in checks.read_text().splitlines()]
    for line, value in zip(lines, poison, strict=False):
        line[4] = value
    checks.write_text("".join(json.dumps(line) + "\n" for line in [*lines, 3, [1], "x"]))
    result = run_cli("train", recipe, "--name", "again", cwd=tmp_path)
    assert result.code == 0, result.stderr
    (reason,) = events(tmp_path / "runs" / "again", "made again")
    assert "checks.jsonl: " in reason and "damaged entries" in reason
    assert run_cli("train", recipe, "--name", "third", cwd=tmp_path).code == 0
    assert not (tmp_path / "runs" / "third" / "events.jsonl").exists()


@pytest.mark.parametrize("kind", ["bit", "cut", "header", "shape"])
def test_a_damaged_array_of_a_cache_is_made_again_and_an_event_says_so(
    run: Path, kind: str
) -> None:
    """Features of the teacher, which `[stage.guidance]` caches for every training clip."""
    path = sorted((run.parent / ".cache").glob("features-*/*/*.npy"))[0]
    content = path.read_bytes()
    damaged = {
        "bit": flipped(content, len(content) - 20),
        "cut": content[:-1],
        "header": content[:10] + b"(" * 60 + content[70:],
        "shape": content.replace(b"(", b"(99999999999999999999,", 1),
    }
    path.write_bytes(damaged[kind])
    result = resumed(run, "--restart")
    assert result.code == 0, result.stderr
    (reason,) = events(run, "made again")
    assert "damaged files made again: 1" in reason
    assert path.read_bytes() == content


def test_poisoned_scores_of_an_evaluation_are_dropped(tmp_path: Path) -> None:
    from stagecli.evaluate.ledger import open_ledger

    path = tmp_path / "a.clips.jsonl"
    good = {"model": {"lsd": 1.0, "snr": None}}
    bad = [None, 1, [], {"model": 1}, {"model": {"lsd": "x"}}, {"other": {"lsd": 1}}, {"model": {}}]
    lines = [["1 Hz", "good", good], *(["1 Hz", f"bad {i}", value] for i, value in enumerate(bad))]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, [1, 2, 3], 7]))
    ledger = open_ledger(path, {"model": ["lsd"]})
    assert list(ledger.scores) == [("1 Hz", "good")]
    assert ledger.damaged == len(bad) + 2


def test_inspect_reads_what_it_can_and_names_the_rest(run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    info |= {"steps": "ten", "attempts": [1, {"attempt": 1, "from_step": 0}], "best": [10]}
    (run / "run.json").write_text(json.dumps(info))
    (run / "checkpoints" / NEWEST / "state.json").unlink()
    (run / "checkpoints" / "latest").write_bytes(b"\xff\xfe")
    report = read_run(run)
    document = summarize_run(report)
    assert (document["name"], document["steps"], document["step"]) == ("t2a", None, 10)
    assert document["best_checkpoint"] is None
    named = "\n".join(document["damage"])
    for text in ("`steps` cannot be 'ten'", "attempt 1: not an object", "`best` cannot be [10]"):
        assert text in named
    assert f"{NEWEST}: has no state.json" in named and "checkpoints/latest" in named
