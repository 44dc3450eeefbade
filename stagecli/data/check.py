"""A data set on its own, without a recipe: what is in it, what must be mended, what would fit it.

No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from stagecli.condition.captions import kept_bytes
from stagecli.data.advice import (
    Advice,
    caption_column_advice,
    max_length_advice,
    narrow_advice,
    sample_rate_advice,
    seconds_advice,
    split_name_advice,
    valid_share_advice,
)
from stagecli.data.cache import Progress
from stagecli.data.file_source import FileSource
from stagecli.data.fingerprint import fingerprint
from stagecli.data.open import read_source, recorded_splits
from stagecli.data.report import MEASURED, DataReport, Expectations, evenly, measure
from stagecli.data.rows import SPLITS, Clip, split_names
from stagecli.data.shard_names import holds_shards
from stagecli.errors import Problem, StageError, counted
from stagecli.files import JsonRow
from stagecli.schema import Data

MANIFESTS = (".jsonl", ".csv", ".tsv")
HUB = "hf:"  # before the name or folder of a Hugging Face data set
BESIDE = ("manifest.jsonl", "manifest.csv", "manifest.tsv", "metadata.jsonl", "metadata.csv")
NO_CAPTIONS = (
    "no clip has a caption, which text-to-audio needs; write each into a .txt beside its file, or "
    "name the column that has them: data.caption_column"
)
LOWEST_RATE = 1000  # Hz: no file is refused for its rate before one is chosen


@dataclass(kw_only=True)
class DataSetCheck:
    """A data set as a recipe would find it.

    data: keys that read it; task: t2a or sr; problems: what must be mended first; left_out: what
    need not, because the user has set `data.on_bad_file` to "skip".
    """

    data: Data
    task: str
    report: DataReport = field(default_factory=DataReport)
    problems: list[Problem] = field(default_factory=list)
    left_out: list[Problem] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)

    def as_json(self) -> JsonRow:
        """One document."""
        return {
            "path": self.data.path,
            "source": self.data.source,
            "task": self.task,
            "trainable": not self.problems,
            **self.report.facts,
            "doubts": self.report.doubts,
            "duplicates": [list(pair) for pair in self.report.twins],
            "problems": [{"where": p.where, "what": p.what} for p in self.problems],
            "skipped": [{"where": p.where, "what": p.what} for p in self.left_out],
            "advice": [entry._asdict() for entry in self.advice],
        }


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a data set is checked for.

    keys: of `[data]` that the user has chosen; task: None: t2a if there are captions; max_length:
    as `condition.max_length`, in bytes.
    """

    keys: dict[str, Any]
    task: str | None
    max_length: int


def locate(path: str) -> dict[str, str]:
    """`data.source` and `data.path` for a folder, a manifest, shards or `hf:NAME`.

    Raises StageError for anything else.
    """
    if path.startswith(HUB):
        return {"source": "huggingface", "path": path.removeprefix(HUB)}
    place = Path(path).expanduser()
    if place.is_dir():
        saved = any((place / name).is_file() for name in ("dataset_dict.json", "state.json"))
        kind = "shards" if holds_shards(place) else "folder"
        return {"source": "huggingface" if saved else kind, "path": path}
    if path.endswith(".tar"):
        return {"source": "shards", "path": path}
    if place.is_file() and place.suffix.lower() in MANIFESTS:
        return {"source": "manifest", "path": path}
    problem = "is a file of another kind" if place.exists() else "no such file or folder"
    raise StageError(
        "cannot check the data",
        problems=[Problem(path, problem)],
        hint=f"name a folder of audio, a manifest ({' '.join(MANIFESTS)}), or a Hugging Face data "
        f"set as {HUB}NAME or {HUB}FOLDER",
    )


def check_data_set(
    question: Question, *, base: Path, cache_dir: Path, progress: Progress
) -> DataSetCheck:
    """Everything about a data set. Raises StageError where it cannot be read at all."""
    # The entries, with the names and the division that the data ask for.
    keys = {**question.keys, "on_bad_file": "skip", "cache_dir": str(cache_dir)}
    data = Data(**{"sample_rate": LOWEST_RATE, "seconds": 1.0, **keys})
    names = recorded_splits(data, base)
    advice = _new(split_name_advice(data, names), question)
    data = _with(data, advice)
    present = [
        split for split, name in zip(SPLITS, split_names(data), strict=True) if name in names
    ]
    source = read_source(data, need_captions=False, base=base, splits=present)
    if not source.divided:
        shares = _new(valid_share_advice(data, source.keys()), question)
        data = _with(data, shares)
        source = read_source(data, need_captions=False, base=base)
        advice += shares

    # Their audio.
    problems = source.examine(
        SPLITS, cache_dir, lambda done, total: progress("checking audio", done, total)
    )
    clips = _all_clips(source)
    task = question.task or ("t2a" if any(clip.caption for clip in clips) else "sr")
    check = DataSetCheck(data=data, task=task, advice=advice)
    if task == "t2a" and any(clip.caption for clip in clips):
        problems += _uncaptioned(source, clips)
    elif task == "t2a":
        check.problems.append(Problem(data.path, NO_CAPTIONS))
    if question.keys.get("on_bad_file") == "skip":
        check.left_out = problems
    elif problems:
        why = f"leaves out the {counted(len(problems), 'entry', 'entries')} that cannot be used"
        check.advice = [*advice, Advice("data.on_bad_file", "skip", why)]
        check.problems += problems
    check.problems += _empty_splits(source)
    _judge(check, source, question, progress)
    check.report.doubts += [f"left out: {p.where}: {p.what}" for p in check.left_out]
    check.report.doubts += _notes(source)
    return check


def _new(advice: list[Advice], question: Question) -> list[Advice]:
    """The advice about keys that the user has not chosen."""
    return [entry for entry in advice if entry.key.removeprefix("data.") not in question.keys]


def _with(data: Data, advice: list[Advice]) -> Data:
    return data.model_copy(
        update={entry.key.removeprefix("data."): entry.value for entry in advice}
    )


def _uncaptioned(source: FileSource, clips: Sequence[Clip]) -> list[Problem]:
    what = f'no caption (key "{source.data.caption_column}")'
    if source.data.source == "folder":
        what = "no caption: write one into a .txt of the same name"
    return [Problem(clip.key, what) for clip in clips if not clip.caption]


def _empty_splits(source: FileSource) -> list[Problem]:
    """Splits without clips that training needs."""
    problems = []
    names = dict(zip(SPLITS, split_names(source.data), strict=True))
    for split in ("train", "valid"):
        if not source.clips(split):
            way_out = f"name another split: --set data.{split}_split=NAME"
            if not source.divided:
                way_out = "add files"
            problems.append(Problem(f"split {names[split]}", f"has no usable clips; {way_out}"))
    return problems


def _judge(check: DataSetCheck, source: FileSource, question: Question, progress: Progress) -> None:
    """Choose the rate, and measure the clips as a recipe with this rate would."""
    # The rate that fits the training clips.
    clips = _all_clips(source)
    train = source.clips("train") or clips
    infos = [info for clip in clips if (info := source.info(clip)) is not None]
    measured = evenly(train, MEASURED)
    hertz = []
    for done, clip in enumerate(measured, 1):
        hertz.append(source.bandwidth(clip) or 0.0)
        progress("measuring bandwidth of training clips", done, len(measured))
    rates = [] if "sample_rate" in question.keys else sample_rate_advice(infos, hertz)
    rate = rates[0].value if rates else check.data.sample_rate

    # The report.
    prints = fingerprint(
        source,
        [split for split in SPLITS if source.clips(split)],
        with_captions=True,
        progress=lambda done, total: progress("hashing audio", done, total),
    )
    expected = Expectations(
        sample_rate=rate,
        restores=check.task == "sr",
        narrow=check.data.narrow,
        cut=partial(kept_bytes, max_length=question.max_length) if check.task == "t2a" else None,
        max_length=question.max_length,
    )
    check.report = measure(
        source,
        prints,
        expected,
        lambda done, total: progress("measuring bandwidth of every split", done, total),
    )
    for error in check.report.refused:
        check.problems.append(Problem(check.data.path, f"{error.message}; {error.hint}"))

    # The rest of the advice, which depends on it.
    check.advice += rates
    check.advice += seconds_advice([clip.seconds for clip in train], check.task)
    captions = {text for clip in clips for text in clip.captions if text}
    if check.task == "t2a":
        check.advice += max_length_advice(captions, question.max_length)
    else:
        narrow = sum(facts["narrow"] for facts in check.report.facts["splits"].values())
        check.advice += narrow_advice(check.data, narrow, rate)
    if clips and not captions:
        check.advice += caption_column_advice(clips[0].labels)
    check.advice = _one_per_key(_new(check.advice, question))


def _one_per_key(advice: Sequence[Advice]) -> list[Advice]:
    """Advice with the reasons of one key together."""
    entries: dict[str, Advice] = {}
    for entry in advice:
        first = entries.get(entry.key)
        entries[entry.key] = entry._replace(why=f"{first.why}; {entry.why}") if first else entry
    return list(entries.values())


def _all_clips(source: FileSource) -> list[Clip]:
    return [clip for split in SPLITS for clip in source.clips(split)]


def _notes(source: FileSource) -> list[str]:
    """What is worth knowing about a folder, and a division by chance."""
    notes = []
    if source.data.source == "folder":
        folder = Path(source.data.path)
        names = [name for name in BESIDE if (folder.expanduser() / name).is_file()]
        what = "is a manifest, which this check has not read: check it by its own path"
        notes = [f"{folder / name} {what}" for name in names]
    if not source.divided and not source.clips("test"):
        notes.append(
            "no clip falls into the test split: score with `stagecli evaluate RUN --split valid`"
        )
    return notes
