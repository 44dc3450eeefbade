"""Scores of t2a by classifiers of labels: prompt accuracy, KL and inception score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from torch import Tensor

from stagecli.errors import counted
from stagecli.evaluate.averages import average
from stagecli.evaluate.classifier import Classifier, fit_classifier, label_text
from stagecli.evaluate.samples import real_clips
from stagecli.evaluate.sets import add_or_explain
from stagecli.evaluate.t2a_rows import Material, T2ARows
from stagecli.files import JsonRow
from stagecli.metrics.classes import class_kl, inception_score, posteriors, prompt_accuracy
from stagecli.metrics.registry import METRICS

CLASSIFIED = ("samples", "round trip", "reference")  # rows that get these scores


def add_label_scores(rows: T2ARows, material: Material, columns: Sequence[str]) -> None:
    """Add the prompt accuracy of every label column, and KL and inception score by the first.

    Only those of the job's metrics; at least one of them is.
    """
    job = material.job
    of_posteriors = [name for name in ("kl", "inception_score") if name in job.metrics]
    valid = job.source.clips("valid")
    valid_clips = real_clips(
        job.source,
        valid,
        "validation clips",
        num_samples=job.pipeline.num_samples,
        seed=job.seed,
    )
    valid_embeddings = material.embedder.embed(valid_clips, job.progress)
    if "prompt_accuracy" not in job.metrics:
        columns = columns[:1]
    for column in columns:
        classifier = fit_classifier(
            material.embeddings["training"].mean_and_deviation(),
            [label_text(clip, column) for clip in material.train],
            valid_embeddings.mean_and_deviation(),
            [label_text(clip, column) for clip in valid],
        )
        if "prompt_accuracy" in job.metrics:
            _add_prompt_accuracy(rows, material, column, classifier)
        if column == columns[0]:
            _add_posterior_scores(rows, material, classifier, of_posteriors)
            for name in of_posteriors:
                rows.conventions[name] = (
                    f"{METRICS[name].convention}; classifier of prompt_accuracy:{column}"
                )


def _add_prompt_accuracy(
    rows: T2ARows, material: Material, column: str, classifier: Classifier
) -> None:
    requested = [label_text(clip, column) for clip in material.job.clips]
    labelled = [i for i, label in enumerate(requested) if label]
    name = f"prompt_accuracy:{column}"
    for system in CLASSIFIED:
        predicted = classifier.predict(material.embeddings[system].mean_and_deviation())
        share = prompt_accuracy([predicted[i] for i in labelled], [requested[i] for i in labelled])
        rows.metrics(system)[name] = asdict(share)
        if system == "samples":
            rows.add_sample_scores(name, {i: float(predicted[i] == requested[i]) for i in labelled})
    rows.conventions[name] = (
        f"{METRICS['prompt_accuracy'].convention}; logistic regression of {column!r} "
        f"({len(classifier.classes)} classes) on mean and deviation over frames of the features of "
        f"the {material.embedder.convention}, trained on {counted(len(material.train), 'clip')} "
        f"of the train split, L2 {classifier.penalty:g} chosen on the valid split (accuracy there "
        f"{classifier.accuracy:.3f})"
    )


def _add_posterior_scores(
    rows: T2ARows, material: Material, classifier: Classifier, names: Sequence[str]
) -> None:
    """Add KL against the reference, pair by pair, and the inception score, if in `names`."""
    seed = material.job.seed
    by_system = {
        system: posteriors(classifier.logits(material.embeddings[system].mean_and_deviation()))
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


def _inception(posteriors_NC: Tensor, seed: int) -> list[JsonRow]:
    score = inception_score(posteriors_NC, seed)
    return [{"value": score.value, "std": score.std}]
