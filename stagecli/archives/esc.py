"""ESC-50, and ESC-10: a part of it, or an archive of its own with a folder per class."""

from __future__ import annotations

import re
from pathlib import Path

from stagecli.archives.contents import Contents, Row, audio_under, root_of, table_rows
from stagecli.archives.esc_classes import CAPTIONS, ESC10_LABELS
from stagecli.data.finding import existing_name
from stagecli.data.rows import Split
from stagecli.errors import Problem

TABLE = "meta/esc50.csv"
CLASS_FOLDER = re.compile(r"\d{3} - (.+)")
SPLITS: dict[str, Split] = {"1": "train", "2": "train", "3": "train", "4": "valid", "5": "test"}


def read_esc50(folder: Path) -> Contents:
    """The clips of `meta/esc50.csv`; the label is the category."""
    return _of_table(root_of(folder, TABLE), only_esc10=False)


def read_esc10(folder: Path) -> Contents:
    """The clips of ESC-50 that are marked `esc10`, or those of the ESC-10 archive.

    Labels are the names of the classes in the ESC-10 archive in both cases.
    """
    root = root_of(folder, TABLE)
    class_folders = [path for path in _class_folders(root_of(folder, "001 - Dog bark"))]
    if not (root / TABLE).exists() and class_folders:
        return _of_class_folders(class_folders)
    return _of_table(root, only_esc10=True)


def _of_table(root: Path, *, only_esc10: bool) -> Contents:
    """Every row of the table that is wanted, with its file in `audio/`."""
    contents = Contents()
    table = root / TABLE
    rows = table_rows(contents, table, ["filename", "fold", "category", "esc10"])
    missing = []
    wanted = 0
    for number, columns, _, _ in rows:
        assert columns is not None
        if only_esc10 and columns["esc10"] != "True":
            continue
        wanted += 1
        category = columns["category"]
        split = SPLITS.get(columns["fold"])
        file = existing_name(root / "audio", columns["filename"])
        if category not in CAPTIONS or (only_esc10 and category not in ESC10_LABELS):
            problem = f"the category {category!r:.40} is not one of the data set"
            contents.problems.append(Problem(f"{table}:{number}", problem))
        elif split is None:
            problem = f"the fold is {columns['fold']!r:.20}, not 1 to 5"
            contents.problems.append(Problem(f"{table}:{number}", problem))
        elif not file.is_file():
            missing.append(columns["filename"])
        else:
            label = ESC10_LABELS[category] if only_esc10 else category
            contents.rows.append(_row(file, split, category, label, int(columns["fold"])))
    if (root / "audio").is_dir():
        contents.lacks(table, missing, wanted, "row", "without a file in audio/")
    else:
        contents.problems.append(Problem(str(root / "audio"), "the folder is missing"))
    return contents


def _of_class_folders(folders: list[Path]) -> Contents:
    """The clips of `001 - Dog bark/{fold}-{clip}-{take}.ogg` and so on."""
    contents = Contents()
    categories = {label: category for category, label in ESC10_LABELS.items()}
    labels = {folder: _label(folder) for folder in folders}
    for label in sorted(set(categories) - set(labels.values())):
        contents.gaps.append(Problem(str(folders[0].parent), f"the folder of {label} is missing"))
    for folder, label in labels.items():
        if label not in categories:
            contents.problems.append(Problem(str(folder), "is not a class of ESC-10"))
            continue
        others = []
        files = audio_under(contents, folder)
        for file in files:
            fold = file.stem.partition("-")[0]
            if fold in SPLITS:
                row = _row(file, SPLITS[fold], categories[label], label, int(fold))
                contents.rows.append(row)
            else:
                others.append(file.name)
        contents.lacks(folder, others, len(files), "file", "not named {fold}-{clip}-{take}")
    return contents


def _class_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return [path for path in sorted(root.iterdir()) if CLASS_FOLDER.fullmatch(path.name)]


def _label(folder: Path) -> str:
    """`001 - Dog bark` -> `dog_bark`."""
    return folder.name.partition(" - ")[2].lower().replace(" ", "_")


def _row(file: Path, split: Split, category: str, label: str, fold: int) -> Row:
    return Row(
        path=file,
        split=split,
        captions=[CAPTIONS[category]],
        labels={"label": label, "fold": fold},
    )
