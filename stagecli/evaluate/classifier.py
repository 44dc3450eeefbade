"""A classifier of labels on the judge's features, trained on real clips, for prompt accuracy."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagecli.data.rows import Clip
from stagecli.errors import StageError

PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4)  # L2, strongest first
ITERATIONS = 300
MIN_CLIPS_PER_CLASS = 3  # on average; a column with fewer identifies clips, it does not label them


def label_text(clip: Clip, column: str) -> str:
    """The label as text; "" if the clip has none."""
    value = clip.labels.get(column)
    return "" if value is None else str(value)


def label_columns(
    train: Sequence[Clip], scored: Sequence[Clip], requested: Sequence[str] = ()
) -> list[str]:
    """Label columns that a classifier can be trained on, in the order of the manifest.

    By default those that hold text (numbers describe files, such as their length), have at least
    two classes and MIN_CLIPS_PER_CLASS training clips per class, follow from the caption (a sample
    cannot miss what no prompt requests), and have training clips of every scored class.
    requested: these columns instead. Raises StageError if one does not exist or a scored class has
    no training clip.
    """
    if not requested:
        return [name for name in _all_columns(train) if _is_label(name, train, scored)]
    for column in requested:
        classes = {label_text(clip, column) for clip in train} - {""}
        unknown = sorted({label_text(clip, column) for clip in scored} - classes - {""})
        problem = None
        if len(classes) < 2:
            problem = "it has fewer than two classes"
        elif unknown:
            problem = f"the train split never has {unknown[0]!r}"
        if problem:
            raise StageError(
                f"no classifier can be trained on label {column!r}: {problem}",
                hint=f"labels of this data set: {', '.join(_all_columns(train)) or 'none'}",
            )
    return list(requested)


def _all_columns(clips: Sequence[Clip]) -> list[str]:
    return list(dict.fromkeys(name for clip in clips for name in clip.labels))


def _is_label(column: str, train: Sequence[Clip], scored: Sequence[Clip]) -> bool:
    values = [label_text(clip, column) for clip in train]
    classes = set(values) - {""}
    if not 2 <= len(classes) <= len(values) / MIN_CLIPS_PER_CLASS:
        return False
    if any(not isinstance(clip.labels.get(column, ""), str) for clip in train):
        return False
    if all(map(_is_number, classes)):
        return False
    if not _follows_from_caption(column, [*train, *scored]):
        return False
    return {label_text(clip, column) for clip in scored} - {""} <= classes


def _follows_from_caption(column: str, clips: Sequence[Clip]) -> bool:
    """Whether clips of one caption always have one label."""
    by_caption: dict[str, str] = {}
    return all(
        by_caption.setdefault(clip.caption, label_text(clip, column)) == label_text(clip, column)
        for clip in clips
    )


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", text.strip(), re.IGNORECASE) is not None


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """Logistic regression on standardised features.

    weight: [D + 1, C], the last row the bias. penalty: the L2 that did best on the valid split;
    accuracy: on the valid split, NaN if it has no clip of a known class.
    """

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

    def predict(self, features_ND: Tensor) -> list[str]:
        """The most likely class of each clip."""
        return [self.classes[i] for i in self.logits(features_ND).argmax(1).tolist()]


def fit_classifier(
    train_ND: Tensor, labels: Sequence[str], valid_MD: Tensor, valid_labels: Sequence[str]
) -> Classifier:
    """Multinomial logistic regression by L-BFGS.

    The L2 penalty with the best accuracy on the valid clips is chosen, ties by likelihood. The
    problem is convex and starts at 0, strongest penalty first, so nothing is random. Clips without
    a label ("") are left out.
    """
    # Standardise by the training clips that have a label.
    kept = [i for i, label in enumerate(labels) if label]
    classes = tuple(sorted({labels[i] for i in kept}))
    x_ND = train_ND[kept].double()
    mean_D = x_ND.mean(0)
    scale_D = x_ND.std(0).clamp_min(1e-8)
    target_N = torch.tensor([classes.index(labels[i]) for i in kept])

    # The valid clips of a known class choose the penalty.
    known = [i for i, label in enumerate(valid_labels) if label in classes]
    known_KD = valid_MD[known].double()
    known_K = torch.tensor([classes.index(valid_labels[i]) for i in known])
    weight = torch.zeros(x_ND.shape[1] + 1, len(classes), dtype=torch.float64)
    best: tuple[tuple[float, float], Classifier] | None = None
    for penalty in PENALTIES:
        weight = _minimise((x_ND - mean_D) / scale_D, target_N, weight, penalty)
        candidate = Classifier(
            classes=classes,
            mean=mean_D,
            scale=scale_D,
            weight=weight,
            penalty=penalty,
            accuracy=math.nan,
        )
        score = (math.nan, 0.0)
        if known:
            logits = candidate.logits(known_KD)
            accuracy = float((logits.argmax(1) == known_K).double().mean())
            score = (accuracy, -float(torch.nn.functional.cross_entropy(logits, known_K)))
        if best is None or score > best[0]:
            best = score, replace(candidate, accuracy=score[0])
    assert best is not None
    return best[1]


def _minimise(x_ND: Tensor, target_N: Tensor, start: Tensor, penalty: float) -> Tensor:
    """Weights [D + 1, C] of least cross-entropy plus penalty / 2 * |weight|^2, bias unpenalised."""
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
    result = minimize(loss, start.reshape(-1).numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(result.x).view_as(start)
