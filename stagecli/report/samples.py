"""Audio that runs generated while training, beside what it is compared with. No torch.

A run may come from a stranger, or from another version: rows that are not understood, and files
outside the run's samples, are left out and counted.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stagecli.errors import counted
from stagecli.files import JsonRow, read_json_lines
from stagecli.report.run_report import RunReport

__all__ = ["Sample", "prompts_of", "read_samples"]

LISTING = "samples.jsonl"
OUTPUT = "_output"  # the end of the name of a restored file; its input and target lie beside it
TRAINING_FOLDER = re.compile("step_([0-9]{1,13})")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One generated file. title: its prompt, or the clip that was restored; label: where it comes
    from, such as `step 2,000`; beside: what it is compared with, label -> file.
    """

    run: str
    title: str
    label: str
    step: int
    path: Path
    beside: dict[str, Path]


def read_samples(report: RunReport) -> tuple[list[Sample], list[str]]:
    """(the samples of a run from its last step to its first, what was left out of them).

    Whether the files exist is not checked. Raises OSError.
    """
    folder = report.path / "samples"
    samples = []
    problems = []
    for listing in sorted(folder.glob(f"*/{LISTING}")):
        rows = [row for _, row in read_json_lines(listing)]
        understood = [_sample(report.name, row, listing.parent) for row in rows]
        samples += [sample for sample in understood if sample]
        left_out = understood.count(None)
        if left_out:
            problems.append(
                f"{report.name}, samples/{listing.parent.name}/{LISTING}:"
                f" {counted(left_out, 'row')} not understood; left out"
            )
    samples.sort(key=lambda sample: sample.step, reverse=True)  # stable: as listed within a step
    return samples, problems


def prompts_of(run: Path) -> list[str]:
    """The prompts that a run was given while training, each once; none where it has no samples."""
    rows = []
    for listing in sorted(run.glob(f"samples/step_*/{LISTING}")):
        with suppress(OSError):
            rows += [row for _, row in read_json_lines(listing) if isinstance(row, dict)]
    return list(dict.fromkeys(row["prompt"] for row in rows if isinstance(row.get("prompt"), str)))


def _sample(run: str, row: object, folder: Path) -> Sample | None:
    if not isinstance(row, dict):
        return None
    path = _inside(folder, row.get("path"))
    title = _title(row)
    step = _step(row, folder.name)
    if path is None or title is None or step is None:
        return None
    label = f"step {step:,}"
    if TRAINING_FOLDER.fullmatch(folder.name) is None:  # from the command `sample`
        label += f", {folder.name}"
    return Sample(
        run=run, title=title, label=label, step=step, path=path, beside=_beside(row, path, folder)
    )


def _title(row: JsonRow) -> str | None:
    prompt = row.get("prompt")
    if isinstance(prompt, str) and "input" not in row:
        return prompt
    name = row.get("input")
    if not isinstance(name, str):
        return None
    cutoff = row.get("cutoff")
    return f"{name}, cutoff {cutoff:,.0f} Hz" if type(cutoff) in (int, float) else name


def _step(row: JsonRow, folder_name: str) -> int | None:
    """By the row, where the step is a number or the name of a checkpoint, else by the folder."""
    for text in (row.get("checkpoint"), folder_name):
        if type(text) is int:
            return text
        match = TRAINING_FOLDER.match(str(text))
        if match:
            return int(match[1])
    return None


def _beside(row: JsonRow, path: Path, folder: Path) -> dict[str, Path]:
    """The reference of a prompt; the input and the target of a restored clip."""
    files: dict[str, Path] = {}
    reference = _inside(folder, row.get("reference"))
    if reference is not None:
        files["reference"] = reference
    if "input" in row and path.stem.endswith(OUTPUT):
        stem = path.stem.removesuffix(OUTPUT)
        for label in ("input", "target"):
            file = path.with_name(f"{stem}_{label}{path.suffix}")
            if file.exists():
                files[label] = file
    return files


def _inside(folder: Path, name: object) -> Path | None:
    """The file that a row names, if it lies in the samples of its run: a page is passed on, and a
    row must not put other files of this machine into it.
    """
    if not isinstance(name, str):
        return None
    try:
        path = folder / name
        inside = path.resolve().is_relative_to(folder.parent.resolve())
    except (OSError, ValueError):  # a loop of links, NUL in the name
        return None
    return path if inside else None
