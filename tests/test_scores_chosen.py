"""--metrics: only what it names is computed, and a name that means nothing is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_results import Cli, document, noise

from stagecli.data.audio import write_wav
from stagecli.evaluate import pairs

RATE = 16000
FOLDERS = ("evaluate", "--task", "sr", "--cutoff", "2000", "--reference", "x", "--generated", "y")


@pytest.fixture
def folders(tmp_path: Path) -> None:
    for folder, level in (("x", 0), ("y", 0.01)):
        (tmp_path / folder).mkdir()
        clip = noise(0.5, RATE, 0) + level * noise(0.5, RATE, 1)
        write_wav(tmp_path / folder / "a.wav", clip, RATE)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("a metric that nobody asked for was computed")


@pytest.mark.usefixtures("folders")
def test_of_folders_only_the_named_metrics_are_computed(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "multi_resolution_stft", refuse)
    scores = document(cli(*FOLDERS, "--metrics", "log_mel, lsd_hf", "--json"))
    assert list(scores["rows"][0]["metrics"]) == ["lsd_hf", "log_mel"]
    assert list(scores["conventions"]) == ["lsd_hf", "log_mel"]
    monkeypatch.setattr(pairs, "lsd_bands", refuse)
    scores = document(cli(*FOLDERS, "--metrics", "snr", "--json"))
    assert list(scores["files"][0]["metrics"]) == ["snr"]


def test_of_an_sr_run_only_the_named_metrics_are_computed(
    cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "multi_resolution_stft", refuse)
    command = ("evaluate", "runs/sr", "--samples", "2", "--metrics", "lsd,si_sdr", "--json")
    scores = document(cli(*command))
    assert all(list(row["metrics"]) == ["lsd", "si_sdr"] for row in scores["rows"])
    limit = cli(*command, "--fail-if", "snr < 1")
    assert limit.code == 2 and "not computed by this command; metrics computed" in limit.stderr


def test_of_a_t2a_run_the_training_split_stays_closed_unless_a_metric_needs_it(
    cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("evaluate", "runs/t2a", "--samples", "4", "--json", "--metrics")
    copies = document(cli(*command, "memorised_share"))
    assert [list(row["metrics"]) for row in copies["rows"][:1]] == [["memorised_share"]]
    monkeypatch.setattr("stagecli.evaluate.t2a.memorised_share", refuse)
    monkeypatch.setattr("stagecli.evaluate.sets.frechet_distance", refuse)
    assert list(document(cli(*command, "kad"))["rows"][0]["metrics"]) == ["kad"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--metrics", "lds"), "there are lsd, lsd_hf, lsd_lf"),
        (("--metrics", "kad"), "no metric 'kad' here"),
        (("--metrics", ""), "no metric '' here"),
        (("--metrics", "lsd", "--perceptual"), "give only one of them"),
        (("--metrics", "clap_score"), "--clap MODEL"),
    ],
)
@pytest.mark.usefixtures("folders")
def test_names_that_mean_nothing_are_refused(flags: Any, words: str, cli: Cli) -> None:
    result = cli(*FOLDERS, *flags)
    assert result.code == 2 and words in result.stderr


@pytest.mark.usefixtures("folders")
def test_metrics_that_see_nothing_of_the_band_are_refused(cli: Cli) -> None:
    result = cli(*FOLDERS[:4], "5000", *FOLDERS[5:], "--metrics", "pesq_nb")
    assert result.code == 2 and "sees anything of the band above 5000 Hz" in result.stderr
