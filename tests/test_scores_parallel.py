"""Pairs that are scored by several workers have the scores of one, in the same order."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_results import Cli, document, noise

from stagecli.data.audio import write_wav
from stagecli.errors import StageError
from stagecli.evaluate.workers import open_workers

RATE = 16000


def figures(scores: Any) -> Any:
    return scores["rows"], scores["files"]


def test_folders_have_the_same_scores_whatever_the_number_of_workers(
    cli: Cli, tmp_path: Path
) -> None:
    for folder in ("real", "made"):
        (tmp_path / folder).mkdir()
    for seed in range(5):
        clip = noise(0.3, RATE, seed)
        write_wav(tmp_path / "real" / f"{seed}.wav", clip, RATE)
        write_wav(tmp_path / "made" / f"{seed}.wav", clip + noise(0.3, RATE, 9) / 10, RATE)
    command = ("evaluate", "--task", "sr", "--cutoff", "4000", "--reference", "real")
    both = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        both.append(document(cli(*command, "--generated", "made", "--json")))
        assert torch.get_num_threads() == threads
        shutil.rmtree(tmp_path / "runs")  # the kept scores
    assert figures(both[0]) == figures(both[1])


def test_a_run_has_the_same_scores_whatever_the_number_of_workers(cli: Cli, runs: Path) -> None:
    both = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        both.append(document(cli("evaluate", "runs/sr", "--samples", "5", "--json")))
        shutil.rmtree(runs / "sr" / "evals")
    assert figures(both[0]) == figures(both[1])


@pytest.mark.parametrize("metrics", [["lsd"], ["lsd", "stoi"]])
def test_results_come_in_order_and_refusals_in_their_place(metrics: list[str]) -> None:
    """Threads, and processes for the packages of perceptual metrics."""
    torch.set_num_threads(2)
    with open_workers(metrics) as workers:
        results = list(workers.map(int, ["3", "x", "1", "2"]))
    assert isinstance(results[1], ValueError)
    assert [results[0], *results[2:]] == [3, 1, 2]
    assert torch.get_num_threads() == 2


def end_this_process(code: int) -> None:
    os._exit(code)


def test_a_process_that_dies_is_one_error() -> None:
    torch.set_num_threads(2)
    with open_workers(["stoi"]) as workers, pytest.raises(StageError, match="has died"):
        list(workers.map(end_this_process, [1, 1]))
