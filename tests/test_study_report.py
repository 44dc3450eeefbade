"""The report of a study: known effects, gaps, and files that can be read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.run_directories import Page
from helpers.studies import ARMS, Arm, density, write_study

from stagecli.errors import StageError
from stagecli.report.density_map import DensityMap
from stagecli.report.panel import Panel
from stagecli.study.movement import crossing, r_at, total_variation
from stagecli.study.panels import study_panels
from stagecli.study.report import write_report
from stagecli.study.results import read_study
from stagecli.study.scores import best_strengths
from stagecli.terminal.console import Console

EXACT = {
    "standard": Arm(halving=150, noise=0),
    "strongest": Arm(halving=100, noise=0),
    "all": Arm(halving=80, noise=0, moves=0.25),
}


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reported study whose arms differ by known factors. Not to be changed."""
    path = write_study(tmp_path_factory.mktemp("study") / "exact", EXACT)
    write_report(path, Console())
    return path


def report_of(path: Path) -> dict[str, Any]:
    """The document after reporting."""
    files = write_report(path, Console())
    assert [file.name for file in files] == ["report.json", "report.md", "report.html"]
    return json.loads(files[0].read_text())


def change_rows(path: Path, change: Callable[[dict[str, Any]], bool]) -> None:
    """Change rows of scores.jsonl in place; those for which `change` is false are dropped."""
    rows = [json.loads(line) for line in (path / "scores.jsonl").read_text().splitlines()]
    kept = [row for row in rows if change(row)]
    (path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))


# -- known effects ---------------------------------------------------------------------------------


def test_steps_to_the_baselines_score_are_those_of_the_formula(exact: Path) -> None:
    document = json.loads((exact / "report.json").read_text())
    summary = document["steps_to_baseline"]
    assert summary["log"] is True
    for arm, halving in (("standard", 150), ("strongest", 100), ("all", 80)):
        entry = summary["arms"][arm]
        assert entry["reached"] == entry["n"] == 5
        assert entry["share"]["mean"] == pytest.approx(4 * halving / 600)
        assert entry["share"]["t"] == pytest.approx([4 * halving / 600] * 2)
        assert entry["median"] == pytest.approx(4 * halving / 600)
    # A step of `all` takes 1.1 times as long.
    assert summary["arms"]["all"]["seconds_share"]["mean"] == pytest.approx(1.1 * 320 / 600)
    assert summary["arms"]["all"]["seconds"] == pytest.approx(1.1 * 0.3 * 320)
    assert summary["arms_best_at_each_step"]["all"]["share"] == summary["arms"]["all"]["share"]


def test_conclusions_are_made_from_the_numbers(exact: Path) -> None:
    lines = json.loads((exact / "report.json").read_text())["conclusions"]
    (arrival,) = [line for line in lines if line.startswith("`all` reaches")]
    assert re.fullmatch(
        r"`all` reaches the final KAD of `standard` \([\d.]+\) after 320 of 600 steps \(53 %,"
        r" 95 % t interval 53 to 53 %, 5 seeds\); in 59 % of the baseline's training time\.",
        arrival,
    )
    assert any("`all` is better than `standard`" in line for line in lines)
    assert any("would be missed more than once in five times" in line for line in lines)
    assert any("its median t from 0.45 to 0.70" in line for line in lines)
    assert any(line.startswith("r of `all` reaches 0.5 at ") for line in lines)


def test_every_arm_is_compared_with_the_baseline_and_adaptive_ones_with_more(exact: Path) -> None:
    document = json.loads((exact / "report.json").read_text())
    rows = document["differences"]["kad"]["rows"]
    pairs = [(row["arm"], row["reference"]) for row in rows]
    assert pairs == [("strongest", "standard"), ("all", "standard"), ("all", "strongest")]
    assert [row["verdict"] for row in rows] == ["better"] * 3
    for row in rows:
        assert row["family"] == 3
        assert row["p_t"] <= row["p_holm"] <= 3 * row["p_t"]
        assert row["p_flip"] == row["p_flip_least"] == 2 / 32
        assert row["mean"] == pytest.approx(row["arm_mean"] - row["reference_mean"])


def test_two_adaptive_arms_are_compared_once(tmp_path: Path) -> None:
    arms = {"standard": Arm(halving=150), "a": Arm(halving=90, moves=0.1)}
    arms["b"] = Arm(halving=90, moves=0.2)
    document = report_of(write_study(tmp_path / "study", arms, against=("a", "b")))
    rows = document["differences"]["kad"]["rows"]
    assert [(row["arm"], row["reference"]) for row in rows][2:] == [("b", "a")]


def test_equal_arms_are_not_distinguishable(tmp_path: Path) -> None:
    arms = {"standard": Arm(halving=150), "same": Arm(halving=150)}
    document = report_of(write_study(tmp_path / "study", arms))
    (row,) = document["differences"]["kad"]["rows"]
    assert row["verdict"] == "undecided"
    assert any(
        "`same` is not distinguishable from `standard`" in x for x in document["conclusions"]
    )


def test_each_arm_is_judged_at_its_own_best_strength(tmp_path: Path) -> None:
    path = write_study(tmp_path / "study", EXACT)

    def change(row: dict[str, Any]) -> bool:
        if row["arm"] == "all" and row["strength"] == 2.0:
            row["kad"] *= 0.1 if row["step"] >= 450 else 1
        return True

    change_rows(path, change)
    arms = report_of(path)["arms"]
    assert arms["standard"]["strength"] == 1.5
    assert arms["all"]["strength"] == 2.0
    by_step = {"150": 1.5, "300": 1.5, "450": 2.0, "600": 2.0}
    assert arms["all"]["strength_by_step"] == by_step
    first = arms["all"]["scores"]["kad"]["150"]["mean"]
    assert arms["all"]["scores_best_at_each_step"]["kad"]["150"]["mean"] < first
    assert "| all | 1.5, 1.5, 2, 2 |" in (path / "report.md").read_text()


def test_seeds_that_never_arrive_or_had_arrived_are_counted_as_bounds(tmp_path: Path) -> None:
    arms = {
        "standard": Arm(halving=150, noise=0),
        "never": Arm(halving=200, noise=0),
        "at once": Arm(halving=30, noise=0),
        "mixed": Arm(halving=100, noise=0),
    }
    path = write_study(tmp_path / "study", arms)

    def change(row: dict[str, Any]) -> bool:
        if row["arm"] == "mixed" and row["seed"] < 2:
            row["kad"] *= 100
        return True

    change_rows(path, change)
    document = report_of(path)
    summaries = document["steps_to_baseline"]["arms"]
    assert summaries["never"]["reached"] == 0
    assert summaries["never"]["median"] is None
    assert summaries["at once"]["by_first"] == 5
    assert summaries["at once"]["share"]["mean"] == 0.25
    assert summaries["mixed"]["reached"] == 3
    assert summaries["mixed"]["share"]["mean"] == pytest.approx((3 * 400 / 600 + 2) / 5)
    assert summaries["mixed"]["median"] == pytest.approx(400 / 600)
    text = " ".join(document["conclusions"])
    assert "`never` never reaches the final KAD of `standard`" in text
    assert "after at most 150 of 600 steps (25 %" in text
    assert "after at least 480 of 600 steps (80 %" in text
    assert "2 seeds of 5 never, counted as the whole budget" in text


def test_a_score_may_be_better_when_higher(tmp_path: Path) -> None:
    path = write_study(tmp_path / "study", EXACT)
    plan = json.loads((path / "study.json").read_text())
    (path / "study.json").write_text(json.dumps({**plan, "primary": "label_accuracy"}))
    document = report_of(path)
    assert document["steps_to_baseline"]["log"] is False
    assert document["arms"]["all"]["strength"] == 1.5
    assert 0.4 < document["steps_to_baseline"]["arms"]["all"]["share"]["mean"] < 0.6
    assert document["differences"]["label_accuracy"]["rows"][1]["verdict"] == "better"


def test_super_resolution_has_no_strengths(tmp_path: Path) -> None:
    path = write_study(tmp_path / "study", EXACT, task="sr")
    document = report_of(path)
    assert document["missing"] == []
    assert document["arms"]["all"]["strength"] is None
    assert document["arms"]["all"]["scores"]["kad"]["600"]["n"] == 5
    assert "cfg_scale" not in (path / "report.md").read_text()


# -- what is missing -------------------------------------------------------------------------------


def test_a_half_done_study_is_reported_with_its_gaps(tmp_path: Path) -> None:
    path = write_study(tmp_path / "study")

    def change(row: dict[str, Any]) -> bool:
        if row["arm"] == "strongest" and row["seed"] == 1 and row["step"] == 300:
            row["kad"] = float("nan")
        if row["arm"] == "all" and row["seed"] == 4:
            return row["step"] <= 150
        return not (row["arm"] == "all" and row["seed"] in (2, 3))

    change_rows(path, change)
    shutil.rmtree(path / "runs" / "all-2")
    shutil.rmtree(path / "runs" / "all-3")
    with (path / "scores.jsonl").open("a") as file:
        file.write(json.dumps({"arm": "gone", "seed": 0, "step": 600, "strength": 1.5}) + "\n")
        file.write('{"arm": "all", "se')
    document = report_of(path)
    missing = document["missing"]
    assert "`all`, seeds 2, 3: 0 of 4 steps scored in full (run: not begun)" in missing
    assert "`all`, seed 4: 1 of 4 steps scored in full (run: finished)" in missing
    assert any("`strongest`: kad is not a finite number in 3 of 60 rows" in x for x in missing)
    assert any("1 row of arms, seeds, steps or strengths" in note for note in missing)
    assert any("cut off in the middle of a line" in note for note in missing)
    assert len(missing) == 5
    assert document["conclusions"][0].startswith("The study is not complete: 5 gaps")
    summary = document["steps_to_baseline"]["arms"]["all"]
    assert (summary["n"], summary["unfinished"]) == (2, [4])
    assert document["differences"]["kad"]["rows"][1]["seeds"] == [0, 1]
    for name in ("report.md", "report.html"):
        assert "(2 of 5)" in (path / name).read_text()
        assert "seeds 2, 3: 0 of 4 steps" in (path / name).read_text()


def test_a_score_that_an_arm_never_has_is_no_gap(tmp_path: Path) -> None:
    path = write_study(tmp_path / "study")

    def change(row: dict[str, Any]) -> bool:
        if row["arm"] == "standard":
            row["label_accuracy"] = None
        return True

    change_rows(path, change)
    document = report_of(path)
    assert document["missing"] == []
    assert document["not_measured"] == ["label_accuracy: in no row of standard"]
    assert "## Not measured" in (path / "report.md").read_text()


def test_a_study_without_scores_says_so(tmp_path: Path) -> None:
    path = write_study(tmp_path / "study")
    (path / "scores.jsonl").unlink()
    shutil.rmtree(path / "runs")
    document = report_of(path)
    assert document["missing"][0] == "scores.jsonl: missing"
    assert len(document["missing"]) == 4
    assert document["conclusions"] == ["The study is not complete: 4 gaps, listed under Missing."]


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    arms = {name: Arm(halving=arm.halving, seeds=(0,)) for name, arm in ARMS.items()}
    document = report_of(write_study(tmp_path / "study", arms))
    (row, _) = document["differences"]["kad"]["rows"]
    assert row["verdict"] == "one seed"
    assert row["p_holm"] is None
    assert any("in the one seed that both have" in line for line in document["conclusions"])
    assert document["steps_to_baseline"]["arms"]["all"]["share"]["bootstrap"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "has no study.json"),
        ({"baseline": "none"}, "is none of its arms"),
        ({"primary": "none"}, "is none of its metrics"),
        ({"score_steps": []}, "has no steps to score"),
        ({"arms": 3}, "cannot be used"),
        ({"steps": None}, "cannot be used"),
    ],
)
def test_what_is_no_study_is_refused(
    tmp_path: Path, change: dict[str, Any] | None, message: str
) -> None:
    path = tmp_path / "study"
    path.mkdir()
    if change is not None:
        write_study(tmp_path / "whole", EXACT)
        plan = json.loads((tmp_path / "whole" / "study.json").read_text())
        (path / "study.json").write_text(json.dumps({**plan, **change}))
    with pytest.raises(StageError, match=message) as error:
        write_report(path, Console())
    assert error.value.exit_code == 2
    assert error.value.hint


# -- r and densities -------------------------------------------------------------------------------


def test_r_over_the_budget() -> None:
    steps = [100, 200, 300, 400]
    r = [0.1, 0.3, 0.7, 0.9]
    assert crossing(steps, r, 0.5) == pytest.approx(250)
    assert crossing(steps, r, 0.05) == 100
    assert crossing(steps, r, 0.95) is None
    assert r_at(steps, r, 250) == 0.3
    assert r_at(steps, r, 400) == 0.9
    assert r_at(steps, r, 50) is None
    assert r_at(steps, r, 480) == 0.9  # the next probe would be later
    assert r_at(steps, r, 600) is None  # the run has not got there


def test_how_far_the_density_goes(exact: Path) -> None:
    summary = json.loads((exact / "report.json").read_text())["density"]["all"]
    ends = [density(middle)["density_shares"] for middle in (0.45, 0.7)]
    distance = total_variation(*ends)
    assert 0.5 < distance < 0.7
    assert summary["distance"]["mean"] == pytest.approx(distance)
    assert summary["first"]["q50"] == pytest.approx(0.45, abs=0.01)
    assert summary["last"]["q50"] == pytest.approx(0.70, abs=0.01)
    assert total_variation([1, 0], [0, 1]) == 1
    assert total_variation([0.5, 0.5], [0.5, 0.5]) == 0


def test_an_adaptive_arm_without_densities_is_named(tmp_path: Path) -> None:
    path = write_study(tmp_path / "study", EXACT)
    for probes in path.glob("runs/all-*/probes.jsonl"):
        probes.unlink()
    document = report_of(path)
    assert document["density"] == {"all": None}
    assert "`all`: no run has recorded its density of t." in document["conclusions"]


# -- files and pictures ----------------------------------------------------------------------------


def test_markdown_has_whole_tables(exact: Path) -> None:
    text = (exact / "report.md").read_text()
    assert text.startswith("# Study digits\n")
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert len(tables) >= 8
    for one in tables:
        assert len({line.count("|") for line in one.splitlines()}) == 1
    for title in ("Steps to the final KAD of standard", "How far the density of t went"):
        assert f"## {title}" in text


def test_the_page_is_sound_and_loads_nothing(exact: Path) -> None:
    text = (exact / "report.html").read_text()
    parser = Page()
    parser.feed(text)
    assert parser.open == []
    assert not {name for name, _ in parser.attributes} & {"src", "srcset", "href", "onclick"}
    assert "http" not in text
    assert "<script" not in text
    assert "<code>all</code> is better than <code>standard</code>" in text
    # Nothing but a scrolling box is wider than a phone.
    assert text.count("<table>") == text.count('<div class="scroll"')
    assert "max-width: 100%" in text
    assert "prefers-color-scheme: dark" in text


def test_names_of_arms_are_escaped(tmp_path: Path) -> None:
    arms = {"standard": Arm(halving=150), "<b>|": Arm(halving=90)}
    path = write_study(tmp_path / "study", arms)
    report_of(path)
    assert "<b>" not in (path / "report.html").read_text()
    markdown = (path / "report.md").read_text()
    assert "<b>" not in markdown
    assert "&lt;b>\\|" in markdown


def test_each_score_is_drawn_against_steps_and_seconds(exact: Path) -> None:
    results = read_study(exact)
    panels = study_panels(results, best_strengths(results))
    curves = [panel for panel in panels if isinstance(panel, Panel)]
    labels = [(panel.title, panel.x_label) for panel in curves]
    assert labels[:2] == [
        ("KAD, lower is better", "step"),
        ("KAD, lower is better", "seconds of training"),
    ]
    assert len(curves) == 5
    assert [trace.label for trace in curves[0].legend] == ["standard", "strongest", "all"]
    assert sum(trace.faint for trace in curves[0].traces) == 15
    assert curves[0].log
    last = curves[1].legend[2].points[-1]
    assert last.step == pytest.approx(0.3 * 1.1 * 600)
    (density_map,) = [panel for panel in panels if isinstance(panel, DensityMap)]
    assert density_map.title.endswith(", all, seed 0")


def test_many_arms_are_drawn_in_several_pictures(tmp_path: Path) -> None:
    arms = {"standard": Arm(halving=150, seeds=(0,))}
    arms |= {f"arm {k}": Arm(halving=90 + k, seeds=(0,)) for k in range(10)}
    results = read_study(write_study(tmp_path / "study", arms))
    panels = study_panels(results, best_strengths(results))
    first, _, second, *_ = panels
    assert isinstance(first, Panel)
    assert isinstance(second, Panel)
    assert [len(panel.legend) for panel in (first, second)] == [6, 6]
    assert first.legend[0].label == second.legend[0].label == "standard"


def test_the_terminal_shows_conclusions_and_brief_tables(
    exact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    write_report(exact, Console())
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert "- `all` reaches the final KAD of `standard`" in shown
    assert "Steps to the final KAD of standard, as a share of the budget" in shown
    assert "digits heard right (higher" not in shown  # in the files
    assert "+-" in shown


def test_json_is_the_whole_document(exact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(exact, Console(as_json=True))
    assert json.loads(capsys.readouterr().out) == json.loads((exact / "report.json").read_text())


def test_a_report_needs_no_torch() -> None:
    code = "import sys, stagecli.study.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
