"""Text to audio: a sample per prompt of a split, scored as a set, against its prompts, and against the training set."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagecli.data.audio import read_mono, write_wav
from stagecli.data.cache import Progress, canonical
from stagecli.data.examples import crop, evenly, stream
from stagecli.data.rows import Clip
from stagecli.data.source import Source
from stagecli.evaluate.clap import Clap
from stagecli.evaluate.classifier import Classifier, fit, label_columns, text_of
from stagecli.evaluate.hear import Clips, Heard, Listener
from stagecli.evaluate.ledger import fingerprint
from stagecli.evaluate.sets import DISTANCES, MANIFOLD, attempt, memorised, set_metrics
from stagecli.evaluate.summary import JsonRow, summarise
from stagecli.generate.pipeline import Pipeline, SamplerSettings
from stagecli.hub import weights_hash
from stagecli.metrics import METRICS
from stagecli.metrics.classes import class_kl, inception_score, posteriors, prompt_accuracy
from stagecli.ssl.base import Encoder

AT_ONCE = 16  # clips that go through the codec together


@dataclass(frozen=True)
class T2AOptions:
    """full: also what needs the whole training split (classifier, memorisation) and the neighbours; labels: columns for
    the classifier (default: those that captions decide); clap: a CLAP checkpoint; identity: what tells this
    checkpoint from others: with it, samples in the folder that say the same are used again; warn: gets a line per
    thing that a reader should know."""

    full: bool = False
    labels: tuple[str, ...] = ()
    clap: Clap | None = None
    identity: Mapping[str, Any] | None = None
    warn: Callable[[str], None] = lambda line: None


@dataclass
class T2AScores:
    """rows and conventions as printed; what differences of two systems are taken of: scores of single samples by
    (clip, place), and what the judge heard; memorisation: its quantiles and nearest pairs."""

    rows: list[JsonRow]
    conventions: dict[str, str]
    reference: Heard
    samples: Heard
    per_clip: dict[str, dict[str, float]] = field(default_factory=dict)
    memorisation: JsonRow | None = None


def score_t2a(
    pipeline: Pipeline,
    source: Source,
    clips: Sequence[Clip],
    seed: int,
    settings: SamplerSettings,
    folder: Path,
    judge: Encoder,
    progress: Progress,
    options: T2AOptions | None = None,
) -> T2AScores:
    """Rows for the samples, real training clips and the reference's codec round trip, and what differences need.

    The samples (one per clip, from its caption) are kept in `folder`. Without options: the distances only.
    Raises StageError: a named label that cannot be learnt, bad audio.
    """
    options = options or T2AOptions()
    cache_dir = Path(pipeline.recipe.data.cache_dir)
    listener = Listener(judge, pipeline.sample_rate, cache_dir, pipeline.device)
    train = source.clips("train")
    columns = label_columns(train, clips, options.labels) if options.full else []
    files = _generate(pipeline, clips, seed, settings, folder, progress, options.identity)
    sets = {
        "reference": real_clips(source, clips, "reference", pipeline.num_samples, seed),
        "samples": Clips(
            "samples", lambda i: read_mono(files[i], pipeline.sample_rate), len(files)
        ),
        "training": real_clips(source, train, "training clips", pipeline.num_samples, seed),
    }
    sets["round trip"] = _round_trip(pipeline, sets["reference"])
    places = evenly(range(len(train)), len(clips))
    if not options.full:  # of the training split only as many as the row compares
        sets["training"] = sets["training"].part(places, "training clips")
        places = list(range(len(places)))
    heard = {name: listener(of, progress) for name, of in sets.items()}
    reference = heard["reference"]
    compared = {
        "samples": ("samples", heard["samples"], False),
        "real, train split": ("bound", heard["training"].part(places), False),
        "codec round trip": ("bound", heard["round trip"], True),
    }
    rows = [
        _row(
            name, kind, set_metrics(reference, of, seed, full=options.full, paired=paired), len(of)
        )
        for name, (kind, of, paired) in compared.items()
    ]
    names = [*DISTANCES, *(["fad_infinity", *MANIFOLD] if options.full else [])]
    scores = T2AScores(
        rows, {name: METRICS[name].convention for name in names}, reference, heard["samples"]
    )
    for name in names:
        if name != "fd_log_mel":
            scores.conventions[name] += f"; {listener.convention}, mean over frames"
    scores.per_clip = {f"{i} {clip.key}": {} for i, clip in enumerate(clips)}
    if options.full or options.clap:
        rows.append(_row(f"real, {clips[0].split} split", "bound", {}, len(clips)))
    systems = {"samples": rows[0], "round trip": rows[2], "reference": rows[-1]}
    if columns:
        _classify(
            scores,
            systems,
            heard,
            columns,
            source,
            clips,
            listener,
            pipeline.num_samples,
            seed,
            progress,
        )
    elif options.full:
        options.warn(
            "no label column that captions decide: no prompt accuracy, KL or inception score"
        )
    if options.full:
        _memorise(scores, heard, train, files, listener)
    if options.clap:
        _clap(
            scores,
            systems,
            sets,
            clips,
            options.clap,
            pipeline.sample_rate,
            cache_dir,
            seed,
            progress,
        )
    return scores


def _row(system: str, kind: str, metrics: JsonRow, n: int) -> JsonRow:
    return {"system": system, "kind": kind, "n": n, "metrics": metrics}


def real_clips(source: Source, clips: Sequence[Clip], name: str, samples: int, seed: int) -> Clips:
    """Crops of `samples` samples, the same ones for the same seed."""

    def key(i: int, clip: Clip) -> str:
        # A clip that is shorter than the crop, by more than rounding, is taken whole whatever the seed.
        whole = 0 < clip.seconds * source.sample_rate < samples - 2
        return f"{source.content_hash(clip)} {samples}" + ("" if whole else f" {seed} {i}")

    return Clips(
        name,
        lambda i: crop(source.read(clips[i]), samples, stream(seed, 0, i))[0],
        len(clips),
        [key(i, clip) for i, clip in enumerate(clips)],
        [clip.key for clip in clips],
    )


def _round_trip(pipeline: Pipeline, clips: Clips) -> Clips:
    """The clips through the codec and back, a batch at a time."""
    held: dict[int, np.ndarray] = {}

    @torch.no_grad()
    def read(i: int) -> np.ndarray:
        if i not in held:
            held.clear()
            start = i - i % AT_ONCE  # the same batches, whatever the cache has
            places = range(start, min(start + AT_ONCE, clips.count))
            audio = torch.from_numpy(np.stack([clips.read(k) for k in places])).to(pipeline.device)
            decoded = (
                pipeline.codec.decode(pipeline.codec.encode(audio), audio.shape[1])
                .float()
                .cpu()
                .numpy()
            )
            held.update(zip(places, decoded, strict=True))
        return held[i]

    codec = canonical(
        {**pipeline.recipe.codec.model_dump(mode="json"), "weights": weights_hash(pipeline.codec)}
    )
    keys = [f"{codec} {key}" for key in clips.keys or ()]
    return Clips("codec round trip", read, clips.count, keys, clips.names)


def _generate(
    pipeline: Pipeline,
    clips: Sequence[Clip],
    seed: int,
    settings: SamplerSettings,
    folder: Path,
    progress: Progress,
    identity: Mapping[str, Any] | None,
) -> list[Path]:
    """A WAV per clip, from its caption, and samples.jsonl beside them; batch by batch: a killed one continues."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "seed": seed,
        **{k: v for k, v in asdict(settings).items() if k != "batch_size"},
        **(identity or {}),
    }
    facts = json.loads(json.dumps(facts))
    wanted = [
        {"path": f"{i:04d}.wav", "prompt": clip.caption, "labels": dict(clip.labels), **facts}
        for i, clip in enumerate(clips)
    ]
    listed = folder / "samples.jsonl"
    done = 0
    if identity is not None and listed.exists():
        for want, line in zip(
            wanted, listed.read_text(encoding="utf-8").splitlines(), strict=False
        ):
            if line != json.dumps(want) or not (folder / str(want["path"])).exists():
                break
            done += 1
    if done < len(wanted):
        done -= (
            done % settings.batch_size
        )  # whole batches: a sample's last bit may depend on its neighbours
        listed.write_text(
            "".join(json.dumps(row) + "\n" for row in wanted[:done]), encoding="utf-8"
        )
    while done < len(wanted):
        progress("generating", done, len(wanted))
        batch = wanted[done : done + settings.batch_size]
        prompts = [str(row["prompt"]) for row in batch]
        indices = range(done, done + len(batch))
        made = pipeline.generate(prompts, seed=seed, settings=settings, indices=indices)
        for row, audio in zip(batch, made, strict=True):
            write_wav(folder / str(row["path"]), audio, pipeline.sample_rate)
        with listed.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in batch))
        done += len(batch)
    progress("generating", done, len(wanted))
    return [folder / str(row["path"]) for row in wanted]


def _classify(
    scores: T2AScores,
    systems: Mapping[str, JsonRow],
    heard: Mapping[str, Heard],
    columns: Sequence[str],
    source: Source,
    clips: Sequence[Clip],
    listener: Listener,
    samples: int,
    seed: int,
    progress: Progress,
) -> None:
    """Prompt accuracy by every label column; KL and inception score by the first."""
    train = source.clips("train")
    valid = source.clips("valid")
    valid_heard = listener(real_clips(source, valid, "validation clips", samples, seed), progress)
    for place, column in enumerate(columns):
        found = fit(
            heard["training"].both(),
            [text_of(clip, column) for clip in train],
            valid_heard.both(),
            [text_of(clip, column) for clip in valid],
        )
        asked = [text_of(clip, column) for clip in clips]
        kept = [i for i, label in enumerate(asked) if label]
        name = f"prompt_accuracy:{column}"
        for system, row in systems.items():
            guesses = found.heard(heard[system].both())
            share = prompt_accuracy([guesses[i] for i in kept], [asked[i] for i in kept])
            row["metrics"][name] = asdict(share)
            if system == "samples":
                for i in kept:
                    list(scores.per_clip.values())[i][name] = float(guesses[i] == asked[i])
        text = (
            f"logistic regression of {column!r} ({len(found.classes)} classes) on mean and deviation over frames of "
            f"the features of the {listener.convention}, trained on {len(train)} clips of the train split, L2 "
            f"{found.penalty:g} chosen on the valid split (accuracy there {found.accuracy:.3f})"
        )
        scores.conventions[name] = f"{METRICS['prompt_accuracy'].convention}; {text}"
        if place == 0:
            _by_posteriors(scores, systems, heard, found, seed)
            for name in ("kl", "inception_score"):
                scores.conventions[name] = (
                    f"{METRICS[name].convention}; classifier of prompt_accuracy:{column}"
                )


def _by_posteriors(
    scores: T2AScores,
    systems: Mapping[str, JsonRow],
    heard: Mapping[str, Heard],
    found: Classifier,
    seed: int,
) -> None:
    real = posteriors(found.logits(heard["reference"].both()))
    for system, row in systems.items():
        made = posteriors(found.logits(heard[system].both()))

        def inception(made: torch.Tensor = made) -> list[JsonRow]:
            score = inception_score(made, seed)
            return [{"value": score.value, "std": score.std}]

        if system != "reference":
            per_pair = class_kl(real, made).per_pair.tolist()
            row["metrics"]["kl"] = summarise([{"kl": value} for value in per_pair], seed)[
                "metrics"
            ]["kl"]
            if system == "samples":
                for of, value in zip(scores.per_clip.values(), per_pair, strict=True):
                    of["kl"] = value
        attempt(row["metrics"], ["inception_score"], inception)


def _memorise(
    scores: T2AScores,
    heard: Mapping[str, Heard],
    train: Sequence[Clip],
    files: Sequence[Path],
    listener: Listener,
) -> None:
    share, details = memorised(
        heard["samples"],
        heard["training"],
        heard["round trip"],
        [str(file) for file in files],
        [c.key for c in train],
    )
    scores.rows[0]["metrics"]["memorised_share"] = share
    scores.memorisation = details
    scores.conventions["memorised_share"] = (
        f"{METRICS['memorised_share'].convention}; {len(train)} training clips, test clips through the codec first; "
        f"{listener.convention}, mean over frames"
    )


def _clap(
    scores: T2AScores,
    systems: Mapping[str, JsonRow],
    sets: Mapping[str, Clips],
    clips: Sequence[Clip],
    clap: Clap,
    rate: int,
    cache_dir: Path,
    seed: int,
    progress: Progress,
) -> None:
    for system in ("samples", "reference"):
        cosines = clap.scores(
            sets[system], [clip.caption for clip in clips], rate, cache_dir, progress
        )
        found = summarise([{"clap_score": value} for value in cosines], seed)
        systems[system]["metrics"]["clap_score"] = found["metrics"]["clap_score"]
        if system == "samples":
            for of, value in zip(scores.per_clip.values(), cosines, strict=True):
                of["clap_score"] = value
    scores.conventions["clap_score"] = f"{METRICS['clap_score'].convention}; {clap.convention}"


def sampling_identity(run_id: str, weights: Path) -> dict[str, Any]:
    """What tells the weights of one checkpoint from all others: the run, and the file as it stands."""
    status = weights.stat()
    return {
        "run_id": run_id,
        "checkpoint": weights.parent.name,
        "weights": fingerprint({"size": status.st_size, "mtime": status.st_mtime_ns}),
    }
