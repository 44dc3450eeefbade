"""Metrics of class posteriors, CLAP scores, and shares with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stagecli.metrics.moments import Embeddings, checked_embeddings, checked_sets

# Added to the second distribution inside the logarithm, as in AudioLDM-eval.
_EPSILON = 1e-6


def posteriors(logits: Embeddings) -> Tensor:
    """Softmax of logits [N, C] over the classes, float64.

    For a tagger trained with sigmoids (PANNs, PaSST) this is a convention, that of AudioLDM-eval's
    "KL_softmax" and of PaSST-based KL: it makes the classes compete. If a clip has several windows,
    average their logits before the softmax, as stable-audio-metrics does.
    Raises ValueError: not [N, C], NaN or infinite.
    """
    return checked_embeddings(logits, "the logits", least=1).softmax(1)


def _checked_posteriors(values: Embeddings, name: str) -> Tensor:
    values_NC = checked_embeddings(values, name, least=1)
    if bool((values_NC < 0).any()) or not torch.allclose(
        values_NC.sum(1), torch.ones(1).double(), atol=1e-4
    ):
        raise ValueError(
            f"rows of {name} must be distributions: at least 0, sum 1 (see `posteriors`)"
        )
    return values_NC


def _kl(p_NC: Tensor, q_NC: Tensor, epsilon: float) -> Tensor:
    """sum_c p ln(p / (q + epsilon)) [N]; 0 ln 0 = 0; infinite where q is 0 and p is not."""
    return (torch.xlogy(p_NC, p_NC) - torch.xlogy(p_NC, q_NC + epsilon)).sum(1)


@dataclass(frozen=True)
class ClassKL:
    """Divergences in nat, means over n pairs.

    reference_generated: KL(reference || generated), the one to print; generated_reference: the
    other direction; per_pair [N]: terms of the first; epsilon: added inside the logarithm.
    """

    reference_generated: float
    generated_reference: float
    per_pair: Tensor
    n: int
    epsilon: float


def class_kl(
    reference_NC: Embeddings, generated_NC: Embeddings, epsilon: float = _EPSILON
) -> ClassKL:
    """Mean Kullback-Leibler divergence of class posteriors; row i of both belongs to one prompt.

    reference_NC, generated_NC: distributions [N, C] (`posteriors`). AudioLDM-eval and AudioCraft
    print KL(reference || generated), stable-audio-metrics the other direction; both are returned.
    epsilon 1e-6 is added to the second distribution inside the logarithm, as in AudioLDM-eval: it
    bounds a term at 13.8 p, and identical pairs give -C * 1e-6 at the lowest. Use 0 for the exact
    divergence, which may be infinite. AudioLDM-eval's "KL_sigmoid" sums p ln(p / q) over
    independent classes; that is not a divergence (it can be negative) and is not offered.
    Raises ValueError: different shapes, rows that are not distributions, NaN or infinite values.
    """
    p = _checked_posteriors(reference_NC, "the reference")
    q = _checked_posteriors(generated_NC, "the generated set")
    if p.shape != q.shape:
        raise ValueError(f"pairs need equal shapes, got {tuple(p.shape)} and {tuple(q.shape)}")
    forward_N = _kl(p, q, epsilon)
    backward_N = _kl(q, p, epsilon)
    return ClassKL(float(forward_N.mean()), float(backward_N.mean()), forward_N, len(p), epsilon)


@dataclass(frozen=True)
class InceptionScore:
    """value: mean over splits, 1..C; std: their standard deviation (ddof=0); n: clips."""

    value: float
    std: float
    splits: int
    n: int
    classes: int


def inception_score(generated_NC: Embeddings, seed: int, splits: int = 10) -> InceptionScore:
    """exp of the mean KL(p(y|x) || p(y)) (Salimans et al., 2016), averaged over `splits` parts.

    generated_NC: distributions [N, C] (`posteriors`). Clips are shuffled by `seed`, then cut into
    parts; p(y) is the mean of a part, so n clips cannot score above n, and the score rises with the
    clips per part. 1 if all posteriors are equal, C if they are certain and classes equally
    frequent. The reference plays no part: noise that a classifier is sure about scores well.
    Raises ValueError: rows that are not distributions, fewer clips than splits, NaN or infinite
    values.
    """
    p = _checked_posteriors(generated_NC, "the generated set")
    if not 1 <= splits <= len(p):
        raise ValueError(f"at least {splits} clips are needed, got {len(p)}")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(p)))
    edges = [i * len(p) // splits for i in range(splits + 1)]
    parts = [p[order[low:high]] for low, high in zip(edges[:-1], edges[1:], strict=True)]
    scores = [math.exp(float(_kl(part, part.mean(0, keepdim=True), 0.0).mean())) for part in parts]
    return InceptionScore(
        value=float(np.mean(scores)),
        std=float(np.std(scores)),
        splits=splits,
        n=len(p),
        classes=p.shape[1],
    )


def clap_scores(audio_ND: Embeddings, text_ND: Embeddings) -> Tensor:
    """Cosine [N] in -1..1 of the audio and text embedding of each pair; the CLAP score is its mean.

    audio_ND, text_ND: [N, D] of one CLAP checkpoint, row i of both for one prompt. Neither clipped
    at 0 nor multiplied by 100, as in some tools. Scores of different checkpoints are not
    comparable: print the checkpoint with the number.
    Raises ValueError: different shapes, an embedding of zeros, NaN or infinite values.
    """
    audio, text = checked_sets(audio_ND, text_ND, ("the audio", "the text"), least=1)
    if audio.shape != text.shape:
        raise ValueError(
            f"pairs need equal shapes, got {tuple(audio.shape)} and {tuple(text.shape)}"
        )
    length_N = audio.norm(dim=1) * text.norm(dim=1)
    if bool((length_N == 0).any()):
        raise ValueError("the features of a clip are all zeros: they have no direction")
    return (audio * text).sum(1) / length_N


@dataclass(frozen=True)
class Share:
    """value: hits / n; low, high: its interval."""

    value: float
    low: float
    high: float
    n: int


def wilson_interval(hits: int, n: int, level: float = 0.95) -> Share:
    """A share with its score interval (Wilson, 1927), which stays in 0..1, at 0 and n hits too.

    Raises ValueError: n < 1, hits outside 0..n, level outside (0, 1).
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"{hits} of {n} is not a share")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    from scipy.special import ndtri

    z = float(ndtri((1 + level) / 2))
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the exact bound is 0 or 1, and rounding must not exclude it.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return Share(p, low, high, n)


def prompt_accuracy(
    predicted: Sequence[Any] | npt.NDArray[Any],
    requested: Sequence[Any] | npt.NDArray[Any],
    level: float = 0.95,
) -> Share:
    """Share of samples for which a classifier predicts the prompt's label, with a Wilson interval.

    predicted, requested: labels [N] of any comparable type, in one order. The interval covers other
    samples, not the classifier: print its accuracy on real test clips beside it, and never score
    with the teacher.
    Raises ValueError: different lengths, no samples, level outside (0, 1).
    """
    if len(predicted) != len(requested):
        raise ValueError(f"{len(predicted)} samples and {len(requested)} prompts")
    hits = sum(bool(a == b) for a, b in zip(predicted, requested, strict=True))
    return wilson_interval(hits, len(predicted), level)
