"""Two folders of anyone's audio -> a document of scores; one clip, or one pair, is held at a time."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagecli import __version__
from stagecli.data.audio import find_audio, read_header, read_mono
from stagecli.data.audio_checks import AudioInfo
from stagecli.data.cache import Progress, stamp_of
from stagecli.errors import Problem, StageError
from stagecli.evaluate.clap import Clap
from stagecli.evaluate.hear import Clips, Listener
from stagecli.evaluate.ledger import Ledger, fingerprint
from stagecli.evaluate.pairs import SR_METRICS, audible, conventions, score_pair
from stagecli.evaluate.sets import memorised, set_metrics
from stagecli.evaluate.summary import JsonRow, summarise
from stagecli.files import finite
from stagecli.metrics import METRICS
from stagecli.metrics.checks import audio_facts, check_pair, pair_doubts, shared_peak
from stagecli.metrics.gain import match_gain
from stagecli.runs.directory import command_line, environment
from stagecli.schema import Evaluate
from stagecli.ssl import open_encoder

Warn = Callable[[str], None]
LISTED = 20  # problems of one kind that are named


@dataclass(frozen=True)
class FolderOptions:
    """cutoff: Hz (sr, needed); preset: of LSD; perceptual: PESQ, STOI, ViSQOL too; gain_matched: scale each estimate
    onto its reference first; judge: encoder of t2a; training: folder of the training clips (t2a), for memorisation;
    clap: CLAP checkpoint, prompts from the samples.jsonl beside the generated clips; cache_dir: what was computed."""

    cutoff: float | None = None
    preset: str | None = None
    perceptual: bool = False
    gain_matched: bool = False
    judge: str | None = None
    training: Path | None = None
    clap: str | None = None
    cache_dir: Path = Path("runs/.cache")


def evaluate_folders(
    reference: Path,
    generated: Path,
    task: str,
    options: FolderOptions | None = None,
    *,
    progress: Progress = lambda what, done, total: None,
    warn: Warn = lambda line: None,
) -> JsonRow:
    """Score two folders: file by file of the same name for sr, as two sets for t2a. Raises StageError.

    sr: names, lengths, rates and numbers of channels must agree; all that do not are listed. t2a: rates must agree,
    other lengths are said. What makes a number doubtful (silence, clipping, peaks, level) is said by `warn`.
    """
    options = options or FolderOptions()
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        warn(line)

    _suits(task, options)
    score = _score_pairs if task == "sr" else _score_sets
    facts, conventions_of, row = score(reference, generated, options, progress, note)
    head = {
        "task": task,
        "reference": str(reference),
        "generated": str(generated),
        "clips": row["n"],
        **facts,
    }
    row = {"system": generated.name or str(generated), "kind": "generated", **row}
    tail = {"settings": {**facts, "version": __version__}, "command": " ".join(command_line())}
    return finite(
        {
            **head,
            "conventions": conventions_of,
            "rows": [row],
            "notes": notes,
            **tail,
            "environment": environment(),
        }
    )


def _suits(task: str, options: FolderOptions) -> None:
    if task == "sr" and options.cutoff is None:
        raise StageError(
            "--cutoff HZ is needed to score sr folders",
            hint="it is where LSD-LF ends and LSD-HF begins",
        )
    options_of: dict[str, dict[str, Any]] = {
        "sr": {"--judge": options.judge, "--training": options.training, "--clap": options.clap},
        "t2a": {
            "--match-gain": options.gain_matched,
            "--cutoff": options.cutoff,
            "--preset": options.preset,
            "--perceptual": options.perceptual,
        },
    }
    wrong = [flag for flag, value in options_of[task].items() if value]
    if wrong:
        raise StageError(f"{', '.join(wrong)}: not for {task} folders")


def _audio(folder: Path, progress: Progress) -> dict[Path, AudioInfo]:
    """Every audio file of a folder with what its header says; StageError naming what cannot be used."""
    files = find_audio(folder, lambda done, total: progress(f"checking {folder.name}", done, total))
    return {file: read_header(file) for file in files}


def _one_rate(infos: dict[Path, AudioInfo]) -> int:
    rates = Counter(info.sample_rate for info in infos.values())
    if len(rates) > 1:
        usual = rates.most_common(1)[0][0]
        odd = [
            Problem(str(p), f"{i.sample_rate} Hz")
            for p, i in infos.items()
            if i.sample_rate != usual
        ]
        raise StageError(
            f"sample rates differ: most files have {usual} Hz",
            problems=odd[:LISTED],
            hint="bring all to one rate first",
        )
    return next(iter(rates))


# -- sr: pairs ---------------------------------------------------------------------------------------


def _pairs(
    reference: Path, generated: Path, progress: Progress
) -> tuple[list[tuple[Path, Path]], int, int]:
    """(pairs of files of one name, sample rate, most channels). Raises StageError listing what does not fit."""
    sides = [(folder, _audio(folder, progress)) for folder in (reference, generated)]
    left, right = ({_name(file, folder): file for file in infos} for folder, infos in sides)
    infos = {**sides[0][1], **sides[1][1]}
    if len(left) < len(sides[0][1]) or len(right) < len(sides[1][1]):
        raise StageError(
            "a folder holds two files of one name", hint="formats of one clip are not told apart"
        )
    alone = [
        Problem(str((left | right)[key]), "has no partner in the other folder")
        for key in sorted(left.keys() ^ right.keys())
    ]
    if alone:
        counts = f"{len(left)} and {len(right)} files"
        raise StageError(
            f"the folders do not hold the same files ({counts})",
            problems=alone[:LISTED],
            hint="clips are paired by name, without the ending",
        )
    rate = _one_rate(infos)
    pairs = [(left[key], right[key]) for key in sorted(left)]
    problems = []
    for original, made in pairs:
        of = infos[original]
        to = infos[made]
        if of.frames != to.frames:
            problems.append(
                Problem(str(made), f"{to.frames} samples, its reference has {of.frames}")
            )
        elif of.channels != to.channels:
            problems.append(
                Problem(str(made), f"{to.channels} channels, its reference has {of.channels}")
            )
    if problems:
        raise StageError(
            f"{len(problems)} of {len(pairs)} pairs differ in length or channels",
            problems=problems[:LISTED],
            hint="trim and mix both sides alike; nothing is cut silently",
        )
    return pairs, rate, max(info.channels for info in infos.values())


def _name(file: Path, folder: Path) -> Path:
    return file.relative_to(folder).with_suffix("") if folder.is_dir() else Path(file.stem)


def _score_pairs(
    reference: Path, generated: Path, options: FolderOptions, progress: Progress, note: Warn
) -> tuple[JsonRow, dict[str, str], JsonRow]:
    pairs, rate, channels = _pairs(reference, generated, progress)
    assert options.cutoff is not None
    cutoff = options.cutoff
    preset = options.preset or Evaluate().preset
    if cutoff >= rate / 2:
        raise StageError(
            f"--cutoff {cutoff:g} Hz is not below half the sample rate, {rate / 2:g} Hz"
        )
    perceptual: list[str] = []
    if options.perceptual:
        heard, lines = audible([cutoff], rate)
        perceptual = heard[cutoff]
        for line in lines:
            note(line)
    facts: JsonRow = {
        "sample_rate": rate,
        "cutoff": cutoff,
        "preset": preset,
        "perceptual": perceptual,
        "gain_matched": options.gain_matched,
    }
    settings = fingerprint({**facts, "version": __version__})
    ledger = Ledger(options.cache_dir / "pairs" / f"{settings}.clips.jsonl")
    doubts = Doubts(str(generated), len(pairs))
    problems = []
    scores = []
    gains = []
    for done, (original, made) in enumerate(pairs, 1):
        key = json.dumps([[str(path.resolve()), *stamp_of(path)] for path in (original, made)])
        found = ledger.get("pair", key)
        if found is None:
            try:
                found = _score_files(
                    original, made, rate, cutoff, preset, perceptual, options.gain_matched
                )
                ledger.put("pair", key, found)
            except ValueError as error:
                problems.append(Problem(str(made), str(error)))
        if found is not None:
            scores.append(found["scores"])
            gains.append(found["facts"]["gain"])
            doubts.add(
                made, found["doubts"], found["facts"]["peak"], found["facts"]["reference_peak"]
            )
        progress("scoring pairs", done, len(pairs))
    if problems:
        raise StageError(
            f"{len(problems)} of {len(pairs)} pairs cannot be scored", problems=problems[:LISTED]
        )
    if channels > 1:
        note(f"{channels} channels: both sides are scored as the mean of their channels")
    for line in doubts.lines():
        note(line)
    if any("level:" in kind for kind in doubts.kinds):
        note("levels are off: --match-gain scales each clip onto its reference first")
    said = conventions(preset, [*SR_METRICS, *perceptual])
    if options.gain_matched:
        decibel = 20 * np.log10(gains)
        spread = (
            f"median {np.median(decibel):+.2f} dB, {decibel.min():+.2f} to {decibel.max():+.2f} dB"
        )
        note(
            f"gain matched: each estimate was scaled onto its reference by least squares ({spread})"
        )
        said = {
            name: text.replace("gain not matched", "gain matched") for name, text in said.items()
        }
    return facts, said, {"cutoff": cutoff, **summarise(scores, 0)}


def _score_files(
    original: Path,
    made: Path,
    rate: int,
    cutoff: float,
    preset: str,
    perceptual: Sequence[str],
    matched: bool,
) -> dict[str, dict[str, float]]:
    """{"scores", "doubts", "facts"} of one pair of files; ValueError where it cannot be scored."""
    target, audio = (torch.from_numpy(read_mono(path, rate)) for path in (original, made))
    check_pair(target, audio, rate)
    doubts = pair_doubts(target, audio)
    peaks = {"peak": float(audio.abs().max()), "reference_peak": float(target.abs().max())}
    gain = 1.0
    if matched:
        audio, factor = match_gain(target, audio)
        gain = float(factor)
        doubts = tuple(doubt for doubt in doubts if not doubt.startswith("level:"))
    scores = score_pair(
        target.numpy(), audio.numpy(), rate, cutoff, preset, [*SR_METRICS, *perceptual]
    )
    return {
        "scores": scores,
        "doubts": dict.fromkeys(doubts, 1.0),
        "facts": {"gain": gain, **peaks},
    }


class Doubts:
    """What is odd about clips, counted by kind, so that a thousand clipped files are one line."""

    def __init__(self, name: str, total: int) -> None:
        self.name = name
        self.total = total
        self.kinds: dict[str, list[str]] = {}
        self.peaks: list[list[float]] = [[], []]

    def add(
        self, file: Path, doubts: Any, peak: float, reference_peak: float | None = None
    ) -> None:
        for doubt in doubts:
            kind = re.sub(r"[-+]?\d[\d.]*(e[-+]\d+)?", "#", doubt)
            self.kinds.setdefault(kind, []).append(f"{file}: {doubt}")
        self.peaks[0].append(peak)
        if reference_peak is not None:
            self.peaks[1].append(reference_peak)

    def lines(self) -> list[str]:
        """One line a kind, the most frequent first."""
        lines = []
        for found in sorted(self.kinds.values(), key=len, reverse=True):
            more = "" if len(found) == 1 else f" (and {len(found) - 1} more of {self.total} clips)"
            lines.append(f"{found[0]}{more}")
        shared = shared_peak(self.peaks[0])
        if shared is not None and shared_peak(self.peaks[1]) is None:
            where = f"all {self.total} clips of {self.name} peak at {shared:.3g}"
            lines.append(f"{where}: peak-normalised, so their levels mean nothing")
        return lines


# -- t2a: sets ---------------------------------------------------------------------------------------


def _score_sets(
    reference: Path, generated: Path, options: FolderOptions, progress: Progress, note: Warn
) -> tuple[JsonRow, dict[str, str], JsonRow]:
    folders = {"reference": reference, "generated": generated}
    if options.training:
        folders["training"] = options.training
    infos = {name: _audio(folder, progress) for name, folder in folders.items()}
    rate = _one_rate({file: info for of in infos.values() for file, info in of.items()})
    clap = Clap(options.clap) if options.clap else None
    prompts = _prompts(generated, list(infos["generated"])) if clap else []
    listener = Listener(open_encoder(options.judge or Evaluate().judge), rate, options.cache_dir)
    _say_shapes(infos, note)
    sets = {}
    doubts = {}
    for name, of in infos.items():
        files = list(of)
        doubts[name] = Doubts(str(folders[name]), len(of))
        sets[name] = Clips(
            name,
            _reader(files, rate, doubts[name]),
            len(files),
            names=[str(file) for file in files],
        )
    heard = {name: listener(clips, progress) for name, clips in sets.items()}
    for name in ("reference", "generated"):
        for line in doubts[name].lines():
            note(line)
    metrics = set_metrics(heard["reference"], heard["generated"], 0, full=True)
    said = {name: METRICS[name].convention for name in metrics}
    for name in said:
        if name != "fd_log_mel":
            said[name] += f"; {listener.convention}, mean over frames"
    facts: JsonRow = {
        "sample_rate": rate,
        "judge": listener.judge.label,
        "judge_weights": listener.judge.fingerprint(),
    }
    if options.training:
        share, facts["memorisation"] = memorised(
            heard["generated"],
            heard["training"],
            heard["reference"],
            [str(f) for f in infos["generated"]],
            [str(f) for f in infos["training"]],
        )
        metrics["memorised_share"] = share
        said["memorised_share"] = (
            f"{METRICS['memorised_share'].convention}; {len(infos['training'])} training clips, reference as it is: "
            f"send it through the codec first; {listener.convention}, mean over frames"
        )
    if clap:
        cosines = clap.scores(sets["generated"], prompts, rate, options.cache_dir, progress)
        metrics |= summarise([{"clap_score": value} for value in cosines], 0)["metrics"]
        said["clap_score"] = f"{METRICS['clap_score'].convention}; {clap.convention}"
    return (
        facts,
        said,
        {"n": len(infos["generated"]), "reference_n": len(infos["reference"]), "metrics": metrics},
    )


def _reader(files: Sequence[Path], rate: int, doubts: Doubts) -> Callable[[int], np.ndarray]:
    """Reads clip i, and looks at it the first time."""
    seen: set[int] = set()

    def read(i: int) -> np.ndarray:
        audio = read_mono(files[i], rate)
        if i not in seen:
            seen.add(i)
            facts = audio_facts(torch.from_numpy(audio))
            said = [doubt for doubt in facts.doubts() if "normalised" not in doubt]
            doubts.add(files[i], said, facts.peak)
        return audio

    return read


def _say_shapes(infos: dict[str, dict[Path, AudioInfo]], note: Warn) -> None:
    """Numbers of clips, lengths and channels that differ between the sets."""
    first = infos["reference"]
    second = infos["generated"]
    if len(first) != len(second):
        note(
            f"{len(first)} reference and {len(second)} generated clips: biased figures compare at equal numbers only"
        )
    lengths = [float(np.median([info.seconds for info in of.values()])) for of in (first, second)]
    if max(lengths) > 1.05 * min(lengths):
        note(
            f"clips last {lengths[0]:.2f} s (reference) and {lengths[1]:.2f} s (generated) in the median"
        )
    channels = [max(info.channels for info in of.values()) for of in (first, second)]
    if max(channels) > 1:
        note(
            f"channels: {channels[0]} (reference) and {channels[1]} (generated); the mean of the channels is scored"
        )


def _prompts(generated: Path, files: Sequence[Path]) -> list[str]:
    """Prompt of each file from samples.jsonl beside them. Raises StageError naming files that have none."""
    listed = generated / "samples.jsonl"
    if not listed.is_file():
        raise StageError(
            "--clap needs the prompts",
            problems=[Problem(str(listed), "is missing")],
            hint='one JSON object a line: {"path": "a.wav", "prompt": "..."}; `sample` writes it',
        )
    known: dict[str, str] = {}
    for number, line in enumerate(listed.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            known[row["path"]] = row["prompt"]
        except (ValueError, KeyError, TypeError):
            raise StageError(
                "bad line in the list of prompts",
                problems=[Problem(f"{listed}:{number}", "needs `path` and `prompt`", line)],
            ) from None
    names = [file.relative_to(generated).as_posix() for file in files]
    missing = [
        Problem(name, "has no prompt in samples.jsonl") for name in names if name not in known
    ]
    if missing:
        raise StageError(
            f"{len(missing)} generated clips have no prompt", problems=missing[:LISTED]
        )
    return [known[name] for name in names]
