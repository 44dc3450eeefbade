"""The notes under a table say what is missing, and why, in words that a user has met."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from stagecli.evaluate.embed import ClipEmbeddings
from stagecli.evaluate.sets import SET_METRICS, set_differences, set_metrics

OURS = re.compile(r"\bNaN\b|replicate|embedding|bandwidth|\[N|shape|posterior|\bpass a\b")


def clips(count: int, seed: int, scale: float = 1.0) -> ClipEmbeddings:
    rng = np.random.default_rng(seed)
    return ClipEmbeddings(
        *(torch.from_numpy(scale * rng.normal(size=(count, 4))) for _ in range(3))
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_clips_leave_out_what_they_cannot_give_and_say_why(count: int) -> None:
    metrics = set_metrics(clips(count, 0), clips(count, 1), 0, names=SET_METRICS)
    notes = {name: metric["note"] for name, metric in metrics.items() if metric.get("note")}
    assert {"kad", "fad_infinity", "precision"} <= set(notes)
    assert not [note for note in notes.values() if OURS.search(note)]
    if count > 1:
        assert notes["kad"].startswith("no interval: with so few clips")
        assert np.isfinite(metrics["kad"]["value"]), "the value itself needs no interval"


def test_copies_and_infinite_features_are_told_in_a_users_words() -> None:
    reference = clips(40, 0)
    for other in (clips(40, 0, 0.0), clips(40, 0, np.nan), clips(40, 0, np.inf)):
        metrics = set_metrics(other, reference, 0, names=SET_METRICS)
        metrics |= set_metrics(reference, other, 0, names=SET_METRICS)
        metrics |= set_differences(reference, reference, other, 0)
        notes = [metric["note"] for metric in metrics.values() if metric.get("note")]
        assert not [note for note in notes if OURS.search(note)]
