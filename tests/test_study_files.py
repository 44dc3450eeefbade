"""Study files: every problem at once, with its place; shipped studies; the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_studies import REPLAYED, STUDY, write_study

from stagecli.errors import StageError
from stagecli.recipe.source import shipped_studies
from stagecli.study.load import find_study, load_study
from stagecli.study.plan import RunId, flat_keys
from stagecli.terminal.study_board import RunState, StudyBoard, study_lines
from stagecli.terminal.study_views import PlainStudyView

SELF = REPLAYED.replace("progress@next", "replayed@next")


def refusal(folder: Path, text: str, **changes: Any) -> str:
    """The error about a study."""
    path = write_study(folder, text, **changes)
    with pytest.raises(StageError) as refused:
        load_study(path)
    assert refused.value.exit_code == 2
    return str(refused.value)


BAD: list[tuple[str, str, list[str]]] = [
    ('name = "tiny"', 'name = "a/b"', ["tiny.study.toml:2:", "name: "]),
    ("seeds = [0, 1]", "sedes = [0, 1]", ["unknown key; did you mean `seeds`?"]),
    ("seeds = [0, 1]", "seeds = [0, 0]", ["seeds: names a seed twice"]),
    ("seeds = [0, 1]", "seeds = [-1]", ["seeds.0: "]),
    ('baseline = "standard"', 'baseline = "statnard"', ["baseline: there is no arm"]),
    ('baseline = "standard"', 'baseline = "standard"\nagainst = ["x"]', ["against: there is no"]),
    ('recipe = "tiny.toml"', 'recipe = "none.toml"', ["recipe: no such recipe file"]),
    ("steps = [4, 8]", "steps = [8, 4]", ["score.steps: must be in rising order"]),
    ("steps = [4, 8]", "steps = [4, 7]", ["score.steps: the last must be train.steps"]),
    ("clips = 8", "clips = 1", ["score.clips: "]),
    ("clips = 8", 'clips = 8\nprimary = "kadd"', ["score.primary", "did you mean `kad`?"]),
    ("strengths = [1.0, 2.0]", "strengths = [1, 1]", ["names a strength twice"]),
    ("strengths = [1.0, 2.0]", "strengths = [-1]", ["score.strengths.0"]),
    ('summary = "no', 'sumary = "no', ["arms.standard.sumary", "did you mean `summary`?"]),
    ('"train.log_every" = 1', '"train.log_evry" = 1', ["all arms: train.log_evry", "log_every"]),
    ('"train.log_every" = 1', '"train.seed" = 1', ["set.train.seed: is set by the study"]),
    ('kind" = "progress"', 'kind" = "progres"', ["arm progress: stage.timesteps.kind", ":16:1"]),
    (
        'kind" = "progress"',
        'kind" = "uniform"\n"data.seconds" = 0.3',
        ["data.seconds: must be the"],
    ),
]


@pytest.mark.parametrize(("old", "new", "told"), BAD, ids=[new for _, new, _ in BAD])
def test_a_bad_study_is_refused(tmp_path: Path, old: str, new: str, told: list[str]) -> None:
    assert old in STUDY
    message = refusal(tmp_path, STUDY.replace(old, new))
    assert [text for text in told if text not in message] == [], message


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    text = STUDY.replace("[4, 8]", "[8, 4]").replace('= "progress"', '= "x"')
    message = refusal(tmp_path, text.replace('"standard"', '"nobody"'))
    assert all(word in message for word in ("score.steps", "stage.timesteps.kind", "baseline"))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (REPLAYED.replace("progress@", "progres@"), "there is no arm 'progres'"),
        (REPLAYED.replace("@next", "@last"), "only @next is known"),
        (
            REPLAYED.replace(
                "[arms.replayed.set]", "[arms.replayed]\nseeds = [9]\n[arms.replayed.set]"
            ),
            "the arm 'progress' has no seed 9",
        ),
        (SELF, "in a circle: replayed-"),
    ],
)
def test_references_that_lead_nowhere_are_refused(tmp_path: Path, more: str, told: str) -> None:
    assert told in refusal(tmp_path, STUDY + more)


def test_one_seed_has_no_next(tmp_path: Path) -> None:
    text = (STUDY + REPLAYED).replace("seeds = [0, 1]", "seeds = [4]")
    assert "has no other seed than 4" in refusal(tmp_path, text)


def test_strengths_are_for_t2a(tmp_path: Path) -> None:
    message = refusal(tmp_path, STUDY, kind="sr", stage__regime__partial_band=True)
    assert "score.strengths: applies to t2a only" in message


def test_keys_may_be_tables(tmp_path: Path) -> None:
    assert flat_keys({"a.b": 1, "c": {"d": {"e": 2}}}) == {"a.b": 1, "c.d.e": 2}
    study = load_study(write_study(tmp_path, STUDY + "[arms.more.set.train]\nlr = 0.5\n"))
    assert study.load_recipe(RunId("more", 1)).train.lr == 0.5


def test_the_study_sets_its_own_keys(tmp_path: Path) -> None:
    text = STUDY.replace("steps = [4, 8]", "steps = [2, 6, 8]")
    study = load_study(write_study(tmp_path, text, data__workers=1))
    train = study.load_recipe(RunId("standard", 1)).train
    assert (train.seed, train.checkpoint_every, train.keep) == (1, 2, 8)
    assert study.folder == Path("runs/studies/tiny")


def test_own_seeds_come_after_those_of_all(tmp_path: Path) -> None:
    text = STUDY.replace(
        "[arms.progress.set]", "[arms.progress]\nseeds = [5, 0]\n[arms.progress.set]"
    )
    runs = load_study(write_study(tmp_path, text)).runs()
    assert [str(run) for run in runs] == ["standard-0", "progress-0", "standard-1", "progress-5"]


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_study(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECLI_DATA", str(tmp_path))
    study = load_study(find_study(name))
    assert study.name == name
    assert study.steps <= 1000
    assert name.endswith("-centres") or any(arm.adaptive for arm in study.arms.values())
    assert not study.arms[study.baseline].adaptive


def test_the_smallest_study_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECLI_DATA", str(tmp_path))
    study = load_study(find_study("smallest"))
    assert (len(study.arms), len(study.seeds)) == (2, 2)


# --- the table ------------------------------------------------------------------------------------


def board(states: list[RunState]) -> StudyBoard:
    return StudyBoard("tiny", {(f"arm{i // 2}", i % 2): s for i, s in enumerate(states)})


def test_the_table_shows_every_run() -> None:
    training = RunState(state="training", step=150, steps=600)
    states = [training, RunState(state="done"), RunState(state="failed"), RunState()]
    lines = ["".join(text for text, _ in line) for line in study_lines(board(states), 80, 20, True)]
    assert lines[0].split() == ["seed", "0", "1"]
    assert lines[1].split() == ["arm0", "150/600", "done"]
    assert lines[2].split() == ["arm1", "failed", "waiting"]
    assert lines[-1].endswith("1 of 4 runs done, 1 failed, 1 at work, 55%")


def test_the_table_fits_the_terminal() -> None:
    states = [RunState() for _ in range(60)]
    lines = study_lines(board(states), 50, 12, True)
    assert len(lines) <= 12
    assert all(sum(len(text) for text, _ in line) <= 50 + 40 for line in lines)


def test_lines_tell_states_and_failures(capsys: pytest.CaptureFixture[str]) -> None:
    """Each state of a run once; steps again only after a while."""
    view = PlainStudyView()
    state = RunState(state="training", step=0, steps=100)
    view.start(board([state]))
    for step in (0, 1, 2):
        state.step = step
        view.changed(("arm0", 0))
    state.state = "failed"
    state.message = "no luck"
    view.changed(("arm0", 0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("arm0-0: step 0/100")
    assert lines[1] == "arm0-0: failed: no luck"


def test_the_time_left_follows_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    state = RunState(state="training", step=0, steps=100)
    one = board([state])
    assert one.seconds_left is None
    state.step = 50
    monkeypatch.setattr("time.monotonic", lambda: one.began + 10)
    assert one.seconds_left == pytest.approx(10 / one.share * (1 - one.share))
