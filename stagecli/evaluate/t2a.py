"""Text to audio: a sample per caption of a split, scored as a set and against the training set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stagecli.data.examples import evenly
from stagecli.errors import counted
from stagecli.evaluate.averages import average
from stagecli.evaluate.chosen import CLASSIFIED, needs_training_split
from stagecli.evaluate.clap import Clap, open_clap
from stagecli.evaluate.classifier import label_columns
from stagecli.evaluate.embed import ClipSet, open_embedder
from stagecli.evaluate.job import Job, Scores
from stagecli.evaluate.label_scores import add_label_scores
from stagecli.evaluate.label_training import LabelClassifier, open_label_network
from stagecli.evaluate.ledger import fingerprint
from stagecli.evaluate.samples import (
    SampleFile,
    codec_round_trip,
    generate_samples,
    real_clips,
)
from stagecli.evaluate.sets import SET_METRICS, memorised_share, set_metrics
from stagecli.evaluate.t2a_rows import Material, T2ARows
from stagecli.files import JsonRow
from stagecli.metrics.registry import METRICS
from stagecli.ssl.base import Encoder


def score_t2a(job: Job, judge: Encoder) -> Scores:
    """Rows for the samples, real training clips, and the reference with and without the codec.

    The samples stay in the run. Raises StageError: a requested label that cannot be learnt, bad
    audio, no such CLAP.
    """
    # Everything that may be refused, before samples are generated.
    clap = open_clap(job.flags.clap, job.pipeline.device) if job.flags.clap else None
    train = job.source.clips("train")
    classified = any(name in CLASSIFIED for name in job.metrics)
    columns = label_columns(train, job.clips, job.flags.labels) if classified else []
    embedder = open_embedder(
        judge,
        job.pipeline.sample_rate,
        Path(job.recipe.data.cache_dir),
        job.pipeline.device,
        note=job.note,
    )
    network = _label_network(job, columns)

    # The sets of clips, and their embeddings.
    state = fingerprint({**job.identity, "facts": job.head})
    samples_dir = job.evals_dir / f"{job.stem}_{state}_samples"
    files = generate_samples(job, samples_dir)
    clips = _clip_sets(job, files)
    material = Material(
        job=job,
        clips=clips,
        embeddings={name: embedder.embed(part, job.progress) for name, part in clips.items()},
        embedder=embedder,
        train=train,
        files=files,
    )

    # Their scores.
    rows = _set_rows(material)
    if columns:
        add_label_scores(rows, material, columns, network)
    elif classified:
        job.warn("no label follows from the captions: no prompt accuracy, KL or inception score")
    head: JsonRow = {"judge": judge.label, "samples": str(samples_dir)}
    if "memorised_share" in job.metrics:
        head["memorisation"] = _add_memorisation(rows, material)
    if clap:
        _add_clap_scores(rows, material, clap)
    return Scores(
        rows=list(rows.by_system.values()),
        conventions=rows.conventions,
        settings=_settings(job, judge, clap, network),
        by_clip={"samples": rows.by_sample},
        head=head,
        reference=material.embeddings["reference"],
        samples=material.embeddings["samples"],
    )


def _label_network(job: Job, columns: Sequence[str]) -> LabelClassifier | None:
    """What prompt accuracy is measured by; None if it is not, or not by a network."""
    if "prompt_accuracy" not in job.metrics:
        return None
    return open_label_network(
        job.source,
        columns,
        num_samples=job.pipeline.num_samples,
        cache_dir=Path(job.recipe.data.cache_dir),
        progress=job.progress,
        note=job.note,
    )


def _settings(
    job: Job, judge: Encoder, clap: Clap | None, network: LabelClassifier | None
) -> JsonRow:
    """What the scores depend on beside the settings of the job."""
    return {
        "judge": judge.label,
        "judge_weights": judge.fingerprint(),
        "full": needs_training_split(job.flags),
        **({"metrics": job.metrics} if job.flags.metrics else {}),
        "labels": list(job.flags.labels),
        "label_network": network.digest if network else None,
        "clap": clap.convention if clap else None,
    }


def _clip_sets(job: Job, files: list[SampleFile]) -> dict[str, ClipSet]:
    """Sets by name; without the full metrics only as many training clips as the row compares."""
    train = job.source.clips("train")
    length = job.pipeline.num_samples
    reference = real_clips(job.source, job.clips, "reference", num_samples=length, seed=job.seed)
    training = real_clips(job.source, train, "training clips", num_samples=length, seed=job.seed)
    if not needs_training_split(job.flags):
        training = training.subset(_compared_training_clips(job), training.title)
    return {
        "reference": reference,
        "samples": ClipSet(
            title="samples",
            read=lambda i: files[i].read(job.pipeline.sample_rate),
            count=len(files),
        ),
        "training": training,
        "round trip": codec_round_trip(job.pipeline, reference),
    }


def _compared_training_clips(job: Job) -> list[int]:
    """Indices of as many training clips as there are samples, spread over the split."""
    return evenly(range(len(job.source.clips("train"))), len(job.clips))


def _set_rows(material: Material) -> T2ARows:
    """Rows with the metrics of whole sets, the reference's row still without any."""
    # The sets to compare with the reference; of the training clips as many as there are samples.
    job = material.job
    reference = material.embeddings["reference"]
    training = material.embeddings["training"]
    if needs_training_split(job.flags):
        training = training.subset(_compared_training_clips(job))
    samples = material.embeddings["samples"]
    round_trip = material.embeddings["round trip"]

    # A row per set.
    rows = T2ARows(by_sample={f"{i} {clip.key}": {} for i, clip in enumerate(job.clips)})
    rows.add(
        "samples",
        system="samples",
        kind="samples",
        n=len(samples),
        metrics=set_metrics(reference, samples, job.seed, names=job.metrics),
    )
    rows.add(
        "training",
        system="real, train split",
        kind="bound",
        n=len(training),
        metrics=set_metrics(reference, training, job.seed, names=job.metrics),
    )
    rows.add(
        "round trip",
        system="codec round trip",
        kind="bound",
        n=len(round_trip),
        metrics=set_metrics(reference, round_trip, job.seed, names=job.metrics, paired=True),
    )
    if job.flags.clap or any(name in CLASSIFIED for name in job.metrics):
        rows.add(
            "reference",
            system=f"real, {job.clips[0].split} split",
            kind="bound",
            n=len(job.clips),
            metrics={},
        )

    # The conventions of their metrics.
    for name in [name for name in job.metrics if name in SET_METRICS]:
        convention = METRICS[name].convention
        if name != "fd_log_mel":
            convention += f"; {material.embedder.convention}, mean over frames"
        rows.conventions[name] = convention
    return rows


def _add_memorisation(rows: T2ARows, material: Material) -> JsonRow:
    """Add the share of memorised samples; returns its details, for the head of the document."""
    metric, details = memorised_share(
        material.embeddings["samples"],
        material.embeddings["training"],
        material.embeddings["round trip"],
        sample_names=[str(file.path) for file in material.files],
        training_names=[clip.key for clip in material.train],
    )
    rows.metrics("samples")["memorised_share"] = metric
    rows.conventions["memorised_share"] = (
        f"{METRICS['memorised_share'].convention}; "
        f"{counted(len(material.train), 'training clip')}, "
        f"test clips through the codec first; {material.embedder.convention}, mean over frames"
    )
    return details


def _add_clap_scores(rows: T2ARows, material: Material, clap: Clap) -> None:
    """Add the CLAP score of the samples and of the reference."""
    job = material.job
    prompts = [clip.caption for clip in job.clips]
    for name in ("samples", "reference"):
        cosines = clap.scores(
            material.clips[name],
            prompts,
            rate=job.pipeline.sample_rate,
            cache_dir=Path(job.recipe.data.cache_dir),
            progress=job.progress,
            note=job.note,
        )
        rows.metrics(name)["clap_score"] = average(cosines, job.seed)
        if name == "samples":
            rows.add_sample_scores("clap_score", dict(enumerate(cosines)))
    rows.conventions["clap_score"] = f"{METRICS['clap_score'].convention}; {clap.convention}"
