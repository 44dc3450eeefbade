"""A classifier of real clips by their labels, on the judge's features: what prompt accuracy is measured with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagecli.data.rows import Clip
from stagecli.errors import StageError

PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4)  # L2, strongest first
ITERATIONS = 300
FEWEST = 3  # training clips per class, on average: below that a column is an identity, not a label


def text_of(clip: Clip, column: str) -> str:
    """The label as text; "" where there is none."""
    value = clip.labels.get(column)
    return "" if value is None else str(value)


def label_columns(
    train: Sequence[Clip], scored: Sequence[Clip], asked: Sequence[str] = ()
) -> list[str]:
    """Label columns that a classifier can be trained on, in the order of the manifest.

    By default: text (numbers are facts about files, such as their length), two classes or more, FEWEST training clips
    a class, decided by the caption (what no prompt asks for cannot be missed), every scored class trained.
    asked: those named instead; StageError where one does not exist or a scored class has no training clip.
    """
    names = list(dict.fromkeys(name for clip in train for name in clip.labels))
    for column in asked:
        classes = {text_of(clip, column) for clip in train} - {""}
        unknown = sorted({text_of(clip, column) for clip in scored} - classes - {""})
        if len(classes) < 2 or unknown:
            what = (
                f"the train split never has {unknown[0]!r}"
                if unknown
                else "it has fewer than two classes"
            )
            raise StageError(
                f"no classifier can be trained on label {column!r}: {what}",
                hint=f"labels of this data set: {', '.join(names) or 'none'}",
            )
    return list(asked) or [name for name in names if _is_label(name, train, scored)]


def _is_label(column: str, train: Sequence[Clip], scored: Sequence[Clip]) -> bool:
    values = [text_of(clip, column) for clip in train]
    classes = set(values) - {""}
    if not 2 <= len(classes) <= len(values) / FEWEST:
        return False
    if any(not isinstance(clip.labels.get(column, ""), str) for clip in train) or all(
        map(_is_number, classes)
    ):
        return False
    by_caption: dict[str, str] = {}
    if any(
        by_caption.setdefault(c.caption, text_of(c, column)) != text_of(c, column)
        for c in [*train, *scored]
    ):
        return False
    return {text_of(clip, column) for clip in scored} - {""} <= classes


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", text.strip(), re.IGNORECASE) is not None


@dataclass(frozen=True)
class Classifier:
    """Logistic regression. classes; weight [D + 1, C] on standardised features; penalty: the L2 that did best on the
    valid split; accuracy: there."""

    classes: tuple[str, ...]
    mean: Tensor
    scale: Tensor
    weight: Tensor
    penalty: float
    accuracy: float

    def logits(self, features_ND: Tensor) -> Tensor:
        """[N, C]."""
        x = (features_ND - self.mean) / self.scale
        return x @ self.weight[:-1] + self.weight[-1]

    def heard(self, features_ND: Tensor) -> list[str]:
        """The class of each clip."""
        return [self.classes[i] for i in self.logits(features_ND).argmax(1).tolist()]


def fit(
    train_ND: Tensor, labels: Sequence[str], valid_MD: Tensor, valid_labels: Sequence[str]
) -> Classifier:
    """Multinomial logistic regression by L-BFGS; the L2 penalty is chosen by accuracy, then likelihood, on valid clips.

    A convex problem started at 0, strongest penalty first: no randomness. Clips without a label ("") are left out.
    """
    kept = [i for i, label in enumerate(labels) if label]
    classes = tuple(sorted({labels[i] for i in kept}))
    known = [i for i, label in enumerate(valid_labels) if label in classes]
    x = train_ND[kept].double()
    mean = x.mean(0)
    scale = x.std(0).clamp_min(1e-8)
    target = torch.tensor([classes.index(labels[i]) for i in kept])
    aim = torch.tensor([classes.index(valid_labels[i]) for i in known])
    weight = torch.zeros(x.shape[1] + 1, len(classes), dtype=torch.float64)
    best: tuple[tuple[float, float], Classifier] | None = None
    for penalty in PENALTIES:
        weight = _minimise((x - mean) / scale, target, weight, penalty)
        made = Classifier(classes, mean, scale, weight, penalty, float("nan"))
        if known:
            logits = made.logits(valid_MD[known].double())
            right = float((logits.argmax(1) == aim).double().mean())
            score = (right, -float(torch.nn.functional.cross_entropy(logits, aim)))
        else:
            score = (float("nan"), 0.0)
        if best is None or score > best[0]:
            best = score, Classifier(classes, mean, scale, weight, penalty, score[0])
    assert best is not None
    return best[1]


def _minimise(x_ND: Tensor, target_N: Tensor, start: Tensor, penalty: float) -> Tensor:
    from scipy.optimize import minimize

    def loss(flat: np.ndarray) -> tuple[float, Any]:
        weight = torch.from_numpy(flat).view_as(start)
        logits = x_ND @ weight[:-1] + weight[-1]
        log_p = logits.log_softmax(1)
        error = log_p.exp()
        error[torch.arange(len(error)), target_N] -= 1
        error /= len(error)
        gradient = torch.cat([x_ND.T @ error + penalty * weight[:-1], error.sum(0, keepdim=True)])
        value = (
            -log_p[torch.arange(len(log_p)), target_N].mean()
            + 0.5 * penalty * weight[:-1].square().sum()
        )
        return float(value), gradient.reshape(-1).numpy()

    # A step that gains less than 1e-6 nat changes no class.
    options = {"maxiter": ITERATIONS, "ftol": 1e-6}
    found = minimize(loss, start.reshape(-1).numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).view_as(start)
