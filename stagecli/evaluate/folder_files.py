"""The audio files of folders: their headers, and the pairs and prompts they form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stagecli.data.audio import read_mono
from stagecli.data.cache import Progress
from stagecli.data.decoding import AudioInfo
from stagecli.data.finding import composed, find_audio
from stagecli.data.text_files import json_lines, require_text, text_problem
from stagecli.dsp.resample import PRECISE
from stagecli.errors import Problem, StageError, among, counted
from stagecli.files import JsonRow
from stagecli.generate.listening import LISTING, recorded_gains
from stagecli.metrics.checks import MAX_TAIL

MAX_LISTED = 20  # problems of one kind that are named

Headers = Mapping[Path, AudioInfo]
Gains = Mapping[Path, float]


@dataclass(frozen=True, kw_only=True)
class FolderScores:
    """The part of the document that depends on the task.

    facts: go to its head and settings; row: of the generated folder; baselines: rows to compare it
    with; files: a row per file, with its path as `file`.
    """

    facts: JsonRow
    conventions: Mapping[str, str]
    row: JsonRow
    baselines: Sequence[JsonRow] = ()
    files: Sequence[JsonRow] = ()


def read_headers(
    folder: Path, progress: Progress, warn: Callable[[str], None]
) -> dict[Path, AudioInfo]:
    """The format of every audio file in a folder. Raises StageError naming unusable files.

    warn: receives what is passed over.
    """
    return find_audio(
        folder, warn, lambda done, total: progress(f"checking {folder.name}", done, total)
    )


def read_gains(folder: Path, files: Iterable[Path], warn: Callable[[str], None]) -> Gains:
    """Gains of the files that `sample` turned down, for `read_ungained`; warns if there are any."""
    root = folder if folder.is_dir() else folder.parent
    by_path = {root / name: gain for name, gain in recorded_gains(root).items()}
    gains = {file: by_path[file] for file in files if file in by_path}
    if gains:
        warn(
            f"{folder}: {counted(len(gains), 'file was', 'files were')} turned down for listening, "
            f"as {root / LISTING} records; scores are of the level before that"
        )
    return gains


def read_ungained(file: Path, sample_rate: int, gains: Gains) -> np.ndarray:
    """The file as mono audio [N], without the gain that was applied to it. Raises StageError."""
    audio = read_mono(file, sample_rate, quality=PRECISE)
    return audio / np.float32(gains[file]) if file in gains else audio


def common_sample_rate(headers: Headers) -> int:
    """The sample rate of all files in Hz. Raises StageError naming those that differ."""
    rates = Counter(info.sample_rate for info in headers.values())
    if len(rates) > 1:
        usual = rates.most_common(1)[0][0]
        odd = [
            Problem(str(path), f"{info.sample_rate} Hz")
            for path, info in headers.items()
            if info.sample_rate != usual
        ]
        raise StageError(
            f"sample rates differ: most files have {usual} Hz",
            problems=odd[:MAX_LISTED],
            hint="resample all files to one rate first",
        )
    return next(iter(rates))


@dataclass(frozen=True)
class FilePair:
    """A reference file and the generated file of the same name."""

    reference: Path
    generated: Path


@dataclass(frozen=True, kw_only=True)
class FolderPairs:
    """The paired files of two folders; sample_rate: of the references, Hz; channels: the most of
    any file."""

    pairs: Sequence[FilePair]
    sample_rate: int
    channels: int


def pair_folders(
    reference: Path, generated: Path, progress: Progress, warn: Callable[[str], None]
) -> FolderPairs:
    """Pair files by name, without the suffix; two single files are a pair whatever their names.

    warn: receives also how many generated files have another rate or a tail of up to 20 ms. Raises
    StageError listing files without a partner, references of different rates, and pairs of
    different lengths or channels.
    """
    reference_headers = read_headers(reference, progress, warn)
    generated_headers = read_headers(generated, progress, warn)
    headers = {**reference_headers, **generated_headers}
    if reference.is_dir() or generated.is_dir():
        pairs = _match_names(
            _by_name(reference, reference_headers), _by_name(generated, generated_headers)
        )
    else:
        pairs = [FilePair(next(iter(reference_headers)), next(iter(generated_headers)))]
    rate = common_sample_rate(reference_headers)
    _check_shapes(pairs, headers)
    for line in [*_rate_note(generated, generated_headers, rate), *_tail_note(pairs, headers)]:
        warn(line)
    return FolderPairs(
        pairs=pairs,
        sample_rate=rate,
        channels=max(info.channels for info in headers.values()),
    )


def _by_name(folder: Path, headers: Headers) -> dict[Path, Path]:
    """Files by their path in the folder without the suffix, in Unicode normal form C."""
    if not folder.is_dir():
        return {Path(composed(file.stem)): file for file in headers}
    by_name = {
        Path(composed(str(file.relative_to(folder).with_suffix("")))): file for file in headers
    }
    if len(by_name) < len(headers):
        raise StageError(
            f"{folder} holds two files of the same name",
            hint="suffixes do not distinguish clips: keep one format of each",
        )
    return by_name


def _match_names(reference: Mapping[Path, Path], generated: Mapping[Path, Path]) -> list[FilePair]:
    files = {**reference, **generated}
    alone = [
        Problem(str(files[name]), "has no partner in the other folder")
        for name in sorted(reference.keys() ^ generated.keys())
    ]
    if alone:
        raise StageError(
            f"the folders do not hold the same files ({len(reference)} and "
            f"{counted(len(generated), 'file')})",
            problems=alone[:MAX_LISTED],
            hint="clips are paired by name, without the suffix",
        )
    return [FilePair(reference[name], generated[name]) for name in sorted(reference)]


def _check_shapes(pairs: Sequence[FilePair], headers: Headers) -> None:
    problems = []
    for pair in pairs:
        original = headers[pair.reference]
        generated = headers[pair.generated]
        where = str(pair.generated)
        if abs(original.seconds - generated.seconds) > MAX_TAIL:
            difference = (
                f"{generated.frames} samples ({generated.seconds:.3f} s), its reference has "
                f"{original.frames} ({original.seconds:.3f} s)"
            )
            problems.append(Problem(where, difference))
        elif original.channels != generated.channels:
            difference = f"{generated.channels} channels, its reference has {original.channels}"
            problems.append(Problem(where, difference))
    if problems:
        raise StageError(
            f"{among(len(problems), len(pairs), 'pair', 'differs', 'differ')} in length or "
            "channels",
            problems=problems[:MAX_LISTED],
            hint="trim and downmix both sides in the same way; only tails of up to "
            f"{1000 * MAX_TAIL:g} ms are cut",
        )


def _rate_note(folder: Path, generated: Headers, rate: int) -> list[str]:
    """A line if files of a folder have another rate than their references."""
    others = Counter(info.sample_rate for info in generated.values() if info.sample_rate != rate)
    if not others:
        return []
    rates = ", ".join(f"{other} Hz" for other in sorted(others))
    number = sum(others.values())
    return [
        f"{folder}: {among(number, len(generated), 'file', 'has', 'have')} another sample rate "
        f"({rates}): resampled to the {rate} Hz of the references"
    ]


def _tail_note(pairs: Sequence[FilePair], headers: Headers) -> list[str]:
    """A line if lengths differ."""
    tails = [
        abs(headers[pair.reference].seconds - headers[pair.generated].seconds) for pair in pairs
    ]
    different = [
        tail for tail, pair in zip(tails, pairs, strict=True) if tail >= 0.5 / _rate(headers, pair)
    ]
    if not different:
        return []
    return [
        f"{among(len(different), len(pairs), 'pair', 'differs', 'differ')} in length, by up to "
        f"{1000 * max(different):.2f} ms: the tail of the longer clip is not scored, except by "
        "PESQ and ViSQOL, which align by themselves"
    ]


def _rate(headers: Headers, pair: FilePair) -> int:
    return headers[pair.reference].sample_rate


def read_prompts(folder: Path, files: Sequence[Path]) -> list[str]:
    """The prompt of each file, from samples.jsonl in the folder.

    Raises StageError: no such list, a line without path and prompt, files without a prompt.
    """
    listing = folder / "samples.jsonl"
    if not listing.is_file():
        raise StageError(
            "--clap needs the prompts",
            problems=[Problem(str(listing), "is missing")],
            hint='one JSON object per line: {"path": "a.wav", "prompt": "..."}; `sample` writes it',
        )
    prompts = _listed_prompts(listing)
    names = [composed(file.relative_to(folder).as_posix()) for file in files]
    missing = [
        Problem(name, "has no prompt in samples.jsonl") for name in names if name not in prompts
    ]
    if missing:
        raise StageError(
            f"{counted(len(missing), 'generated clip has', 'generated clips have')} no prompt",
            problems=missing[:MAX_LISTED],
        )
    return [prompts[name] for name in names]


def _listed_prompts(listing: Path) -> dict[str, str]:
    """Prompts by path, in Unicode normal form C. Raises StageError with every bad line."""
    prompts: dict[str, str] = {}
    problems = []
    text = require_text(listing, "cannot read the list of prompts")
    for number, row, problem, excerpt in json_lines(text):
        row = row if isinstance(row, dict) else {}
        path = row.get("path")
        prompt = row.get("prompt")
        if isinstance(path, str) and isinstance(prompt, str):
            problem = text_problem(prompt)
            prompts[composed(path)] = prompt
        else:
            problem = problem or "needs `path` and `prompt`"
        if problem:
            problems.append(Problem(f"{listing}:{number}", problem, excerpt or str(row)[:200]))
    if problems:
        raise StageError("bad lines in the list of prompts", problems=problems[:MAX_LISTED])
    return prompts
