"""Text-to-audio folders: the set of generated files against the set of reference files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stagecli.data.cache import Progress
from stagecli.errors import counted
from stagecli.evaluate.averages import average
from stagecli.evaluate.chosen import chosen_metrics
from stagecli.evaluate.clap import open_clap
from stagecli.evaluate.clip_warnings import ClipWarnings
from stagecli.evaluate.embed import ClipEmbeddings, ClipSet, Embedder, open_embedder
from stagecli.evaluate.flags import Flags
from stagecli.evaluate.folder_files import (
    FolderScores,
    Gains,
    Headers,
    common_sample_rate,
    read_gains,
    read_headers,
    read_prompts,
    read_ungained,
)
from stagecli.evaluate.sets import memorised_share, set_metrics
from stagecli.files import JsonRow
from stagecli.metrics.checks import clip_statistics
from stagecli.metrics.registry import METRICS
from stagecli.schema import Evaluate
from stagecli.ssl import open_encoder


def score_folder_sets(
    flags: Flags,
    reference: Path,
    generated: Path,
    progress: Progress,
    warn: Callable[[str], None],
) -> FolderScores:
    """Scores of the generated set; embeddings are cached.

    Raises StageError: sample rates that differ, unusable audio, no such judge or CLAP, no prompts.
    """
    # Check everything that may be refused before embedding a clip.
    folders = {"reference": reference, "generated": generated}
    if flags.training:
        folders["training"] = flags.training
    headers = {name: read_headers(folder, progress, warn) for name, folder in folders.items()}
    rate = common_sample_rate(
        {file: info for infos in headers.values() for file, info in infos.items()}
    )
    clap = open_clap(flags.clap) if flags.clap else None
    prompts = read_prompts(generated, list(headers["generated"])) if clap else []
    judge = open_encoder(flags.judge or Evaluate().judge)
    embedder = open_embedder(judge, rate, flags.cache_dir, note=warn)
    _warn_about_shapes(headers["reference"], headers["generated"], warn)

    # Embed every set, looking at each clip as it is read.
    warnings = {
        name: ClipWarnings(str(folders[name]), len(infos)) for name, infos in headers.items()
    }
    clips = {
        name: _clip_set(
            name, list(infos), rate, warnings[name], read_gains(folders[name], infos, warn)
        )
        for name, infos in headers.items()
    }
    embeddings = {name: embedder.embed(part, progress) for name, part in clips.items()}
    for name in ("reference", "generated"):
        for line in warnings[name].lines():
            warn(line)

    # Score the sets, and the clips against their prompts.
    scores = _set_scores(embeddings, headers, embedder, chosen_metrics(flags, "t2a"))
    if clap:
        cosines = clap.scores(
            clips["generated"],
            prompts,
            rate=rate,
            cache_dir=flags.cache_dir,
            progress=progress,
            note=warn,
        )
        scores.row["metrics"]["clap_score"] = average(cosines, 0)
        convention = f"{METRICS['clap_score'].convention}; {clap.convention}"
        return replace(scores, conventions={**scores.conventions, "clap_score": convention})
    return scores


def _set_scores(
    embeddings: Mapping[str, ClipEmbeddings],
    headers: Mapping[str, Headers],
    embedder: Embedder,
    names: Sequence[str],
) -> FolderScores:
    """Distances and shares of the whole sets, memorisation if there is a training set."""
    metrics = set_metrics(embeddings["reference"], embeddings["generated"], 0, names=names)
    judged = f"{embedder.convention}, mean over frames"
    conventions = {name: METRICS[name].convention for name in metrics}
    for name in conventions:
        if name != "fd_log_mel":
            conventions[name] += f"; {judged}"
    facts: JsonRow = {
        "sample_rate": embedder.rate,
        "judge": embedder.judge.label,
        "judge_weights": embedder.judge.fingerprint(),
    }
    if "training" in embeddings:
        metrics["memorised_share"], facts["memorisation"] = memorised_share(
            embeddings["generated"],
            embeddings["training"],
            embeddings["reference"],
            sample_names=[str(file) for file in headers["generated"]],
            training_names=[str(file) for file in headers["training"]],
        )
        conventions["memorised_share"] = (
            f"{METRICS['memorised_share'].convention}; "
            f"{counted(len(headers['training']), 'training clip')}, "
            f"reference used as it is (send it through the codec first); {judged}"
        )
    row = {
        "n": len(headers["generated"]),
        "reference_n": len(headers["reference"]),
        "metrics": metrics,
    }
    return FolderScores(facts=facts, conventions=conventions, row=row)


def _clip_set(
    title: str, files: Sequence[Path], rate: int, warnings: ClipWarnings, gains: Gains
) -> ClipSet:
    """The files as clips; each is checked when it is first read."""
    checked: set[int] = set()

    def read(i: int) -> np.ndarray:
        audio = read_ungained(files[i], rate, gains)
        if i not in checked:
            checked.add(i)
            statistics = clip_statistics(torch.from_numpy(audio))
            # One clip at a usual peak is no sign of normalisation; a set that shares a peak is.
            lines = [line for line in statistics.warnings() if "normalised" not in line]
            warnings.add(files[i], lines, statistics.peak)
        return audio

    return ClipSet(title=title, read=read, count=len(files), names=[str(file) for file in files])


def _warn_about_shapes(reference: Headers, generated: Headers, warn: Callable[[str], None]) -> None:
    """Warn if the numbers, lengths or channels of the clips differ between the sets."""
    if len(reference) != len(generated):
        warn(
            f"{len(reference)} reference and {counted(len(generated), 'generated clip')}: "
            "compare biased metrics at equal numbers only"
        )
    reference_seconds = _median_seconds(reference)
    generated_seconds = _median_seconds(generated)
    longer = max(reference_seconds, generated_seconds)
    if longer > 1.05 * min(reference_seconds, generated_seconds):
        warn(
            f"clips last {reference_seconds:.2f} s (reference) and {generated_seconds:.2f} s "
            "(generated) in the median"
        )
    reference_channels = max(info.channels for info in reference.values())
    generated_channels = max(info.channels for info in generated.values())
    if max(reference_channels, generated_channels) > 1:
        warn(
            f"channels: {reference_channels} (reference) and {generated_channels} (generated); "
            "the mean of the channels is scored"
        )


def _median_seconds(headers: Headers) -> float:
    return float(np.median([info.seconds for info in headers.values()]))
