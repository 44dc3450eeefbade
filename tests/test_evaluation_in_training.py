"""Evaluation while training: no effect on training, its numbers, the best checkpoint, plateaus."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import losses_of, read_rows, run_cli, sha, write_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecli.errors import StageError
from stagecli.generate.pipeline import Pipeline, SamplerSettings, load_pipeline
from stagecli.metrics import in_training
from stagecli.recipe.load import load_recipe
from stagecli.report import evaluation
from stagecli.report.panels import run_panels
from stagecli.report.run_report import read_run
from stagecli.report.summary import summarize_run
from stagecli.terminal.board import Board
from stagecli.terminal.board_lines import board_lines
from stagecli.terminal.views import PlainView

LAST = "step_00000010"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/{t2a,sr} with evaluations and runs/{t2a,sr}-plain without."""
    folder = tmp_path_factory.mktemp("evaluated")
    for kind, best in (("t2a", "eval/fd_log_mel"), ("sr", "eval/si_sdr")):
        more: dict[str, Any] = {
            "train__evaluate_every": 3,
            "train__evaluate_clips": 6,
            "train__best": best,
        }
        recipe = write_recipe(
            folder / f"{kind}.toml", kind, train__keep=10, evaluate__batch_size=4, **more
        )
        assert run_cli("train", recipe, cwd=folder).code == 0
        plain = write_recipe(folder / f"{kind}-plain.toml", kind, train__keep=10)
        assert run_cli("train", plain, cwd=folder).code == 0
    return folder / "runs"


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_rows(run) if "eval/seconds" in row]


# -- what is trained, and the rows -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_it_changes_nothing_that_is_trained(kind: str, trained: Path) -> None:
    run = trained / kind
    plain = trained / f"{kind}-plain"
    assert losses_of(run) == losses_of(plain)
    for name in ("model", "ema"):
        assert sha(run / "checkpoints" / LAST / f"{name}.safetensors") == sha(
            plain / "checkpoints" / LAST / f"{name}.safetensors"
        )
    assert evaluations(plain) == []


@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_rows_at_every_nth_step_at_checkpoints_and_at_the_end(kind: str, trained: Path) -> None:
    rows = evaluations(trained / kind)
    assert [row["step"] for row in rows] == [3, 4, 6, 8, 9, 10]
    recipe = load_recipe(trained / kind / "recipe.toml")
    for row in rows:
        assert [key for key in row if in_training.described(key)] == in_training.rows(recipe)
        assert all(math.isfinite(row[key]) for key in in_training.rows(recipe))
        assert row["eval/clips"] == 6
        assert row["eval/seconds"] > 0
        if kind == "sr":
            assert row["eval/lsd"] == pytest.approx(
                (row["eval/lsd_2000"] + row["eval/lsd_4000"]) / 2
            )


@pytest.mark.parametrize("kind", ["t2a", "sr"])
def test_the_best_checkpoint_is_the_best_of_those_saved(kind: str, trained: Path) -> None:
    metric, choose = {"t2a": ("eval/fd_log_mel", min), "sr": ("eval/si_sdr", max)}[kind]
    saved = {
        row["step"]: row[metric] for row in evaluations(trained / kind) if row["step"] in (4, 8, 10)
    }
    value = choose(saved.values())
    best = json.loads((trained / kind / "run.json").read_text())["best"]
    assert best["metric"] == metric and best["value"] == value and saved[best["step"]] == value
    assert load_pipeline(trained / kind, "best")[1].name == f"step_{best['step']:08d}"
    shown = run_cli("inspect-regime", trained / kind, cwd=trained)
    assert f"step {best['step']}, {metric} {value:.4g}" in shown.stdout


def test_the_scores_are_those_of_the_checkpoint(trained: Path) -> None:
    """The last row's LSD again, from the saved EMA weights, clip by clip through `restore`."""
    from stagecli.data.degrade import degrade, test_low_pass
    from stagecli.data.examples import evenly
    from stagecli.evaluate.pairs import PairSettings, score_pair
    from stagecli.train.prepare import prepare

    run = trained / "sr"
    pipeline, _ = load_pipeline(run)
    recipe = pipeline.recipe
    prepared = prepare(recipe, run, pipeline.device, lambda *_: None)
    names = ("lsd", "lsd_hf", "lsd_lf", "log_mel", "si_sdr")
    examples = prepared.examples(evenly(prepared.valid, 6))
    settings = PairSettings(
        sample_rate=16000,
        cutoff=4000,
        preset="nuwave",
        names=names,
    )
    scores = []
    for i in range(6):
        target = examples.valid_audio(i)[0]
        low = degrade(target, 16000, test_low_pass(recipe.evaluate, 4000))
        restored = pipeline.restore(
            low,
            4000,
            seed=recipe.evaluate.seed,
            settings=SamplerSettings.of(recipe.evaluate),
            index=i,
        )
        scores.append(score_pair(target, restored, settings))
    row = evaluations(run)[-1]
    for name in names:
        assert row[f"eval/{name}_4000"] == pytest.approx(
            np.mean([score[name] for score in scores]), rel=1e-4
        )


def test_generate_by_index_is_the_same_sample(trained: Path) -> None:
    pipeline, _ = load_pipeline(trained / "t2a")
    chosen = SamplerSettings.of(pipeline.recipe.evaluate)
    prompts = ["a", "b", "c"]
    whole = pipeline.generate(prompts, seed=3, settings=chosen)
    part = pipeline.generate(prompts[1:], seed=3, settings=chosen, indices=[1, 2])
    np.testing.assert_allclose(np.stack(part), np.stack(whole[1:]), atol=1e-4)


def test_audio_that_is_not_finite_is_a_row_without_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on, and such weights are never the best."""
    restore = Pipeline.restore_many

    def broken(self: Pipeline, lows: list[np.ndarray], *args: Any, **keys: Any) -> list[np.ndarray]:
        restored = restore(self, lows, *args, **keys)
        restored[0][5] = np.nan
        return restored

    monkeypatch.setattr(Pipeline, "restore_many", broken)
    more = {
        "train__evaluate_every": 4,
        "train__best": "eval/lsd",
        "train__samples": 0,
        "train__steps": 4,
    }
    recipe = write_recipe(tmp_path / "sr.toml", "sr", **more)
    assert run_cli("train", recipe, cwd=tmp_path).code == 0
    (row,) = evaluations(tmp_path / "runs" / "sr")
    assert row["eval/lsd"] is None and row["eval/si_sdr_2000"] is None
    assert json.loads((tmp_path / "runs" / "sr" / "run.json").read_text())["best"] is None


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("sr", {"train__best": "eval/lsd"}, "never measured: train.evaluate_every is 0"),
        (
            "sr",
            {"train__best": "eval/fd_judge", "train__evaluate_every": 5},
            "eval/fd_judge is for t2a",
        ),
        (
            "t2a",
            {"train__best": "eval/lsd_4000", "train__evaluate_every": 5},
            "eval/lsd_4000 is for sr",
        ),
        (
            "t2a",
            {"train__best": "eval/clap_score", "train__evaluate_every": 5},
            "not computed in training",
        ),
        (
            "sr",
            {"train__best": "eval/lsd_3000", "train__evaluate_every": 5},
            "not computed in training",
        ),
        ("sr", {"train__best": "eval/lds", "train__evaluate_every": 5}, "did you mean `eval/lsd`?"),
        ("sr", {"train__best": "loss"}, "did you mean `valid/loss`?"),
    ],
)
def test_a_metric_that_cannot_choose_is_refused(
    kind: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path / "r.toml", kind, **changes)
    with pytest.raises(StageError) as caught:
        load_recipe(path)
    (problem,) = caught.value.problems
    assert message in problem.what and "train.best" in problem.what


def test_crops_too_short_for_the_metric_are_refused_before_training(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "sr.toml", "sr", data__seconds=0.05, train__evaluate_every=5)
    result = run_cli("train", recipe, cwd=tmp_path)
    assert result.code == 2
    assert "for LSD" in result.stderr and "data.seconds" in result.stderr
    assert not (tmp_path / "runs" / "sr" / "metrics.jsonl").exists()


def test_a_dry_run_shows_what_is_evaluated_and_reports_a_missing_judge(tmp_path: Path) -> None:
    more = {"train__evaluate_every": 5, "train__evaluate_steps": 7, "train__evaluate_clips": 3}
    recipe = write_recipe(tmp_path / "t2a.toml", "t2a", **more)
    assert (
        "every 5 steps, 3 valid clips, 7 sampler steps"
        in run_cli("train", recipe, "--dry-run", cwd=tmp_path).stdout
    )
    for command in (("--dry-run",), ()):
        result = run_cli(
            "train", recipe, "--set", "evaluate.judge=bundled:nobody", *command, cwd=tmp_path
        )
        assert result.code == 2 and "nobody" in result.stderr


def test_a_resume_reports_changed_evaluation_settings(tmp_path: Path) -> None:
    base = {"train__evaluate_every": 3, "train__evaluate_clips": 6, "train__steps": 4}
    reasons = []
    for changes in (
        {},
        {"train__steps": 5, "train__log_every": 1, "evaluate__batch_size": 2},
        {"train__steps": 6, "evaluate__seed": 7},
    ):
        base = {**base, **changes}
        assert (
            run_cli("train", write_recipe(tmp_path / "m.toml", "t2a", **base), cwd=tmp_path).code
            == 0
        )
        there = (tmp_path / "runs" / "m" / "events.jsonl").exists()
        events = read_rows(tmp_path / "runs" / "m", "events") if there else []
        reasons.append(
            [row["reason"] for row in events if row["to"] == "evaluation settings changed"]
        )
    assert reasons[:2] == [[], []]
    assert len(reasons[2]) == 1
    assert "evaluate.seed: 0 -> 7" in reasons[2][0]


def test_the_preset_names_its_rows(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "sr.toml", "sr", evaluate__preset="ssr_eval"))
    assert in_training.computed(recipe) == (
        "lsd_ssr_eval",
        "lsd_ssr_eval_hf",
        "lsd_ssr_eval_lf",
        "log_mel",
        "si_sdr",
    )
    described = in_training.described("eval/lsd_ssr_eval_hf_4000")
    assert described is not None
    assert (described[0].name, described[1]) == ("lsd_ssr_eval_hf", "4000")


# -- the best --------------------------------------------------------------------------------------


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=12))
def test_best_is_the_last_of_the_extremes(values: list[float]) -> None:
    known = [(k, v) for k, v in enumerate(values) if math.isfinite(v)]
    for metric, choose in (("eval/lsd", min), ("eval/si_sdr_4000", max)):
        best: dict[str, Any] | None = None
        for step, value in enumerate(values):
            best = in_training.best(best, metric, step, value)
        if not known:
            assert best is None
        else:
            extreme = choose(v for _, v in known)
            assert best == {
                "step": [k for k, v in known if v == extreme][-1],
                "metric": metric,
                "value": extreme,
            }


def test_a_best_by_another_metric_is_discarded() -> None:
    before = {"step": 3, "metric": "valid/loss", "value": 0.1}
    assert in_training.best(before, "eval/lsd", 5, 2.0) == {
        "step": 5,
        "metric": "eval/lsd",
        "value": 2.0,
    }


# -- plateaus --------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(8, 60), st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_no_plateau_while_it_improves_beyond_its_noise(seed: int, count: int, size: float) -> None:
    """A fall of three standard deviations of the noise per row is recognised in any unit."""
    noise = np.random.default_rng(seed).standard_normal(count)
    values = size * (noise - np.arange(count) * 3.0)
    assert evaluation.plateau("eval/lsd", list(range(count)), values.tolist()) is None
    assert evaluation.plateau("eval/si_sdr", list(range(count)), (-values).tolist()) is None


def test_no_plateau_on_a_smooth_curve_that_still_falls() -> None:
    values = [1 + math.exp(-k / 10) for k in range(30)]
    assert evaluation.plateau("eval/lsd", list(range(30)), values) is None


def test_slow_progress_under_the_noise_is_not_a_plateau() -> None:
    """3 standard deviations of the noise over 60 rows: no row stands out, the trend does."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(50):
        values = 0.1 * rng.standard_normal(60) - 0.005 * np.arange(60)
        missed += evaluation.plateau("valid/loss", list(range(60)), values.tolist()) is not None
    assert missed <= 8


def test_a_plateau_is_found_and_dated() -> None:
    rng = np.random.default_rng(1)
    detected = 0
    for _ in range(50):
        values = np.concatenate([np.linspace(3, 1, 10), np.ones(20)]) + 0.02 * rng.standard_normal(
            30
        )
        flat = evaluation.plateau("eval/lsd", [100 * k for k in range(30)], values.tolist())
        if flat is not None:
            detected += 1
            assert 800 <= flat["since_step"] <= 1900
    assert detected >= 40


def test_too_few_rows_have_no_plateau() -> None:
    assert evaluation.plateau("eval/lsd", list(range(7)), [1.0] * 7) is None
    flat = evaluation.plateau("eval/lsd", list(range(8)), [1.0] * 8)
    assert flat is not None and flat["margin"] == 0


def test_the_advice_follows_the_learning_rate_and_the_direction() -> None:
    steps = list(range(0, 1000, 50))
    values = [12.0 + 0.1 * (-1) ** k for k in range(20)]

    def advice(values: list[float], rate: list[float]) -> str:
        columns = {"eval/si_sdr": (steps, values), "eval/seconds": (steps, values)}
        rows = [
            {"step": s, "eval/si_sdr": v, "eval/seconds": 1.0}
            for s, v in zip(steps, values, strict=True)
        ]
        return evaluation.evaluation_sentences(
            evaluation.summarize_evaluations(rows, columns.__getitem__, "eval/si_sdr"), rate
        )[-1]

    assert "eval/si_sdr has not improved by more than" in advice(values, [1e-3, 1e-3])
    assert "lower it before adding steps" in advice(values, [1e-3, 1e-3])
    assert "at 5 % of its peak" in advice(values, [1e-3, 5e-5])
    assert "now worse than at its best" in advice(
        [*values[:14], 11, 10.8, 10.5, 10, 9.5, 9], [1e-3]
    )


# -- what is shown ---------------------------------------------------------------------------------


def test_inspect_shows_curves_and_their_metrics(trained: Path) -> None:
    report = read_run(trained / "sr")
    said = summarize_run(report)
    json.dumps(said, allow_nan=False)
    assert said["evaluation"]["chosen"] == "eval/si_sdr"
    best = [line for line in said["reading"] if line.startswith("best eval/si_sdr (")]
    assert "higher is better): " in best[0]
    assert {"eval/lsd", "eval/si_sdr_4000"} <= said["series"].keys()
    drawn = {panel.title: panel for panel in run_panels([report])}
    panel = drawn["si_sdr on valid, dB (higher is better)"]
    assert [line.label for line in panel.traces] == [
        "mean over cutoffs",
        "si_sdr, 2000 Hz",
        "si_sdr, 4000 Hz",
    ]
    assert len(drawn["lsd on valid, log10 power (lower is better)"].traces) == 3
    both = [
        panel for panel in run_panels([report, report]) if panel.title.startswith("si_sdr on valid")
    ]
    assert len(both) == 1 and len(both[0].traces) == 2


def test_the_live_view_and_the_plain_one_show_the_newest_evaluation(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = Board(info={"steps": 10, "best_by": "eval/si_sdr"}, step=10)
    view = PlainView()
    for row in read_rows(trained / "sr"):
        board.add_row(row)
        view.row(row)
    text = "\n".join(
        "".join(piece for piece, _ in line) for line in board_lines(board, 100, 40, True)
    )
    rows = evaluations(trained / "sr")
    top = max(rows, key=lambda row: row["eval/si_sdr"])
    assert (
        f"{rows[-1]['eval/si_sdr']:.4g}" in text
        and f"best {top['eval/si_sdr']:.4g} at step {top['step']}" in text
    )
    assert f"lsd_hf {rows[-1]['eval/lsd_hf']:.4g}" in text and "lsd_2000" not in text
    stderr = capsys.readouterr().err
    assert f"eval/lsd {rows[-1]['eval/lsd']:.4g}" in stderr and "eval/lsd_2000" not in stderr
