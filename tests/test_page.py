"""The page of `inspect-regime --html`: answers, players, scores, recipes, and what is missing."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Result
from helpers.run_directories import Page, make_run, regime_run, write_rows
from helpers.samples import RATE, add_prompts, add_restored, write_tone

from stagecli.evaluate.score_html import scores_html
from stagecli.report import players
from stagecli.report.headline import headline
from stagecli.report.html import html_page
from stagecli.report.players import spread
from stagecli.report.recipes import recipe_differences
from stagecli.report.run_report import read_run
from stagecli.report.samples import read_samples
from stagecli.report.sound import SoundError, load_sound
from stagecli.report.summary import summarize_run

NASTY = "<script>alert(1)</script> \"quoted\" & 'so' \u2028 \ud800"


def page_of(*runs: Path) -> str:
    return html_page([read_run(run) for run in runs])


def decoded(uri: str) -> tuple[np.ndarray, int]:
    return soundfile.read(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def labels(page: str) -> list[str]:
    """What the players are called, in order."""
    return re.findall(r'<audio [^>]*aria-label="([^"]*)"', page)


# -- answers ---------------------------------------------------------------------------------------


def test_the_page_begins_with_answers_then_curves_then_samples(tmp_path: Path) -> None:
    run = regime_run(tmp_path / "demo")
    add_prompts(run, [500, 1000], ["a bell"])
    page = page_of(run)
    places = [
        page.index(text)
        for text in ("Is it still learning?", 'id="curves"', "<svg", 'id="samples"', "<audio")
    ]
    assert places == sorted(places)
    assert "text-to-audio, 4 million parameters" in page
    parser = Page()
    parser.feed(page)
    assert parser.open == []


@pytest.mark.parametrize(
    ("key", "losses", "answer"),
    [
        ("valid/loss", [0.9**k for k in range(40)], "yes: validation loss fell by"),
        (
            "valid/loss",
            [1 + 0.01 * (-1) ** k for k in range(40)],
            "no: validation loss has not improved beyond its noise since step 10",
        ),
        (
            "valid/loss",
            [1 + 0.02 * k for k in range(40)],
            "no: validation loss has not improved since step 10, and is now worse than there",
        ),
        ("valid/loss", [1.0, 0.9, 0.8, 0.7], "probably: validation loss fell by"),
        ("valid/loss", [0.5, 0.6, 0.7, 0.8], "probably not: validation loss rose by"),
        ("train/loss", [0.9**k for k in range(40)], "yes: training loss fell by"),
        ("train/loss", [1 + 0.01 * (-1) ** k for k in range(40)], "hardly: training loss did"),
        ("train/loss", [1 + 0.02 * k for k in range(40)], "no, it is getting worse: training"),
    ],
)
def test_whether_a_run_still_learns(
    tmp_path: Path, key: str, losses: list[float], answer: str
) -> None:
    run = make_run(tmp_path / "demo")
    rows = [{"step": 10 * k, "attempt": 1, key: loss} for k, loss in enumerate(losses, 1)]
    write_rows(run / "metrics.jsonl", rows)
    answers = dict(headline(summarize_run(read_run(run))))
    assert answers["Is it still learning?"].startswith(answer)


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", steps=0, status="created", parameters=None)
    page = page_of(run)
    assert "too early to tell" in page
    assert "none yet: nothing has been measured" in page
    assert "this run has no samples" in page
    assert "No scores yet" in page


# -- samples ---------------------------------------------------------------------------------------


def test_prompts_are_beside_their_reference_from_the_newest_step_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    add_prompts(run, [500, 1000], ["a bell", "a dog"])
    assert labels(page_of(run)) == [
        *("reference: a bell", "step 1,000: a bell", "step 500: a bell"),
        *("reference: a dog", "step 1,000: a dog", "step 500: a dog"),
    ]


def test_restored_clips_are_beside_input_and_target(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", task="sr")
    add_restored(run, [1000], ["a/b.wav"])
    names = ("input", "target", "step 1,000")
    assert labels(page_of(run)) == [f"{name}: a/b.wav, cutoff 2,000 Hz" for name in names]


def test_runs_with_the_same_prompt_are_together(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in ("one", "two")]
    for run in runs:
        add_prompts(run, [1000], ["a bell"])
    page = page_of(*runs)
    assert page.count('<article class="sample">') == 1
    assert [name for name in re.findall("<h4>(.*?)</h4>", page)] == ["one", "two"]


def test_runs_with_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / folder / "demo") for folder in ("a", "b")]
    for run in runs:
        add_prompts(run, [1000], ["a bell"])
    assert re.findall("<h4>(.*?)</h4>", page_of(*runs)) == [str(run) for run in runs]


def test_many_steps_are_folded_away(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    add_prompts(run, range(100, 1001, 100), ["a bell"], seconds=0.1)
    page = page_of(run)
    assert len(labels(page)) == 11
    assert "<summary>6 more steps</summary>" in page
    shown = labels(page[: page.index("6 more steps")])
    assert shown[:2] == ["reference: a bell", "step 1,000: a bell"]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 100])
def test_the_order_that_spreads_over_all_steps(count: int) -> None:
    order = spread(count)
    assert sorted(order) == list(range(count))
    for taken in range(2, count):
        gaps = np.diff([*sorted(order[:taken]), count])
        assert gaps.max() <= 4 * count / taken + 1


def test_a_full_page_has_the_newest_of_every_sample_and_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "demo")
    add_prompts(run, range(100, 1001, 100), ["a bell", "a dog"], seconds=0.1)
    size = load_sound(run / "samples" / "step_00001000" / "000.wav").size
    monkeypatch.setattr(players, "LARGEST", 8 * size)
    page = page_of(run)
    assert len(page) < len(page_of(make_run(tmp_path / "none"))) + 8 * size + 20_000
    assert {"step 1,000: a bell", "step 1,000: a dog"} <= set(labels(page))
    assert re.search(r"1[34] of 20 samples are not on this page", page)
    assert str(run / "samples") in page


def test_audio_that_is_gone_or_damaged_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    add_prompts(run, [500, 1000], ["a bell"])
    (run / "samples" / "step_00000500" / "000.wav").unlink()
    (run / "samples" / "step_00001000" / "000.wav").write_bytes(b"RIFF of nothing")
    page = page_of(run)
    assert "000.wav file is missing" in page
    assert "000.wav is not audio" in page
    assert labels(page) == ["reference: a bell"]


@pytest.mark.parametrize(
    "row",
    [
        {"path": "../../../secret.wav", "prompt": "a"},
        {"path": "/etc/passwd", "prompt": "a"},
        {"path": "link.wav", "prompt": "a"},
        {"path": "\0", "prompt": "a"},
        {"path": 7, "prompt": "a"},
        {"path": "000.wav"},
        {"path": "000.wav", "prompt": ["a"]},
        ["000.wav"],
        None,
    ],
)
def test_a_row_puts_nothing_else_of_this_machine_into_the_page(tmp_path: Path, row: object) -> None:
    run = make_run(tmp_path / "demo")
    secret = write_tone(tmp_path / "secret.wav", 440)
    folder = run / "samples" / "step_00001000"
    write_tone(folder / "000.wav", 440)
    os.symlink(secret, folder / "link.wav")
    (folder / "samples.jsonl").write_text(json.dumps(row) + "\n{torn")
    samples, problems = read_samples(read_run(run))
    assert samples == []
    assert problems == ["demo, samples/step_00001000/samples.jsonl: 1 row not understood; left out"]
    assert "<audio" not in page_of(run)


def test_what_strangers_wrote_is_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", name="<img src=x onerror=alert(1)>", message=NASTY)
    add_prompts(run, [1000], [NASTY])
    (run / "recipe.toml").write_text('[about]\nsummary = "</pre><script>alert(2)</script>"\n')
    page = page_of(run)
    assert "<script" not in page and "<img src=x" not in page and "</pre><" in page
    assert escape('<script>alert(1)</script> "quoted"') in page
    page.encode("utf-8")


# -- sound -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 20_000, 96_000])
def test_sound_is_what_was_written(tmp_path: Path, rate: int) -> None:
    """Also at rates that MP3 does not have."""
    sound = load_sound(write_tone(tmp_path / "a.wav", 1000, seconds=0.5, rate=rate))
    audio_N, mp3_rate = decoded(sound.mp3)
    assert mp3_rate >= min(rate, 48_000)
    assert len(audio_N) / mp3_rate == pytest.approx(0.5, abs=0.1)
    spectrum = np.abs(np.fft.rfft(audio_N))
    assert np.argmax(spectrum) * mp3_rate / len(audio_N) == pytest.approx(1000, abs=20)
    assert np.std(audio_N) == pytest.approx(0.5 / np.sqrt(2), abs=0.03)
    assert (sound.seconds, sound.sample_rate, sound.silent) == (0.5, rate, False)


def test_the_picture_shows_frequency_from_bottom_to_top(tmp_path: Path) -> None:
    from matplotlib.image import imread

    uri = load_sound(write_tone(tmp_path / "a.wav", RATE / 8)).picture
    content = base64.b64decode(uri.partition(",")[2])
    picture = imread(io.BytesIO(content), format="jpeg").astype(float).sum(axis=2)
    brightest = picture.mean(axis=1).argmax()
    assert brightest / len(picture) == pytest.approx(3 / 4, abs=0.03)  # a quarter of 4 kHz


def test_sounds_in_a_row_share_a_scale_and_silence_is_named(tmp_path: Path) -> None:
    loud = load_sound(write_tone(tmp_path / "a.wav", 1000))
    soundfile.write(tmp_path / "b.wav", np.full(800, 1e-5), RATE, subtype="FLOAT")
    quiet = load_sound(tmp_path / "b.wav", loud.loudest_db)
    assert quiet.silent and quiet.loudest_db == loud.loudest_db


@pytest.mark.parametrize(
    ("audio", "problem"),
    [(np.zeros(0), "is empty"), (np.array([0.1, np.nan]), "not numbers")],
)
def test_sound_that_cannot_be_shown(tmp_path: Path, audio: np.ndarray, problem: str) -> None:
    soundfile.write(tmp_path / "a.wav", audio, RATE, subtype="FLOAT")
    with pytest.raises(SoundError, match=problem):
        load_sound(tmp_path / "a.wav")


def test_long_and_many_channelled_files_are_cut_and_mixed(tmp_path: Path) -> None:
    silence_NC = np.zeros((31 * RATE, 4))
    soundfile.write(tmp_path / "a.wav", silence_NC, RATE)
    sound = load_sound(tmp_path / "a.wav")
    assert (sound.seconds, sound.heard) == (31, 30)
    assert decoded(sound.mp3)[0].ndim == 1
    soundfile.write(tmp_path / "b.wav", np.zeros((1, 2)), RATE)
    assert load_sound(tmp_path / "b.wav").heard == 1 / RATE


# -- scores and recipes ----------------------------------------------------------------------------

DOCUMENT = {
    "run": "runs/<demo>",
    "checkpoint": "step_00001000",
    "split": "test",
    "conventions": {"kad": "unbiased <MMD>", "from_the_future": "unknown here"},
    "rows": [
        {
            "system": "samples",
            "n": 12,
            "metrics": {
                "kad": {"value": 1.25, "low": 1.0, "high": 1.5, "n": 12},
                "from_the_future": {"value": 3.0, "n": 12},
            },
        }
    ],
}


def test_every_evaluation_has_a_table_with_its_conventions() -> None:
    html = scores_html([{"file": "evals/a.json", "document": DOCUMENT}] * 2)
    assert html.count("runs/&lt;demo&gt; step_00001000</h3>") == 2
    assert "kad (lower is better)" in html and "1.25 [1, 1.5]" in html
    assert "unbiased &lt;MMD&gt;" in html and "unknown here" in html


@pytest.mark.parametrize("document", [None, [], 7, {}, {"rows": 3}, {"rows": [3]}, {"rows": [{}]}])
def test_a_file_that_holds_no_scores_is_named(tmp_path: Path, document: object) -> None:
    run = make_run(tmp_path / "demo")
    (run / "evals").mkdir()
    (run / "evals" / "<a>.json").write_text(json.dumps(document))
    report = read_run(run)
    scores = scores_html(report.evals)
    assert "evals/&lt;a&gt;.json is not a document of scores" in scores
    assert scores in html_page([report], scores)


def test_the_best_scores_are_at_the_top(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo")
    (run / "evals").mkdir()
    (run / "evals" / "a.json").write_text(json.dumps(DOCUMENT))
    answers = dict(headline(summarize_run(read_run(run))))
    assert "evaluate on test: kad 1.25" in answers["Best scores"]
    assert "validation loss 0.1067 at step 1,000" in answers["Best scores"]


def test_where_recipes_differ() -> None:
    texts = [
        '[about]\nname = "a"\n[train]\nsteps = 10\nlr = 1e-3\n[stage.regime]\n',
        '[about]\nname = "b"\n[train]\nsteps = 20\nlr = 1e-3\n[stage.guidance]\nlambda = 1\n',
        "not a recipe",
    ]
    assert recipe_differences(texts[:2]) == [
        ["train.steps", "10", "20"],
        ["stage.regime", "on", "-"],
        ["stage.guidance.lambda", "-", "1"],
    ]
    assert recipe_differences(texts[:1] * 2) == []
    assert ["train.steps", "10", "-"] in recipe_differences([texts[0], texts[2]])


# -- with a real run -------------------------------------------------------------------------------


def test_training_keeps_what_the_page_compares_with(runs: Path, cli: Callable[..., Result]) -> None:
    """A recording for each prompt, written once; input and target of restored clips."""
    (listing,) = (runs / "t2a" / "samples").glob("step_*/samples.jsonl")
    row = json.loads(listing.read_text().splitlines()[0])
    reference = listing.parent / row["reference"]
    assert reference.resolve().parent == (runs / "t2a" / "samples" / "reference").resolve()
    assert soundfile.info(reference).samplerate == 8000
    result = cli("inspect-regime", "runs/t2a", "runs/sr", "--html", "page.html")
    assert result.code == 0, result.stderr
    page = (runs.parent / "page.html").read_text()
    heard = [label.partition(":")[0] for label in labels(page)]
    assert heard == ["reference", "step 10", "input", "target", "step 10"]
    assert "<td>task.kind</td><td>t2a</td><td>sr</td>" in page


def test_data_that_are_gone_leave_samples_without_a_reference(
    cli: Callable[..., Result], t2a_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stagecli.errors import StageError
    from stagecli.train import references

    def unreadable(*_: object) -> None:
        raise StageError("cannot read audio")

    monkeypatch.setattr(references, "cut", unreadable)
    result = cli("train", t2a_recipe(train__steps=2))
    assert result.code == 0, result.stderr
    assert "without a reference" in result.stderr
