"""The sets of clips of a t2a evaluation: samples of the model, real clips, codec round trips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from stagecli.data.audio import read_mono
from stagecli.data.cache import canonical
from stagecli.data.examples import crop, stream
from stagecli.data.rows import Clip
from stagecli.data.source import Source
from stagecli.evaluate.embed import ClipSet
from stagecli.evaluate.job import Job
from stagecli.evaluate.ledger import fingerprint
from stagecli.files import (
    JsonRow,
    append_json_lines,
    finite,
    json_line,
    read_json_lines,
    write_atomic,
)
from stagecli.generate.listening import (
    LEVELS,
    LISTING,
    loudness_note,
    recorded_gains,
    write_listening,
)
from stagecli.generate.pipeline import Pipeline
from stagecli.hub import weights_hash

CODEC_BATCH = 16  # clips that go through the codec together


def sampling_identity(run_id: str, weights: Path) -> JsonRow:
    """Distinguishes the weights of a checkpoint from all others: the run, and the file's state."""
    status = weights.stat()
    return {
        "run_id": run_id,
        "checkpoint": weights.parent.name,
        "weights": fingerprint({"size": status.st_size, "mtime": status.st_mtime_ns}),
    }


@dataclass(frozen=True)
class SampleFile:
    """A generated clip, in a file that is for listening, too."""

    path: Path
    gain: float
    """By which it was turned down in the file; scores are of the audio before that."""

    def read(self, sample_rate: int) -> np.ndarray:
        """The audio [N] as generated. Raises StageError."""
        audio = read_mono(self.path, sample_rate)
        return audio if self.gain == 1 else audio / np.float32(self.gain)


def generate_samples(job: Job, folder: Path) -> list[SampleFile]:
    """One WAV per clip, from its caption, and samples.jsonl beside them.

    Samples that an earlier call left in the folder with the same settings are reused.
    """
    # What samples.jsonl will hold, as it reads after a round trip through JSON.
    settings = {key: value for key, value in asdict(job.sampling).items() if key != "batch_size"}
    shared = {"seed": job.seed, **settings, **job.identity}
    rows: list[JsonRow] = [
        finite(
            {"path": f"{i:04d}.wav", "prompt": clip.caption, "labels": dict(clip.labels), **shared}
        )
        for i, clip in enumerate(job.clips)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / LISTING

    # Keep whole batches only: the last bit of a sample may depend on its neighbours in the batch.
    listed = _reusable(rows, listing)
    done = len(listed)
    if done < len(rows):
        done -= done % job.sampling.batch_size
        write_atomic(listing, "".join(json_line(row) for row in listed[:done]))

    # Generate the rest; a batch is listed after all of its files are written.
    while done < len(rows):
        job.progress("generating", done, len(rows))
        batch = rows[done : done + job.sampling.batch_size]
        generated = job.pipeline.generate(
            [row["prompt"] for row in batch],
            seed=job.seed,
            settings=job.sampling,
            indices=range(done, done + len(batch)),
        )
        levels = [
            write_listening(folder / row["path"], audio, job.pipeline.sample_rate)
            for row, audio in zip(batch, generated, strict=True)
        ]
        append_json_lines(
            listing, [{**row, **level} for row, level in zip(batch, levels, strict=True)]
        )
        done += len(batch)
    job.progress("generating", done, len(rows))
    line = loudness_note([row for _, row in read_json_lines(listing) if "gain_db" in row])
    if line:
        job.note(f"{folder}: {line}; scores are of the audio before that")
    gains = recorded_gains(folder)
    return [SampleFile(folder / row["path"], gains.get(row["path"], 1.0)) for row in rows]


def _reusable(rows: Sequence[JsonRow], listing: Path) -> list[JsonRow]:
    """The listed rows, from the first on, that are as wanted and have their file."""
    if not listing.exists():
        return []
    reusable: list[JsonRow] = []
    for row, (_, listed) in zip(rows, read_json_lines(listing), strict=False):
        if not isinstance(listed, dict) or not (listing.parent / row["path"]).exists():
            break
        if {key: value for key, value in listed.items() if key not in LEVELS} != row:
            break
        reusable.append(listed)
    return reusable


def real_clips(
    source: Source, clips: Sequence[Clip], title: str, *, num_samples: int, seed: int
) -> ClipSet:
    """Crops of `num_samples` samples; the same seed gives the same crops."""

    def key(i: int, clip: Clip) -> str:
        # A clip shorter than the crop, by more than rounding, is taken whole whatever the seed.
        whole = 0 < clip.seconds * source.sample_rate < num_samples - 2
        position = "" if whole else f" {seed} {i}"
        return f"{source.content_hash(clip)} {num_samples}{position}"

    return ClipSet(
        title=title,
        read=lambda i: crop(source.read(clips[i]), num_samples, stream(seed, 0, i))[0],
        count=len(clips),
        keys=[key(i, clip) for i, clip in enumerate(clips)],
        names=[clip.key for clip in clips],
    )


def codec_round_trip(pipeline: Pipeline, clips: ClipSet) -> ClipSet:
    """The clips through the codec and back; `clips` needs keys."""
    decoded: dict[int, np.ndarray] = {}  # of one batch

    @torch.no_grad()
    def read(i: int) -> np.ndarray:
        if i not in decoded:
            decoded.clear()
            start = i - i % CODEC_BATCH  # the same batches, whatever is cached
            batch = range(start, min(start + CODEC_BATCH, clips.count))
            audio_BN = torch.from_numpy(np.stack([clips.read(k) for k in batch]))
            audio_BN = audio_BN.to(pipeline.device)
            frames_BTC = pipeline.codec.encode(audio_BN)
            decoded_BN = pipeline.codec.decode(frames_BTC, audio_BN.shape[1])
            decoded.update(zip(batch, decoded_BN.float().cpu().numpy(), strict=True))
        return decoded[i]

    codec = canonical(
        {**pipeline.recipe.codec.model_dump(mode="json"), "weights": weights_hash(pipeline.codec)}
    )
    return ClipSet(
        title="codec round trip",
        read=read,
        count=clips.count,
        keys=[f"{codec} {key}" for key in clips.keys or ()],
        names=clips.names,
    )
