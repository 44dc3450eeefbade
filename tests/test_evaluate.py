"""evaluate on runs: scores, kept documents, continuation, refusals."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, forked, run_cli, write_recipe

from stagecli.data.rows import Clip
from stagecli.errors import StageError
from stagecli.evaluate import averages, limits, pages, pairs
from stagecli.evaluate.classifier import fit_classifier, label_columns
from stagecli.evaluate.embed import ClipEmbeddings
from stagecli.evaluate.ledger import open_ledger
from stagecli.evaluate.pairs import PairSettings, score_pair
from stagecli.evaluate.sets import DISTANCES, SET_METRICS, set_metrics
from stagecli.generate.pipeline import Pipeline, SamplerSettings, load_pipeline
from stagecli.metrics.distance import frechet_difference, frechet_distance
from stagecli.metrics.kernel import kernel_audio_distance, kernel_difference

Cli = Callable[..., Result]


def document_of(result: Result) -> Any:
    assert result.code == 0, result.stderr
    return json.loads(result.stdout)


def by_system(document: Any, system: str, **keys: Any) -> Any:
    rows = [
        r
        for r in document["rows"]
        if r["system"] == system and all(r.get(k) == v for k, v in keys.items())
    ]
    assert len(rows) == 1, [r["system"] for r in document["rows"]]
    return rows[0]


# --- super-resolution -----------------------------------------------------------------------------

SR = ("evaluate", "runs/sr", "--cutoff", "2000", "--samples", "6")


def test_clips_restored_together_equal_those_restored_alone(trained: Path) -> None:
    pipeline, _ = load_pipeline(trained / "runs" / "sr")
    settings = SamplerSettings.of(pipeline.recipe.evaluate, batch_size=5)
    rng = np.random.default_rng(0)
    lows = [(scale * rng.standard_normal(5000)).astype(np.float32) for scale in (0.3, 0.01, 0.1)]
    together = pipeline.restore_many(
        lows, 2000, seed=3, settings=settings, indices=[4, 5, 6], prompts=[""] * 3
    )
    for i, low in enumerate(lows):
        alone = pipeline.restore(low, 2000, seed=3, settings=settings, index=4 + i)
        np.testing.assert_allclose(together[i], alone, atol=1e-5 * np.abs(alone).max())
    with pytest.raises(ValueError, match="one length"):
        pipeline.restore_many(
            [lows[0], lows[1][:-1]],
            2000,
            seed=3,
            settings=settings,
            indices=[0, 1],
            prompts=["", ""],
        )
    # 5000 samples are three windows of 3200 that overlap by half.
    assert (
        pipeline.restored_at_once(5000, SamplerSettings.of(pipeline.recipe.evaluate, batch_size=7))
        == 2
    )


def test_rows_by_label_are_the_means_of_their_clips(cli: Cli, runs: Path) -> None:
    document = document_of(cli(*SR, "--by", "kind", "--json"))
    groups = {
        row["group"]: row["n"]
        for row in document["rows"]
        if "group" in row and row["system"] == "model"
    }
    assert sum(groups.values()) == 6 and len(groups) > 1
    whole = by_system(document, "model", group=None)["metrics"]["lsd"]["value"]
    parts = [
        by_system(document, "model", group=g)["metrics"]["lsd"]["value"] * n
        for g, n in groups.items()
    ]
    assert sum(parts) / 6 == pytest.approx(whole)
    refused = cli(*SR, "--by", "colour")
    assert refused.code == 2 and "colour" in refused.stderr and "kind" in refused.stderr


def test_the_preset_is_in_the_convention_and_in_the_number(cli: Cli, runs: Path) -> None:
    nuwave, other = (
        document_of(cli(*SR, "--json", "--preset", name)) for name in ("nuwave", "ssr_eval")
    )
    values = [
        by_system(document, "unprocessed")["metrics"]["lsd"]["value"]
        for document in (nuwave, other)
    ]
    assert abs(values[0] - values[1]) > 0.1
    assert "nuwave" in nuwave["conventions"]["lsd"] and "ssr_eval" in other["conventions"]["lsd"]


def test_an_interrupted_evaluation_continues_with_the_same_numbers(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = document_of(cli(*SR, "--json"))
    shutil.rmtree(runs / "sr" / "evals")
    scored: list[str] = []

    def counted(*arguments: Any) -> dict[str, float]:
        scored.append("one")
        if len(scored) == 11:
            raise KeyboardInterrupt
        return score_pair(*arguments)

    monkeypatch.setattr("stagecli.evaluate.sr.score_pair", counted)
    stopped = cli(*SR, "--json")
    assert (
        stopped.code == 130
        and "run the same command again" in stopped.stderr
        and not stopped.stdout
    )
    ledger = next((runs / "sr" / "evals").glob("*.clips.jsonl"))
    with ledger.open("a") as file:
        file.write('["2000 Hz", "half a li')  # as a kill would leave it
    again = cli(*SR, "--json")
    assert document_of(again)["rows"] == whole["rows"]
    assert "reusing 3 scores with the same settings" in again.stderr
    assert len(scored) == 11 + 9, (
        "three clips were scored, with three systems each, before the interruption"
    )
    before = len(scored)
    # Another grouping reuses all; another seed nothing.
    document_of(cli(*SR, "--json", "--by", "kind"))
    assert len(scored) == before
    document_of(cli(*SR, "--json", "--seed", "5"))
    assert len(scored) == before + 18


def test_the_kept_document_says_how_to_repeat_it(cli: Cli, runs: Path) -> None:
    document = document_of(cli(*SR, "--json", "--steps", "3"))
    kept = json.loads((runs.parent / document["file"]).read_text())
    assert kept == {k: v for k, v in document.items() if k != "file"}
    assert kept["command"].endswith("evaluate runs/sr --cutoff 2000 --samples 6 --json --steps 3")
    settings = kept["settings"]
    assert (settings["steps"], settings["seed"], settings["filter"], settings["cutoffs"]) == (
        3,
        0,
        "cheby1",
        [2000],
    )
    assert settings["checkpoint"] == "step_00000010" and settings["version"] and settings["weights"]
    assert kept["environment"]["packages"]["torch"]
    other = document_of(cli(*SR, "--json"))
    assert other["file"] != document["file"] and (runs.parent / document["file"]).exists(), (
        "one replaced the other"
    )


def test_a_read_only_run_is_refused_before_work(cli: Cli, runs: Path) -> None:
    (runs / "sr" / "evals").rmdir()
    (runs / "sr" / "evals").write_text("in the way")
    result = cli(*SR)
    assert (
        result.code == 2 and "runs/sr/evals" in result.stderr and "Traceback" not in result.stderr
    )


def test_a_clip_too_short_to_score_is_named(cli: Cli, tmp_path: Path) -> None:
    from stagecli.data.audio import write_wav

    rng = np.random.default_rng(0)
    lines = [{"path": f"{split}.wav", "split": split} for split in ("train", "valid", "test")]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for split, samples in (("train", 4000), ("valid", 4000), ("test", 900)):
        write_wav(
            tmp_path / f"{split}.wav",
            (0.1 * rng.standard_normal(samples)).astype(np.float32),
            16000,
        )
    changes = {
        "data__source": "manifest",
        "data__path": "manifest.jsonl",
        "data__clips": None,
        "train__steps": 1,
    }
    assert cli("train", write_recipe(tmp_path / "r.toml", "sr", **changes)).code == 0
    result = cli("evaluate", "runs/r")
    assert result.code == 1 and "test.wav" in result.stderr and "too few" in result.stderr
    assert "Traceback" not in result.stderr


def test_perceptual_metrics_blind_to_the_band_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen, notes = pairs.audible_metrics([2000, 4000, 5000], 16000)
    assert set(chosen[2000]) == set(pairs.PERCEPTUAL)
    assert "pesq_nb" not in chosen[4000] and "stoi" in chosen[4000]
    assert set(chosen[5000]) == {"pesq_wb", "visqol_speech", "visqol_audio"}
    refused = [note for note in notes if "not computed" in note]
    assert any("4000 Hz: pesq_nb sees up to 3700 Hz" in note for note in refused)
    assert any("2000 Hz: stoi sees 38 %" in note and "blind to the rest" in note for note in notes)
    monkeypatch.setattr(
        pairs.importlib.util, "find_spec", lambda name: None if name == "pystoi" else True
    )
    with pytest.raises(StageError, match="pystoi is not installed") as caught:
        pairs.audible_metrics([2000], 16000)
    assert "stagecli[perceptual]" in str(caught.value.hint)


def test_perceptual_scores_on_real_speech(data_dir: Path) -> None:
    from stagecli.data.audio import read_mono

    # FSDD clips are short: several of one speaker in a row.
    files = sorted((data_dir / "fsdd" / "audio").glob("*_george_1*.flac"))[:6]
    speech = np.concatenate([read_mono(file, 8000) for file in files])
    noisy = speech + 0.02 * np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32)
    names = ["pesq_nb", "stoi", "estoi"]
    settings = PairSettings(sample_rate=8000, cutoff=1000, preset="nuwave", names=names)
    same, worse = (score_pair(speech, audio, settings) for audio in (speech, noisy))
    assert all(worse[name] < same[name] for name in names)
    stoi = replace(settings, names=["stoi"])
    short = score_pair(speech[:1500], noisy[:1500], stoi)
    assert all(np.isnan(value) for value in short.values()), (
        "no number if there is too little speech"
    )


def test_real_recordings_by_class(data_dir: Path, cli: Cli, tmp_path: Path) -> None:
    """Whole clips of three classes through a run of a few steps keep the low band of the input."""
    lines = [
        json.loads(line)
        for line in (data_dir / "esc10" / "manifest.jsonl").read_text().splitlines()
    ]
    kept: dict[tuple[str, str], int] = {}
    with (tmp_path / "manifest.jsonl").open("w") as file:
        for row in lines:
            key = (row["split"], row["label"])
            kept[key] = kept.get(key, 0) + 1
            if row["label"] in ("dog_bark", "rain", "rooster") and kept[key] <= 2:
                file.write(
                    json.dumps({**row, "path": str(data_dir / "esc10" / row["path"])}) + "\n"
                )
    changes = {
        "data__source": "manifest",
        "data__path": "manifest.jsonl",
        "data__clips": None,
        "train__steps": 4,
    }
    assert cli("train", write_recipe(tmp_path / "esc.toml", "sr", **changes)).code == 0
    document = document_of(
        cli("evaluate", "runs/esc", "--samples", "6", "--cutoff", "4000", "--by", "label", "--json")
    )
    groups = {
        row["group"]: row["n"]
        for row in document["rows"]
        if "group" in row and row["system"] == "model"
    }
    assert groups == {f"label {name}": 2 for name in ("dog_bark", "rain", "rooster")}
    for row in document["rows"]:
        if row["system"] == "model":
            assert row["metrics"]["lsd_lf"]["value"] < 0.5 < row["metrics"]["lsd_hf"]["value"]


# --- what is printed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "code", "words"),
    [
        ("lsd < 0", 0, ""),
        ("lsd > 0.001", 1, "cutoff 2000 Hz"),
        ("si_sdr<=1e3", 1, "si_sdr <= 1000: si_sdr is"),
        ("lds > 1", 2, "no metric 'lds'"),
        ("lsd:all > 1", 2, "no metric 'lsd:all'"),
        ("kad > 1", 2, "not computed by this command"),
        ("pesq_wb < 1", 2, "not computed by this command"),
        ("lsd = 1", 2, "cannot parse"),
        ("lsd > one", 2, "cannot parse"),
    ],
)
def test_fail_if(condition: str, code: int, words: str, cli: Cli, runs: Path) -> None:
    result = cli(*SR[:4], "--samples", "2", "--fail-if", condition, "--json")
    assert result.code == code, result.stderr
    assert words in " ".join(result.stderr.split())
    assert bool(result.stdout) == (code != 2), (
        "the table is printed unless the condition was refused"
    )


def test_fail_if_applies_to_model_outputs_at_every_cutoff() -> None:
    def row(system: str, kind: str, cutoff: float, value: float | None) -> Any:
        return {
            "system": system,
            "kind": kind,
            "cutoff": cutoff,
            "n": 3,
            "metrics": {"lsd": {"value": value}},
        }

    rows = [
        row("unprocessed", "baseline", 1000, 9.0),
        row("model", "model", 1000, 1.0),
        row("model", "model", 2000, 2.0),
    ]
    conditions = limits.parse_limits(["lsd > 1.5"], ["lsd", "snr"])
    assert limits.broken_limits(conditions, [{"run": "r", "rows": rows}]) == [
        "lsd > 1.5: lsd is 2 for r, model, cutoff 2000 Hz"
    ]
    assert limits.broken_limits(conditions, [{"run": "r", "rows": rows[:2]}]) == []
    of_snr = limits.parse_limits(["snr < 1"], ["snr"])
    no_value = limits.broken_limits(
        conditions, [{"run": "r", "rows": [row("model", "model", 1000, None)]}]
    )
    assert "no value" in no_value[0], "a metric without a value does not pass"
    assert "was not computed" in limits.broken_limits(of_snr, [{"run": "r", "rows": rows}])[0]


def test_csv_and_markdown_hold_the_numbers_of_the_document(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    document = document_of(cli(*SR, "--json", "--csv", "out.csv"))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    all_rows = [*document["rows"], *document["files"]]
    assert len(rows) == sum(len(row["metrics"]) for row in all_rows)
    wanted = next(row for row in rows if (row["system"], row["metric"]) == ("model", "lsd"))
    lsd = by_system(document, "model")["metrics"]["lsd"]
    assert (float(wanted["value"]), float(wanted["low"]), wanted["n"]) == (
        lsd["value"],
        lsd["low"],
        "6",
    )
    assert (wanted["better"], wanted["unit"], wanted["run"]) == ("lower", "log10 power", "runs/sr")
    assert cli(*SR, "--csv", "-").stdout == (tmp_path / "out.csv").read_text()
    page = cli(*SR, "--markdown").stdout
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 5
    assert f"{lsd['value']:.4g} +-" in table[4]
    for name, convention in document["conventions"].items():
        assert page.count(f"[^{name}]: {convention}\n") == 1 and page.count(f"[^{name}]") == 2
    assert cli(*SR, "--csv", "-", "--json").code == 2
    assert cli(*SR, "--csv", "no/such/folder.csv").code == 2


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["runs/sr", "--judge", "bundled:judge"], "--judge"),
        (["runs/sr", "--quick"], "--quick"),
        (["runs/t2a", "--training", "runs"], "--training"),
        (["runs/t2a", "--cutoff", "2000"], "--cutoff"),
        (["runs/t2a", "--perceptual"], "--perceptual"),
        (["runs/sr", "--match-gain"], "--match-gain"),
        (["runs/sr", "runs/t2a", "--cutoff", "2000"], "--cutoff"),
        (["runs/sr", "runs/t2a", "--checkpoint", "77"], "'77'"),
        (["runs/t2a", "--judge", "bundled:nobody"], "nobody"),
        (["runs/t2a", "--clap", "./nowhere"], "nowhere"),
        (["runs/t2a", "--label", "colour"], "colour"),
        (["--reference", "runs", "--generated", "runs", "--task", "sr", "--seed", "1"], "--seed"),
        (["--reference", "runs", "--generated", "runs", "--task", "t2a", "--seed", "0"], "--seed"),
    ],
)
def test_flags_that_do_not_apply_are_refused(
    arguments: list[str], word: str, cli: Cli, runs: Path
) -> None:
    result = cli("evaluate", *arguments)
    assert result.code == 2 and word in result.stderr and result.stdout == "", result


# --- differences ----------------------------------------------------------------------------------


def test_differences_of_two_checkpoints_match_their_tables(cli: Cli, runs: Path) -> None:
    document = document_of(cli(*SR, "--checkpoint", "8", "--checkpoint", "10", "--json"))
    a, b = document["runs"]
    (difference,) = document["differences"]
    assert (difference["a"], difference["b"]) == ("runs/sr step_00000008", "runs/sr step_00000010")
    (row,) = difference["rows"]
    for name, metric in row["metrics"].items():
        values = [by_system(run, "model")["metrics"][name]["value"] for run in (a, b)]
        assert metric["value"] == pytest.approx(values[1] - values[0])
        assert metric["low"] <= metric["value"] <= metric["high"]
    shown = cli(*SR, "--checkpoint", "8", "--checkpoint", "10").stdout
    assert (
        "B: runs/sr step_00000010" in shown
        and "not corrected for the number of comparisons" in shown
    )
    same = document_of(cli("evaluate", "runs/sr", *SR[1:], "--json"))["differences"][0]["rows"][0][
        "metrics"
    ]
    assert all(metric["value"] == 0 and not metric["decided"] for metric in same.values())


def test_differences_of_two_t2a_runs(cli: Cli, runs: Path) -> None:
    wanted = ("evaluate", "runs/t2a", "--samples", "12", "--json", "--quick")
    document = document_of(cli(*wanted, "--checkpoint", "8", "--checkpoint", "10"))
    metrics = document["differences"][0]["rows"][0]["metrics"]
    for name in ("kad", "fd_judge", "fd_log_mel"):
        values = [by_system(run, "samples")["metrics"][name]["value"] for run in document["runs"]]
        assert metrics[name]["value"] == pytest.approx(values[1] - values[0], abs=1e-4)
        assert metrics[name]["low"] < metrics[name]["value"] < metrics[name]["high"]
    unlike = document_of(cli("evaluate", "runs/sr", "runs/t2a", "--samples", "2", "--json"))[
        "differences"
    ][0]
    assert unlike["rows"] == [] and "no metric in common" in unlike["notes"][0]


def test_paired_differences_of_set_metrics_are_sensitive() -> None:
    """Two sets that share their hard prompts; b is a little nearer to the reference."""
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(300, 4))
    shared = rng.normal(size=(120, 4))
    a = shared + 0.5
    b = shared + 0.35
    kad = kernel_difference(reference, a, b, 0)
    assert kad.value == pytest.approx(
        kernel_audio_distance(reference, b).value - kernel_audio_distance(reference, a).value
    )
    distance = frechet_difference(reference, a, b, 0)
    assert distance.value == pytest.approx(
        frechet_distance(reference, b).value - frechet_distance(reference, a).value
    )
    assert kad.high < 0 and distance.high < 0
    for interval in (kernel_difference(reference, a, a, 0), frechet_difference(reference, a, a, 0)):
        assert interval.value == interval.low == interval.high == 0
    with pytest.raises(ValueError, match="equal shapes"):
        kernel_difference(reference, a, b[:-1], 0)
    with pytest.raises(ValueError, match="equal shapes"):
        frechet_difference(reference, a, b[:-1], 0)


def test_an_extrapolation_needs_enough_clips() -> None:
    rng = np.random.default_rng(0)
    sets = [
        ClipEmbeddings(*(torch.from_numpy(rng.normal(size=(90, 4))) for _ in range(3)))
        for _ in range(2)
    ]
    metrics = set_metrics(*sets, 0, names=SET_METRICS)
    assert (
        abs(metrics["fad_infinity"]["value"]) < metrics["fd_judge"]["value"] < 0.5
        and not metrics["fd_judge"]["biased"]
    )
    few = set_metrics(sets[0].subset(range(5)), sets[1].subset(range(4)), 0, names=SET_METRICS)
    assert few["fad_infinity"]["value"] is None and few["fd_judge"]["biased"]
    assert few["precision"]["value"] is None and "at least" in few["precision"]["note"]
    copies = ClipEmbeddings(*(torch.ones(9, 4).double() for _ in range(3)))
    assert "copies" in set_metrics(copies, sets[1], 0, names=DISTANCES)["kad"]["note"]


def test_differences_leave_out_clips_that_are_not_finite_on_either_side() -> None:
    a = {str(i): {"snr": float(i), "lsd": 1.0} for i in range(6)}
    b = {
        **{str(i): {"snr": i + 1.0, "lsd": 1.0} for i in range(5)},
        "5": {"snr": float("inf"), "lsd": 2.0},
        "6": {},
    }
    differences = averages.score_differences(a, b, 0)
    assert (
        differences["snr"]["value"],
        differences["snr"]["n"],
        differences["snr"]["left_out"],
    ) == (1.0, 5, 1)
    assert differences["snr"]["decided"] and not differences["lsd"]["decided"]


# --- text to audio --------------------------------------------------------------------------------


def test_a_killed_evaluation_of_t2a_generates_what_is_missing(
    cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = runs / "t2a" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("batch_size = 16", "batch_size = 4"))
    command = ("evaluate", "runs/t2a", "--samples", "10", "--quick", "--json")
    whole = document_of(cli(*command))
    shutil.rmtree(runs / "t2a" / "evals")
    original = Pipeline.generate
    made = []

    def dying(self: Pipeline, prompts: Any, **keys: Any) -> Any:
        if keys["indices"][0] == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, prompts, **keys)

    def work() -> None:
        Pipeline.generate = dying  # type: ignore[method-assign]
        run_cli(*command, cwd=runs.parent)

    process = forked(work)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert len(list((runs / "t2a" / "evals").glob("*/*.wav"))) == 8

    def counted(self: Pipeline, prompts: Any, **keys: Any) -> Any:
        made.append((keys["indices"][0], len(prompts)))
        return original(self, prompts, **keys)

    monkeypatch.setattr(Pipeline, "generate", counted)
    assert document_of(cli(*command))["rows"] == whole["rows"]
    assert made == [(8, 2)]
    document_of(cli(*command))
    assert made == [(8, 2)], "all samples were there"
    document_of(cli(*command, "--cfg-scale", "3"))
    assert made[1:] == [(0, 4), (4, 4), (8, 2)], "samples of other settings were reused"


@pytest.fixture
def fsdd(data_dir: Path, tmp_path: Path, cli: Cli) -> Path:
    """A run of ten steps on a few real digits: three digits by three speakers, three splits."""
    lines = [
        json.loads(line) for line in (data_dir / "fsdd" / "manifest.jsonl").read_text().splitlines()
    ]
    lines = [
        r
        for r in lines
        if r["label"] in ("zero", "one", "six") and r["speaker"] in ("george", "theo", "lucas")
    ]
    kept: dict[tuple[str, str, str], int] = {}
    most = {"train": 8, "valid": 3, "test": 4}
    with (tmp_path / "manifest.jsonl").open("w") as file:
        for row in lines:
            key = (row["split"], row["label"], row["speaker"])
            kept[key] = kept.get(key, 0) + 1
            if kept[key] <= most[row["split"]]:
                row["path"] = str(data_dir / "fsdd" / row["path"])
                file.write(json.dumps(row) + "\n")
    changes = {
        "data.source": "manifest",
        "data.path": "manifest.jsonl",
        "data.clips": None,
        "evaluate.samples": 40,
    }
    recipe = write_recipe(
        tmp_path / "digits.toml", **{k.replace(".", "__"): v for k, v in changes.items()}
    )
    result = cli("train", recipe)
    assert result.code == 0, result.stderr
    return tmp_path / "runs" / "digits"


def test_every_metric_of_t2a_on_real_digits(
    fsdd: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = document_of(cli("evaluate", "runs/digits", "--json"))
    samples = by_system(document, "samples")["metrics"]
    assert set(samples) == {
        "kad",
        "fd_judge",
        "fd_log_mel",
        "fad_infinity",
        "precision",
        "recall",
        "density",
        "coverage",
        "kl",
        "inception_score",
        "prompt_accuracy:label",
        "prompt_accuracy:speaker",
        "memorised_share",
    }
    real, coded = (
        by_system(document, name)["metrics"] for name in ("real, test split", "codec round trip")
    )
    train = by_system(document, "real, train split")["metrics"]
    assert (
        train["kad"]["value"] < samples["kad"]["value"]
        and train["kad"]["low"] < 0 < train["kad"]["high"]
    )
    assert samples["kad"]["low"] <= samples["kad"]["value"] <= samples["kad"]["high"]
    assert samples["fd_judge"]["biased"] and samples["fd_judge"]["dimensions"] > 36
    assert (
        samples["fad_infinity"]["value"] is None
        and "too few to extrapolate" in samples["fad_infinity"]["note"]
    )
    # The classifier knows real digits and not the noise of a network of ten steps; it is the bound.
    for name in ("prompt_accuracy:label", "prompt_accuracy:speaker"):
        assert real[name]["value"] > 0.6 > samples[name]["value"] and real[name]["n"] == 36
    assert coded["kl"]["value"] < samples["kl"]["value"]
    assert "kad" not in coded and "precision" not in coded and "paired" in coded["fd_judge"]["note"]
    assert "bundled:judge" in document["conventions"][
        "kad"
    ] and "72 clips of the train split" in json.dumps(document)
    assert len(document["settings"]["judge_weights"]) > 12
    assert document["memorisation"]["copies"] == 0 and len(document["memorisation"]["pairs"]) == 20
    page = pages.markdown([document], []).splitlines()
    heads = next(line for line in page if line.startswith("| metric"))
    assert "| samples (n 36) |" in heads and all(
        line.count("|") == 6 for line in page if line.startswith("| ")
    )
    assert any(line.startswith("| kad [^kad] |") for line in page)
    shown = cli("evaluate", "runs/digits").stdout
    for words in (
        "real, test split",
        "prompt_accuracy",
        "nearest of 72 training clips",
        "too few to extrapolate",
    ):
        assert words in " ".join(shown.split())
    # A model that gives back what it was trained on.
    from stagecli.data.audio import read_mono

    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    copied = [read_mono(Path(row["path"]), 8000) for row in rows if row["split"] == "train"]
    copied = [np.pad(audio, (0, 3200))[:3200] for audio in copied if len(audio) <= 3200]
    monkeypatch.setattr(
        Pipeline,
        "generate",
        lambda self, prompts, indices, **keys: [copied[i % len(copied)] for i in indices],
    )
    caught = document_of(cli("evaluate", "runs/digits", "--json", "--seed", "7"))
    assert by_system(caught, "samples")["metrics"]["memorised_share"]["value"] == 1.0
    assert caught["memorisation"]["copies"] == 36
    one = document_of(cli("evaluate", "runs/digits", "--json", "--seed", "7", "--label", "speaker"))
    assert "prompt_accuracy:label" not in by_system(one, "samples")["metrics"]
    assert by_system(one, "samples")["metrics"]["prompt_accuracy:speaker"]["n"] == 36


@pytest.mark.parametrize(("mechanism", "word"), [("guidance", "teacher"), ("regime", "monitor")])
def test_a_judge_that_steered_the_run_is_refused(
    mechanism: str, word: str, cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = runs / "t2a" / "recipe.toml"
    table = (
        '[stage.guidance]\nschedule = "constant"\n'
        if mechanism == "guidance"
        else "[stage.regime]\n"
    )
    recipe.write_text(recipe.read_text() + table + f'{word} = "bundled:teacher"\n')
    command = ("evaluate", "runs/t2a", "--quick", "--samples", "3", "--json")
    refused = cli(*command, "--judge", "bundled:teacher")
    assert refused.code == 2 and f"was the {word} of this run" in refused.stderr
    assert document_of(cli(*command))["judge"].startswith("bundled:judge")
    # The same weights under another name.
    monkeypatch.setattr("stagecli.evaluate.runs.same_checkpoint", lambda *_: False)
    assert cli(*command, "--judge", "bundled:teacher").code == 2


def test_label_columns_follow_from_captions() -> None:
    def clip(i: int, **labels: Any) -> Clip:
        return Clip(f"{i}", f"a {labels['kind']} sound", "train", labels)

    base = [
        {
            "kind": "dog" if i % 2 else "cat",
            "fold": str(i % 3),
            "seconds": 1.5 + i % 2,
            "id": f"x{i}",
            "licence": "cc" if i % 3 else "by",
        }
        for i in range(12)
    ]
    train = [clip(i, **labels) for i, labels in enumerate(base)]
    assert label_columns(train, train[:4]) == ["kind"], (
        "numbers, identities and columns that no caption decides are not labels"
    )
    assert label_columns(train, train[:4], ["licence", "kind"]) == ["licence", "kind"]
    new = [clip(0, kind="bird", fold="0", seconds=1.0, id="y", licence="cc")]
    assert label_columns(train, new) == []
    with pytest.raises(StageError, match="never has 'bird'"):
        label_columns(train, new, ["kind"])
    with pytest.raises(StageError, match="fewer than two classes"):
        label_columns(train, train, ["colour"])


def test_the_classifier_learns_labels_and_not_noise() -> None:
    rng = np.random.default_rng(0)
    labels = ["abc"[i % 3] for i in range(120)]
    centres = {name: rng.normal(size=20) * 3 for name in "abc"}
    x = torch.from_numpy(np.stack([centres[name] + rng.normal(size=20) for name in labels]))
    noise = torch.from_numpy(rng.normal(size=(120, 20)))
    classifier = fit_classifier(x[:60], labels[:60], x[60:90], labels[60:90])
    assert classifier.accuracy == 1.0 and classifier.predict(x[90:]) == labels[90:]
    again = fit_classifier(x[:60], labels[:60], x[60:90], labels[60:90])
    assert torch.equal(again.weight, classifier.weight), "not repeatable"
    lost = fit_classifier(noise[:60], labels[:60], noise[60:90], labels[60:90])
    assert sum(a == b for a, b in zip(lost.predict(noise[90:]), labels[90:], strict=True)) < 20
    partly = fit_classifier(
        x[:60],
        ["" if i % 2 else name for i, name in enumerate(labels[:60])],
        x[60:90],
        labels[60:90],
    )
    assert partly.classes == ("a", "b", "c"), "clips without a label are left out"


def test_the_ledger_keeps_scores_and_skips_torn_and_foreign_lines(tmp_path: Path) -> None:
    path = tmp_path / "clips.jsonl"
    open_ledger(path).put("1 Hz", "a", {"model": {"lsd": 1.5, "snr": float("inf")}})
    with path.open("a") as file:
        file.write('{"foreign": 1}\n["1 Hz", "b", {"mod')
    open_ledger(path).put("1 Hz", "c", {"model": {"lsd": 2.0}})
    ledger = open_ledger(path)
    assert len(ledger.scores) == 2 and ledger.get("1 Hz", "b") is None
    assert ledger.get("1 Hz", "c") == {"model": {"lsd": 2.0}}
    first = ledger.get("1 Hz", "a")
    assert first is not None and np.isnan(first["model"]["snr"])
