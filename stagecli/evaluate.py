"""`stagecli evaluate`: a run on real clips, or two folders -> a table whose every number has its convention."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagecli.data import degrade as low_pass_filters
from stagecli.data.audio import read_mono, write_wav
from stagecli.data.examples import crop, stream
from stagecli.data.source import Clip, Source, Split, open_source
from stagecli.errors import Problem, StageError
from stagecli.metrics import METRICS
from stagecli.metrics.baselines import copy_up
from stagecli.metrics.bootstrap import bootstrap_interval
from stagecli.metrics.distance import frechet_distance, log_mel_statistics
from stagecli.metrics.kernel import kernel_audio_distance
from stagecli.metrics.spectral import lsd_bands, si_sdr
from stagecli.pipeline import Pipeline, Settings, load_pipeline
from stagecli.prepare import evenly
from stagecli.run import finite, write_atomic
from stagecli.sample import find_audio
from stagecli.schema import Evaluate
from stagecli.ssl import open_encoder
from stagecli.ssl.base import Encoder

SR_METRICS = ("lsd", "lsd_hf", "lsd_lf", "si_sdr")
AT_ONCE = 64  # clips that go through the codec together
Progress = Callable[[str, int, int], None]


def evaluate_run(
    run_dir: Path,
    *,
    task: str | None = None,
    split: Split = "test",
    checkpoint: str = "latest",
    seed: int | None = None,
    samples: int | None = None,
    cutoffs: Sequence[float] = (),
    judge: str | None = None,
    progress: Progress = lambda what, done, total: None,
    **changes: Any,
) -> dict[str, Any]:
    """Score a run on clips of one split; the document is also written to the run's evals/.

    changes: sampler settings that override the recipe (steps, guidance, sampler). Raises StageError.
    """
    pipeline, path = load_pipeline(run_dir, checkpoint)
    recipe = pipeline.recipe
    if task and task != recipe.task.kind:
        raise StageError(f"{run_dir} is a {recipe.task.kind} run, not {task}")
    table = recipe.evaluate
    settings = Settings.of(table, **changes)
    referee = open_encoder(judge or table.judge) if recipe.task.kind == "t2a" else None
    seed = table.seed if seed is None else seed
    source = open_source(
        recipe.data,
        need_captions=recipe.condition.text != "none",
        base=Path.cwd(),
        splits=("train", split) if recipe.task.kind == "t2a" else (split,),
        seed=recipe.train.seed,
    )
    clips = evenly(source.clips(split), samples or table.samples)
    facts = {
        "task": recipe.task.kind,
        "run": str(run_dir),
        "checkpoint": path.name,
        "split": split,
        "clips": len(clips),
        "seed": seed,
        "sampler": settings.sampler,
        "steps": settings.steps,
        "guidance": settings.guidance,
    }
    if referee is None:
        rows, conventions = score_sr(pipeline, source, clips, cutoffs or table.cutoffs, seed, settings, progress)
    else:
        folder = run_dir / "evals" / f"{path.name}_{split}_samples"
        rows, conventions = score_t2a(pipeline, source, clips, seed, settings, folder, referee, progress)
    document = finite({**facts, "conventions": conventions, "rows": rows})
    name = f"{path.name}_{split}.json"
    (run_dir / "evals").mkdir(exist_ok=True)
    write_atomic(run_dir / "evals" / name, json.dumps(document, indent=1))
    return {**document, "file": str(run_dir / "evals" / name)}


def score_sr(
    pipeline: Pipeline,
    source: Source,
    clips: Sequence[Clip],
    cutoffs: Sequence[float],
    seed: int,
    settings: Settings,
    progress: Progress,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows for the unprocessed input, naive copy-up and the model, per cutoff; whole clips."""
    rate, table = pipeline.sample_rate, pipeline.recipe.evaluate
    rows = []
    for cutoff in cutoffs:
        low_pass = low_pass_filters.test_low_pass(table, cutoff)
        values: dict[str, list[dict[str, float]]] = {"unprocessed": [], "copy-up": [], "model": []}
        for i, clip in enumerate(clips):
            target = source.read(clip)
            low = low_pass_filters.degrade(target, rate, low_pass)
            made = {
                "unprocessed": low,
                "copy-up": copy_up(torch.from_numpy(low), rate, cutoff).numpy(),
                "model": pipeline.restore(low, cutoff, seed=seed, settings=settings, index=i, prompt=clip.caption),
            }
            for system, audio in made.items():
                values[system].append(score_pair(target, audio, rate, cutoff, table.preset))
            progress(f"cutoff {cutoff:g} Hz", i + 1, len(clips))
        for system, scores in values.items():
            rows.append({"system": system, "cutoff": cutoff, **summarise(scores, seed)})
    conventions = {name: METRICS[_registered(name, table.preset)].convention for name in SR_METRICS}
    filter_text = f"{table.filter} order {table.order}, zero phase, then sinc resampling to 2 x cutoff and back"
    return rows, {**conventions, "input": filter_text}


def _registered(name: str, preset: str) -> str:
    """Name in the registry: presets other than the default have their own entries."""
    return name.replace("lsd", f"lsd_{preset}", 1) if name.startswith("lsd") and preset != "nuwave" else name


def score_pair(target: np.ndarray, audio: np.ndarray, rate: int, cutoff: float, preset: str) -> dict[str, float]:
    """Every SR metric of one clip; both [N] at `rate`."""
    pair = (torch.from_numpy(np.asarray(target)), torch.from_numpy(np.asarray(audio, dtype=np.float32)))
    scores = {name: float(value) for name, value in lsd_bands(*pair, rate, cutoff, preset).items()}
    return {**scores, "si_sdr": float(si_sdr(*pair))}


def summarise(scores: Sequence[Mapping[str, float]], seed: int) -> dict[str, Any]:
    """Mean and bootstrap 95 % interval over clips per metric; what is not finite is left out and counted."""
    result: dict[str, Any] = {"n": len(scores), "metrics": {}}
    for name in scores[0]:
        values = [s[name] for s in scores if np.isfinite(s[name])]
        low, high = bootstrap_interval(values, seed) if len(values) > 1 else (None, None)
        mean = float(np.mean(values)) if values else None
        result["metrics"][name] = {"value": mean, "low": low, "high": high, "left_out": len(scores) - len(values)}
    return result


def score_t2a(
    pipeline: Pipeline,
    source: Source,
    clips: Sequence[Clip],
    seed: int,
    settings: Settings,
    folder: Path,
    judge: Encoder,
    progress: Progress,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Fréchet distance to the real clips of the samples, of real training clips, and of codec round trips.

    The samples (one per clip, from its caption) are kept in `folder`.
    """
    rate = pipeline.sample_rate

    def real(chosen: Sequence[Clip]) -> list[np.ndarray]:
        return [crop(source.read(clip), pipeline.samples, stream(seed, 0, i))[0] for i, clip in enumerate(chosen)]

    reference = real(clips)
    prompts = [clip.caption for clip in clips]
    made = pipeline.generate(
        prompts, seed=seed, settings=settings, progress=lambda done, total: progress("generating", done, total)
    )
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"seed": seed, "steps": settings.steps, "guidance": settings.guidance}
    lines = []
    for i, (clip, audio) in enumerate(zip(clips, made, strict=True)):
        write_wav(folder / f"{i:04d}.wav", audio, rate)
        lines.append({"path": f"{i:04d}.wav", "prompt": clip.caption, "labels": dict(clip.labels), **facts})
    write_atomic(folder / "samples.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    systems = {
        "samples": made,
        "real clips of the train split": real(evenly(source.clips("train"), len(clips))),
        "codec round trip of the reference": _round_trip(pipeline, reference, progress),
    }
    return score_sets(reference, systems, rate, judge, progress)


@torch.no_grad()
def _round_trip(pipeline: Pipeline, clips: Sequence[np.ndarray], progress: Progress) -> list[np.ndarray]:
    done: list[np.ndarray] = []
    for first in range(0, len(clips), AT_ONCE):
        audio = torch.from_numpy(np.stack(clips[first : first + AT_ONCE])).to(pipeline.device)
        decoded = pipeline.codec.decode(pipeline.codec.encode(audio), audio.shape[1])
        done += list(decoded.float().cpu().numpy())
        progress("codec round trip", len(done), len(clips))
    return done


def score_sets(
    reference: Sequence[np.ndarray],
    systems: Mapping[str, Sequence[np.ndarray]],
    rate: int,
    judge: Encoder,
    progress: Progress,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Distances of sets of clips [N] to the reference, by the judge's embeddings and by log-mel statistics."""

    @torch.no_grad()
    def by_judge(clip: np.ndarray) -> torch.Tensor:
        return judge(torch.from_numpy(clip)[None], rate).mean(1)

    def by_log_mel(clip: np.ndarray) -> torch.Tensor:
        return log_mel_statistics(torch.from_numpy(clip)[None], rate)

    embeddings = {"fd_judge": by_judge, "fd_log_mel": by_log_mel}

    def embed(name: str, clips: Sequence[np.ndarray], what: str) -> torch.Tensor:
        done = []
        for i, clip in enumerate(clips):
            done.append(embeddings[name](clip))
            progress(f"{what}: {name}", i + 1, len(clips))
        return torch.cat(done)

    known = {name: embed(name, reference, "reference") for name in embeddings}
    rows = []
    for system, clips in systems.items():
        metrics: dict[str, dict[str, Any]] = {}
        for name in embeddings:
            embedded = embed(name, clips, system)
            if name == "fd_judge":
                metrics["kad"] = {"value": kernel_audio_distance(known[name], embedded).value}
            result = frechet_distance(known[name], embedded)
            metrics[name] = {"value": result.value, "biased": result.biased, "dimensions": result.dim}
        rows.append({"system": system, "n": len(clips), "metrics": metrics})
    conventions = {name: METRICS[name].convention for name in ("kad", *embeddings)}
    for name in ("kad", "fd_judge"):
        conventions[name] += f"; judge: {judge.label} (weights {judge.fingerprint()[:12]}), mean over frames"
    return rows, conventions


def evaluate_folders(
    reference: Path, generated: Path, task: str, *, cutoff: float | None = None, judge: str | None = None
) -> dict[str, Any]:
    """Score two folders: file by file of the same name for sr, as two sets for t2a. Raises StageError."""
    if task == "t2a":
        sides = {"reference": find_audio(reference), "generated": find_audio(generated)}
        rate = _one_rate([*sides["reference"], *sides["generated"]])
        sets = {name: [read_mono(p, rate) for p in files] for name, files in sides.items()}
        systems = {generated.name: sets["generated"]}
        rows, conventions = score_sets(
            sets["reference"], systems, rate, open_encoder(judge or Evaluate().judge), lambda *_: None
        )
        facts = {"task": task, "reference": str(reference), "generated": str(generated), "sample_rate": rate}
        return finite({**facts, "conventions": conventions, "rows": rows})
    if cutoff is None:
        raise StageError("--cutoff HZ is needed to score sr folders", hint="it is where LSD-LF ends and LSD-HF begins")
    pairs = _paired(reference, generated)
    rate = _one_rate([p for pair in pairs for p in pair])
    scores, problems = [], []
    for original, made in pairs:
        target, audio = read_mono(original, rate), read_mono(made, rate)
        if len(target) != len(audio):
            problems.append(Problem(str(made), f"{len(audio)} samples, its reference has {len(target)}"))
            continue
        scores.append(score_pair(target, audio, rate, cutoff, "nuwave"))
    if problems:
        raise StageError(
            "lengths differ", problems=problems, hint="trim both to the same length; nothing is cut silently"
        )
    facts = {"task": task, "reference": str(reference), "generated": str(generated), "sample_rate": rate}
    conventions = {name: METRICS[name].convention for name in SR_METRICS}
    row = {"system": generated.name, "cutoff": cutoff, **summarise(scores, 0)}
    return finite({**facts, "conventions": conventions, "rows": [row]})


def _paired(reference: Path, generated: Path) -> list[tuple[Path, Path]]:
    """Files of the same name (without suffix) on both sides. Raises StageError naming those without a partner."""
    left = {p.relative_to(reference).with_suffix(""): p for p in find_audio(reference)}
    right = {p.relative_to(generated).with_suffix(""): p for p in find_audio(generated)}
    alone = [
        Problem(str((left | right)[k]), "has no partner in the other folder")
        for k in sorted(left.keys() ^ right.keys())
    ]
    if alone:
        raise StageError("the folders do not hold the same files", problems=alone)
    return [(left[k], right[k]) for k in sorted(left)]


def _one_rate(files: Sequence[Path]) -> int:
    from stagecli.data.audio import probe

    rates = {path: probe(path).sample_rate for path in files}
    if len(set(rates.values())) > 1:
        shown = [Problem(str(path), f"{rate} Hz") for path, rate in list(rates.items())[:20]]
        raise StageError("sample rates differ", problems=shown, hint="bring all files to one rate first")
    return next(iter(rates.values()))
