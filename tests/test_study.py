"""`stagecli study`: what it trains, scores, keeps and refuses, and that it goes on after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import forked, losses_of, read_rows, run_cli, tree
from helpers.tiny_studies import REPLAYED, STUDY, Here, tiny_study

from stagecli.errors import StageError
from stagecli.study.launch import run_study, selected_runs
from stagecli.study.plan import RunId, Study
from stagecli.study.pool import Pool
from stagecli.study.records import missing
from stagecli.study.work import Work, lost_checkpoints
from stagecli.terminal.study_views import QuietStudyView

TIMED = ("seconds",)


class Silent(QuietStudyView):
    """Remembers the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def do(study: Study, *, arms: Any = (), seeds: Any = ()) -> tuple[str, dict[RunId, str], Here]:
    """Work on a study in this process."""
    pools: list[Here] = []

    def make_pool(study: Study, size: int) -> Here:
        pools.append(Here(study, size))
        return pools[-1]

    runs = selected_runs(study, arms, seeds)
    status, failures = run_study(study, runs, Silent(), make_pool=make_pool)
    return status, failures, pools[0]


def scores(study: Study) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Scores by (arm, seed, step, strength), without times."""
    rows = [json.loads(line) for line in (study.folder / "scores.jsonl").read_text().splitlines()]
    keys = ("arm", "seed", "step", "strength")
    values = [{k: v for k, v in row.items() if k not in (*keys, *TIMED)} for row in rows]
    by_key = {tuple(row[k] for k in keys): value for row, value in zip(rows, values, strict=True)}
    assert len(by_key) == len(rows), "each is scored once"
    return by_key


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study. Do not change it: use `again`."""
    folder = tmp_path_factory.mktemp("study")
    status, failures, pool = do(tiny_study(folder))
    assert (status, failures) == ("finished", {})
    seeds_outermost = [("standard", 0), ("progress", 0), ("standard", 1), ("progress", 1)]
    assert pool.started == seeds_outermost
    return folder


@pytest.fixture
def again(home: Path, tmp_path: Path) -> Callable[..., Study]:
    """The finished study in a folder of the test's own, with another text."""
    shutil.copytree(home / "study", tmp_path / "study")

    def study(text: str = STUDY, **changes: Any) -> Study:
        return tiny_study(tmp_path, text, data__cache_dir=str(home / "cache"), **changes)

    return study


# --- what it does ---------------------------------------------------------------------------------


def test_every_run_is_scored_at_every_step_and_strength(home: Path) -> None:
    study = tiny_study(home)
    arms = ("standard", "progress")
    wanted = {(a, s, t, x) for a in arms for s in (0, 1) for t in (4, 8) for x in (1.0, 2.0)}
    assert set(scores(study)) == wanted
    info = json.loads((study.folder / "study.json").read_text())
    for row in scores(study).values():
        assert set(row) == set(info["metrics"])
        assert all(isinstance(row[name], float) for name in ("kad", "Dn", "valid_loss_high_t"))
    assert info["primary"] == "kad" and info["metrics"]["kad"]["direction"] == "lower"
    assert [info["arms"][arm]["adaptive"] for arm in arms] == [False, True]
    assert (study.folder / "study.toml").read_text() == STUDY


def test_measurements_are_those_of_the_step(home: Path) -> None:
    """Dn of the last probe until then, the loss at t >= 0.5, and seconds that only grow."""
    study = tiny_study(home)
    run = study.run_dir(RunId("progress", 1))
    rows = [json.loads(line) for line in (study.folder / "scores.jsonl").read_text().splitlines()]
    mine = [row for row in rows if (row["arm"], row["seed"]) == ("progress", 1)]
    assert {row["step"]: row["Dn"] for row in mine} == {
        row["step"]: row["Dn"] for row in read_rows(run, "probes") if row["step"] in (4, 8)
    }
    at_4 = next(r for r in read_rows(run) if r["step"] == 4 and "valid/loss" in r)
    high = [at_4[f"valid/loss_t{t}"] for t in ("0.50", "0.70", "0.90")]
    assert mine[0]["valid_loss_high_t"] == pytest.approx(sum(high) / 3)
    seconds = {row["step"]: row["seconds"] for row in mine}
    assert 0 < seconds[4] < seconds[8]


def test_arms_of_a_seed_begin_alike(home: Path) -> None:
    """Initialisation, data, noise and t: the first loss, before a mechanism acts, is the same."""
    study = tiny_study(home)
    first = {run: losses_of(study.run_dir(run))[0] for run in study.runs()}
    assert first[RunId("standard", 0)] == first[RunId("progress", 0)]
    assert first[RunId("standard", 1)] == first[RunId("progress", 1)]
    assert first[RunId("standard", 0)] != first[RunId("standard", 1)]


def test_only_the_last_checkpoint_stays(home: Path) -> None:
    study = tiny_study(home)
    for run in study.runs():
        saved = sorted(p.name for p in (study.run_dir(run) / "checkpoints").glob("step_*"))
        assert saved == ["step_00000008"]
        assert json.loads((study.run_dir(run) / "run.json").read_text())["status"] == "finished"


def test_the_same_command_again_does_nothing(again: Callable[..., Study]) -> None:
    study = again()
    before = tree(study.folder)
    assert do(study)[2].started == []
    after = tree(study.folder)
    locks = {name for name in after if name.endswith(".lock")}
    assert {k: v for k, v in after.items() if k not in locks} == {
        k: v for k, v in before.items() if k not in locks
    }


def test_what_is_added_is_done_and_the_rest_is_kept(again: Callable[..., Study]) -> None:
    before = scores(again())
    text = STUDY.replace('summary = "no mechanism"', 'summary = "no mechanism"\nseeds = [0, 1, 5]')
    study = again(text)
    assert do(study)[2].started == [RunId("standard", 5)]
    after = scores(study)
    assert {key: after[key] for key in before} == before
    assert len(after) == len(before) + 4


def test_a_step_whose_checkpoint_is_gone_is_trained_again(again: Callable[..., Study]) -> None:
    """Training repeats exactly, so the scores that are there stay true."""
    study = again(STUDY.replace("steps = [4, 8]", "steps = [2, 4, 8]"))
    run = RunId("standard", 0)
    before = losses_of(study.run_dir(run))
    assert lost_checkpoints(study, run) == [2]
    status, failures, pool = do(study, arms=["standard"], seeds=[0])
    assert (status, failures, pool.started) == ("finished", {}, [run])
    assert losses_of(study.run_dir(run)) == before
    assert not missing(study, run)
    assert (study.folder / "runs" / "standard-0.old-1").is_dir()


def test_sr_is_scored_by_cutoff_and_in_the_mean(tmp_path: Path) -> None:
    text = STUDY.replace("strengths = [1.0, 2.0]\n", "").replace("seeds = [0, 1]", "seeds = [3]")
    study = tiny_study(tmp_path, text, "sr", stage__regime__partial_band=True)
    assert do(study, arms=["standard"])[:2] == ("finished", {})
    assert set(scores(study)) == {("standard", 3, 4, None), ("standard", 3, 8, None)}
    row = scores(study)["standard", 3, 8, None]
    assert row["lsd"] == pytest.approx((row["lsd_2000"] + row["lsd_4000"]) / 2)
    assert json.loads((study.folder / "study.json").read_text())["primary"] == "lsd"


# --- runs that need others ------------------------------------------------------------------------


def test_a_run_waits_for_the_one_it_reads(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, STUDY + REPLAYED)
    replayed = RunId("replayed", 0)
    assert study.needs(replayed) == [RunId("progress", 1)]
    assert study.needs(RunId("replayed", 1)) == [RunId("progress", 0)]
    status, failures, pool = do(study, arms=["replayed"], seeds=[0])
    assert (status, failures) == ("finished", {})
    assert pool.started == [RunId("progress", 1), replayed]
    source = str(study.run_dir(RunId("progress", 1)).resolve())
    assert f'replay = "{source}"' in (study.run_dir(replayed) / "recipe.toml").read_text()


def test_a_failure_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(self: Work, run: RunId) -> bool:
        if run == RunId("progress", 0):
            raise StageError("out of luck")
        return True

    monkeypatch.setattr(Work, "do", break_down)
    status, failures, pool = do(tiny_study(tmp_path, STUDY + REPLAYED))
    assert status == "finished"
    assert failures[RunId("progress", 0)] == "out of luck"
    assert "progress-0" in failures[RunId("replayed", 1)]
    assert RunId("replayed", 1) not in pool.started
    assert {RunId("standard", 1), RunId("progress", 1)} < set(pool.started)


# --- what it refuses ------------------------------------------------------------------------------


def test_a_changed_recipe_of_a_run_is_refused(again: Callable[..., Study]) -> None:
    study = again(STUDY + '"train.lr" = 0.002\n')
    with pytest.raises(StageError) as refused:
        do(study)
    assert [p.where for p in refused.value.problems] == [
        "arm progress, seed 0",
        "arm progress, seed 1",
    ]
    assert refused.value.problems[0].what == "train.lr: 0.001 in the run, 0.002 now"


def test_a_longer_budget_is_refused(again: Callable[..., Study]) -> None:
    """The schedule of the learning rate would differ from that of runs that began with it."""
    text = STUDY.replace("steps = [4, 8]", "steps = [4, 8, 12]")
    with pytest.raises(StageError, match="other recipes") as refused:
        do(again(text, train__steps=12))
    assert "train.steps: 8 in the run, 12 now" in str(refused.value)


def test_other_scoring_is_refused(again: Callable[..., Study]) -> None:
    with pytest.raises(StageError, match="another way") as refused:
        do(again(STUDY.replace("clips = 8", "clips = 6")))
    assert refused.value.problems[0].where == "score.clips"


# --- kills and signals ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_goes_on_exactly(number: signal.Signals, home: Path, tmp_path: Path) -> None:
    """Killed while runs train in two processes, the same command gives the same scores."""
    one_seed = STUDY.replace("seeds = [0, 1]", "seeds = [0]")
    study = tiny_study(tmp_path, one_seed, data__cache_dir=str(home / "cache"))
    ends: Path = tmp_path / "end"

    def work() -> None:
        runs = selected_runs(study, (), ())
        status, _ = run_study(
            study, runs, Silent(), workers=2, make_pool=lambda s, n: Pool(s, n, "fork")
        )
        ends.write_text(status)

    rows = study.run_dir(RunId("standard", 0)) / "metrics.jsonl"
    process = forked(work)
    limit = time.monotonic() + 120
    while not (rows.exists() and '"step": 2,' in rows.read_text()) and time.monotonic() < limit:
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(120)
    if number == signal.SIGTERM:
        assert ends.read_text() == "interrupted"
        saved = list((study.run_dir(RunId("standard", 0)) / "checkpoints").glob("step_*"))
        assert saved, "the run at work is saved"
    assert do(study)[:2] == ("finished", {})
    whole = scores(tiny_study(home))
    assert scores(study) == {key: row for key, row in whole.items() if key[1] == 0}


def test_a_worker_that_is_killed_fails_its_run_only(home: Path, tmp_path: Path) -> None:
    study = tiny_study(tmp_path, data__cache_dir=str(home / "cache"))
    pool = Pool(study, 1, "fork")

    def start_and_kill(run: RunId) -> None:
        Pool.start(pool, run)
        if run == RunId("standard", 0):
            os.kill(pool.workers[0].process.pid or 0, signal.SIGKILL)

    pool.start = start_and_kill  # type: ignore[method-assign]
    runs = selected_runs(study, ["standard"], ())
    status, failures = run_study(study, runs, Silent(), make_pool=lambda s, n: pool)
    assert status == "finished"
    assert "SIGKILL" in failures.pop(RunId("standard", 0))
    assert failures == {}
    assert {key[1] for key in scores(study)} == {1}


# --- the command ----------------------------------------------------------------------------------


def test_the_command_reports_on_what_is_there(home: Path, tmp_path: Path) -> None:
    result = run_cli("study", home / "study", "--report", cwd=home)
    assert result.code == 0 and "standard" in result.stdout
    result = run_cli("study", tmp_path, "--report", cwd=tmp_path)
    assert result.code == 2 and "holds no study" in result.stderr
    result = run_cli("study", "smalest", cwd=tmp_path)
    assert result.code == 2 and "did you mean `smallest`?" in result.stderr


def test_unknown_arms_and_seeds_are_refused(home: Path) -> None:
    text = home / "tiny.study.toml"
    result = run_cli("study", text, "--arms", "nobody", "--seeds", "7", cwd=home)
    assert result.code == 2
    assert "no arm 'nobody'" in result.stderr and "no arm has the seed 7" in result.stderr
    assert run_cli("study", text, "--seeds", "x", cwd=home).code == 2
    assert run_cli("study", text, "--workers", "0", cwd=home).code == 2
