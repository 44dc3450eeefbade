"""AudioCaps and Clotho: tables of captions, with one file for each clip."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stagecli.archives.contents import (
    Contents,
    Row,
    audio_under,
    require_folder,
    root_of,
    table_rows,
)
from stagecli.data.finding import existing_name
from stagecli.data.rows import Split
from stagecli.errors import Problem

AUDIOCAPS: dict[Split, str] = {"train": "train.csv", "valid": "val.csv", "test": "test.csv"}
AUDIOCAPS_COLUMNS = ("youtube_id", "start_time", "caption", "audiocap_id")
AUDIOCAPS_TABLES = ("dataset", "dataset2.0", "csv_files_v1")  # folders that may hold the tables
CLOTHO: dict[Split, str] = {"train": "development", "valid": "validation", "test": "evaluation"}
CLOTHO_CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


def read_audiocaps(folder: Path) -> Contents:
    """The clips of the three tables; rows of the same video give one clip several captions."""
    contents = Contents()
    if not require_folder(contents, folder):
        return contents
    folders = [folder, *(folder / name for name in AUDIOCAPS_TABLES)]
    tables = next((path for path in folders if (path / AUDIOCAPS["train"]).exists()), folder)
    files: dict[str, Path] = {}
    for file in audio_under(contents, folder):
        files.setdefault(file.stem, file)
    for split, name in AUDIOCAPS.items():
        if (tables / name).exists():
            _read_audiocaps_table(contents, tables / name, split, files)
    if not any((tables / name).exists() for name in AUDIOCAPS.values()):
        names = ", ".join(AUDIOCAPS.values())
        contents.problems.append(Problem(str(tables), f"holds none of {names}"))
    return contents


def _read_audiocaps_table(
    contents: Contents, table: Path, split: Split, files: Mapping[str, Path]
) -> None:
    rows = table_rows(contents, table, AUDIOCAPS_COLUMNS)
    captions: dict[Path, list[str]] = {}
    videos: dict[Path, str] = {}
    missing = []
    for row in rows:
        assert row.columns is not None
        video = row.columns["youtube_id"]
        file = _file_of_video(row.columns, files)
        if file is None:
            missing.append(video)
            continue
        captions.setdefault(file, []).append(row.columns["caption"].strip())
        videos[file] = video
    contents.lacks(table, missing, len(rows), "row", "without a file named after its video")
    contents.rows += [
        Row(
            path=file,
            split=split,
            captions=list(dict.fromkeys(captions[file])),
            labels={"youtube_id": videos[file]},
        )
        for file in captions
    ]


def _file_of_video(columns: Mapping[str, str], files: Mapping[str, Path]) -> Path | None:
    """The file of a row, under the names that the common downloaders give."""
    video = columns["youtube_id"]
    start = columns["start_time"].removesuffix(".0")
    stems = [f"Y{video}", video, f"{video}_{start}", f"Y{video}_{start}", columns["audiocap_id"]]
    if start.isdecimal():
        begin, end = int(start), int(start) + 10
        stems += [f"{video}_{begin}_{end}", f"{video}_{begin * 1000}_{end * 1000}"]
    return next((files[stem] for stem in stems if stem in files), None)


def read_clotho(folder: Path) -> Contents:
    """The clips of the three tables, each with its five captions."""
    contents = Contents()
    root = root_of(folder, "clotho_captions_development.csv")
    tables = {split: root / f"clotho_captions_{name}.csv" for split, name in CLOTHO.items()}
    for split, table in tables.items():
        if table.exists():
            _read_clotho_table(contents, table, split)
    if not any(table.exists() for table in tables.values()):
        names = ", ".join(table.name for table in tables.values())
        contents.problems.append(Problem(str(root), f"holds none of {names}"))
    return contents


def _read_clotho_table(contents: Contents, table: Path, split: Split) -> None:
    rows = table_rows(contents, table, ["file_name", *CLOTHO_CAPTIONS])
    audio = _clotho_folder(table.parent, CLOTHO[split])
    if not require_folder(contents, audio):
        return
    missing = []
    for row in rows:
        assert row.columns is not None
        columns = row.columns
        file = existing_name(audio, columns["file_name"])
        if not file.is_file():
            missing.append(columns["file_name"])
            continue
        captions = [columns[name].strip() for name in CLOTHO_CAPTIONS if columns[name].strip()]
        contents.rows.append(Row(path=file, split=split, captions=list(dict.fromkeys(captions))))
    contents.lacks(table, missing, len(rows), "row", f"without a file in {audio.name}/")


def _clotho_folder(root: Path, name: str) -> Path:
    """The folder of the clips of a part: as extracted in place, or in a folder of its own."""
    packed = root / f"clotho_audio_{name}"
    choices = [root / name, packed / name, packed]
    return next((choice for choice in choices if choice.is_dir()), root / name)
