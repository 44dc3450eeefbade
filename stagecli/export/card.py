"""The model card of an export, README.md, in the form that the model hub reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagecli import __version__
from stagecli.errors import counted
from stagecli.evaluate.pages import markdown
from stagecli.export.portable import without_folders
from stagecli.files import JsonRow, read_json
from stagecli.report.formats import significant
from stagecli.runs import data_file
from stagecli.schema import Recipe

TAGS = {"t2a": "text-to-audio", "sr": "audio-to-audio"}
TASKS = {"t2a": "Generates audio from text.", "sr": "Restores the high band of audio."}
CALLS = {
    "t2a": 'model.generate("a loud bell").save("bell.wav")',
    "sr": 'model.restore("low.wav").save("full.wav")',
}
FLAGS = {"t2a": '--prompt "a loud bell"', "sr": "--input low.wav"}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card is about.

    name: of the run; address: what `stagecli.load` is given; recipe: without places; licence: its
    id on the hub; data: the report of data.json, empty where there is none; scores: documents of
    `stagecli evaluate`.
    """

    name: str
    address: str
    recipe: Recipe
    step: int
    parameters: int
    licence: str
    data: JsonRow = field(default_factory=dict)
    scores: Sequence[JsonRow] = ()


def model_card(facts: Facts) -> str:
    """The card as Markdown, with the fields that the hub reads on top."""
    summary = facts.recipe.about.summary
    task = facts.recipe.task.kind
    lines = [
        # What it is.
        *_front_matter(facts),
        f"# {facts.name}",
        "",
        *([summary, ""] if summary else []),
        _description(facts),
        "",
        # What to do with it.
        "## Use",
        "",
        "```python",
        "import stagecli",
        "",
        f'model = stagecli.load("{facts.address}")',
        CALLS[task],
        "```",
        "",
        f"On the command line, with the folder: `stagecli sample FOLDER {FLAGS[task]}`.",
        "",
        # Where it comes from, and how good it is.
        "## Training",
        "",
        *_training_table(facts),
        "",
        "Every setting is in `recipe.toml`, without the places of the machine it was trained on.",
        "",
        "## Scores",
        "",
        *_score_lines(facts),
        "## Licence",
        "",
        _licence_line(facts.licence),
    ]
    return "\n".join(lines) + "\n"


def _description(facts: Facts) -> str:
    recipe = facts.recipe
    width, depth, heads = recipe.model.resolved()
    return (
        f"{TASKS[recipe.task.kind]} A diffusion transformer of {facts.parameters:,} parameters "
        f"(width {width}, depth {depth}, {counted(heads, 'head')}) over `{recipe.codec.kind}` "
        f"frames, trained with rectified flow on crops of {recipe.data.seconds:g} s at "
        f"{recipe.data.sample_rate} Hz. These are the EMA weights of step {facts.step:,} of "
        f"{recipe.train.steps:,}."
    )


def _front_matter(facts: Facts) -> list[str]:
    task = facts.recipe.task.kind
    return [
        "---",
        f"license: {facts.licence}",
        "library_name: stagecli",
        f"pipeline_tag: {TAGS[task]}",
        f"tags: [stagecli, audio, diffusion, {task}]",
        "---",
        "",
    ]


def _training_table(facts: Facts) -> list[str]:
    recipe = facts.recipe
    train = recipe.train
    data = recipe.data
    rows = {
        "data": f"{data.source} `{data.path}`" if data.path else data.source,
        **_data_rows(facts.data),
        "fine-tuned from": f"`{train.init}`" if train.init else "",
        "frozen": ", ".join(f"`{pattern}`" for pattern in train.freeze),
        "steps": f"{facts.step:,} of {train.steps:,}, batch {train.batch_size}",
        "learning rate": f"{train.lr:g}, {train.schedule}",
        "precision": train.precision,
        "seed": str(train.seed),
        "mechanisms": ", ".join(recipe.stage) or "none (plain training)",
        "written by": f"stagecli {__version__}",
    }
    return [
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items() if value),
    ]


def _data_rows(data: JsonRow) -> dict[str, str]:
    splits = data.get("splits")
    if not isinstance(splits, Mapping):
        return {}
    rows = {}
    for split, counts in splits.items():
        if isinstance(counts, Mapping) and isinstance(counts.get("clips"), int):
            hours = counts.get("hours")
            length = f", {significant(hours)} h" if isinstance(hours, float | int) else ""
            rows[f"{split} split"] = counted(counts["clips"], "clip") + length
    return rows


def _score_lines(facts: Facts) -> list[str]:
    if not facts.scores:
        return [
            "These weights have not been scored. `stagecli evaluate FOLDER --data PATH` does that.",
            "",
        ]
    return [markdown(facts.scores, [])]


def _licence_line(licence: str) -> str:
    if licence == "unknown":
        return "Not stated. Whoever trained the model, and on what data, decides that."
    return f"`{licence}`."


# -- what a run has recorded -----------------------------------------------------------------------


def data_report(home: Path) -> JsonRow:
    """The report on the data of a run; empty where there is none that can be read."""
    try:
        report = read_json(home / data_file.NAME)["report"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return report if isinstance(report, dict) else {}


def measured_scores(
    home: Path, checkpoint: str, name: str, warn: Callable[[str], None]
) -> list[JsonRow]:
    """The documents in evals/ that score a checkpoint, under a name, without paths.

    warn: receives which cannot be read.
    """
    documents = []
    for file in sorted((home / "evals").glob("*.json")):
        try:
            document = read_json(file)
            if document["checkpoint"] != checkpoint:
                continue
            document = _without_places({**document, "run": name})
            markdown([document], [])  # fails where anything is missing
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            warn(f"{file}: left out of the card, as it cannot be read ({type(error).__name__})")
            continue
        documents.append(document)
    return documents


def _without_places(document: JsonRow) -> JsonRow:
    """A document as far as the card shows it, with names instead of paths."""
    return {
        key: _named(value) for key, value in document.items() if key not in ("command", "files")
    }


def _named(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _named(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_named(inner) for inner in value]
    return without_folders(value) if isinstance(value, str) else value
