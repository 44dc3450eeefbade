"""Scores of t2a by classifiers of labels: prompt accuracy, KL and inception score.

Prompt accuracy is by a label network, which shares nothing with judge or codec, where there are
clips enough to train one. KL and inception score are by a classifier on the judge's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from torch import Tensor

from stagecli.errors import counted
from stagecli.evaluate.averages import average
from stagecli.evaluate.classifier import Classifier, fit_classifier, label_text
from stagecli.evaluate.label_limits import MIN_CLIPS_PER_CLASS
from stagecli.evaluate.label_training import LabelClassifier, cached_logits
from stagecli.evaluate.samples import real_clips
from stagecli.evaluate.sets import add_or_explain
from stagecli.evaluate.t2a_rows import Material, T2ARows
from stagecli.files import JsonRow
from stagecli.metrics.classes import class_kl, inception_score, posteriors, prompt_accuracy
from stagecli.metrics.registry import METRICS

CLASSIFIED = ("samples", "round trip", "reference")  # rows that get these scores
CEILING = 0.97  # of the accuracy on real clips: below it, the codec itself costs samples


def add_label_scores(
    rows: T2ARows, material: Material, columns: Sequence[str], network: LabelClassifier | None
) -> None:
    """Add the prompt accuracy of every label column, and KL and inception score by the first.

    Only those of the job's metrics; at least one of them is.
    """
    metrics = material.job.metrics
    if "prompt_accuracy" in metrics:
        logits = _network_logits(material, network) if network else {}
        for column in columns:
            if network and column in network.classes:
                predicted = {name: network.predict(logits[name], column) for name in CLASSIFIED}
                convention = network.convention(column)
            else:
                predicted, convention = _by_probe(material, column)
            _add_prompt_accuracy(rows, material, column, predicted)
            name = f"prompt_accuracy:{column}"
            rows.conventions[name] = f"{METRICS['prompt_accuracy'].convention}; {convention}"
    of_posteriors = [name for name in ("kl", "inception_score") if name in metrics]
    if of_posteriors:
        _add_posterior_scores(rows, material, columns[0], of_posteriors)


def _by_probe(material: Material, column: str) -> tuple[dict[str, list[str]], str]:
    """Predictions by system, and their convention, where no network could be trained."""
    probe = _fit_probe(material, column)
    predicted = {
        name: probe.predict(material.embeddings[name].mean_and_deviation()) for name in CLASSIFIED
    }
    reason = f"under {MIN_CLIPS_PER_CLASS} training clips per class, too few for a network"
    return predicted, f"{_probe_convention(material, column, probe)}; {reason}"


def _fit_probe(material: Material, column: str) -> Classifier:
    """A classifier on the judge's features; the valid split chooses its L2 penalty."""
    job = material.job
    valid = job.source.clips("valid")
    valid_clips = real_clips(
        job.source,
        valid,
        "validation clips",
        num_samples=job.pipeline.num_samples,
        seed=job.seed,
    )
    valid_embeddings = material.embedder.embed(valid_clips, job.progress)
    return fit_classifier(
        material.embeddings["training"].mean_and_deviation(),
        [label_text(clip, column) for clip in material.train],
        valid_embeddings.mean_and_deviation(),
        [label_text(clip, column) for clip in valid],
    )


def _probe_convention(material: Material, column: str, probe: Classifier) -> str:
    return (
        f"logistic regression of {column!r} ({len(probe.classes)} classes) on mean and deviation "
        f"over frames of the features of the {material.embedder.convention}, trained on "
        f"{counted(len(material.train), 'clip')} of the train split, L2 {probe.penalty:g} chosen "
        f"on the valid split (accuracy there {probe.accuracy:.3f})"
    )


def _network_logits(material: Material, network: LabelClassifier) -> dict[str, Tensor]:
    job = material.job
    cache_dir = Path(job.recipe.data.cache_dir)
    return {
        system: cached_logits(
            network, material.clips[system], cache_dir, progress=job.progress, note=job.note
        )
        for system in CLASSIFIED
    }


def _add_prompt_accuracy(
    rows: T2ARows, material: Material, column: str, predicted: dict[str, list[str]]
) -> None:
    """Add the share of clips with the label that their caption requests; predicted: by system."""
    requested = [label_text(clip, column) for clip in material.job.clips]
    labelled = [i for i, label in enumerate(requested) if label]
    wanted = [requested[i] for i in labelled]
    name = f"prompt_accuracy:{column}"
    shares = {}
    for system, labels in predicted.items():
        shares[system] = prompt_accuracy([labels[i] for i in labelled], wanted)
        rows.metrics(system)[name] = asdict(shares[system])
    hits = {i: float(predicted["samples"][i] == requested[i]) for i in labelled}
    rows.add_sample_scores(name, hits)
    real = shares["reference"].value
    coded = shares["round trip"]
    if coded.high < CEILING * real:  # beyond the chance of so many clips
        material.job.warn(
            f"the codec limits {name}: {coded.value:.1%} of real clips are recognised after the "
            f"round trip, {real:.1%} before (n {coded.n}); no sample can be expected to do better"
        )


def _add_posterior_scores(
    rows: T2ARows, material: Material, column: str, names: Sequence[str]
) -> None:
    """Add KL against the reference, pair by pair, and the inception score, if in `names`."""
    seed = material.job.seed
    probe = _fit_probe(material, column)
    by_system = {
        system: posteriors(probe.logits(material.embeddings[system].mean_and_deviation()))
        for system in CLASSIFIED
    }
    for system, posteriors_NC in by_system.items():
        metrics = rows.metrics(system)
        if "kl" in names and system != "reference":
            per_pair = class_kl(by_system["reference"], posteriors_NC).per_pair.tolist()
            metrics["kl"] = average(per_pair, seed)
            if system == "samples":
                rows.add_sample_scores("kl", dict(enumerate(per_pair)))
        if "inception_score" in names:
            add_or_explain(metrics, ["inception_score"], partial(_inception, posteriors_NC, seed))
    convention = _probe_convention(material, column, probe)
    for name in names:
        rows.conventions[name] = f"{METRICS[name].convention}; {convention}"


def _inception(posteriors_NC: Tensor, seed: int) -> list[JsonRow]:
    score = inception_score(posteriors_NC, seed)
    return [{"value": score.value, "std": score.std}]
