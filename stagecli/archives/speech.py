"""VCTK and LibriSpeech: read speech, with a folder for each speaker."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stagecli.archives.contents import Contents, Row, audio_under, require_folder, root_of
from stagecli.data.rows import Split
from stagecli.data.text_files import require_text
from stagecli.errors import Problem, StageError, counted

VCTK_AUDIO = "wav48_silence_trimmed"
MICROPHONE = "_mic1"
# Published super-resolution tests on these eight, and leaves out two with damaged recordings.
VCTK_TEST = frozenset({"p360", "p361", "p362", "p363", "p364", "p374", "p376", "s5"})
VCTK_VALID = frozenset({"p341", "p345", "p347", "p351"})
VCTK_LEFT_OUT = frozenset({"p280", "p315"})
LIBRISPEECH: dict[str, Split] = {
    "train-clean-100": "train",
    "train-clean-360": "train",
    "train-other-500": "train",
    "dev-clean": "valid",
    "dev-other": "valid",
    "test-clean": "test",
    "test-other": "test",
}
LONGEST = 1 << 22  # bytes of a file of transcripts


def read_vctk(folder: Path) -> Contents:
    """The recordings of microphone 1; the caption is what is read, where `txt/` has it."""
    contents = Contents()
    root = root_of(folder, VCTK_AUDIO)
    files = audio_under(contents, root / VCTK_AUDIO)
    recordings = [file for file in files if file.stem.endswith(MICROPHONE)]
    used = [file for file in recordings if file.parent.name not in VCTK_LEFT_OUT]
    contents.rows = [_vctk_row(contents, root / "txt", file) for file in used]
    if len(used) < len(recordings):
        left_out = counted(len(recordings) - len(used), "recording")
        contents.notices.append(f"{left_out} of p280 and p315 left out, as others do")
    untold = sum(not row.captions for row in contents.rows)
    if untold:
        contents.notices.append(
            f"{counted(untold, 'recording has', 'recordings have')} no text in txt/, and so no "
            "caption: super-resolution needs none"
        )
    return contents


def _vctk_row(contents: Contents, texts: Path, file: Path) -> Row:
    speaker = file.parent.name
    text = _text_of(contents, texts / speaker, file.stem.removesuffix(MICROPHONE))
    return Row(
        path=file,
        split=_vctk_split(speaker),
        captions=[text] if text else [],
        labels={"speaker": speaker},
    )


def _vctk_split(speaker: str) -> Split:
    if speaker in VCTK_TEST:
        return "test"
    return "valid" if speaker in VCTK_VALID else "train"


def _text_of(contents: Contents, folder: Path, name: str) -> str:
    """The text of one recording; empty if there is none."""
    path = folder / f"{name}.txt"
    if not path.exists():
        return ""
    try:
        return " ".join(require_text(path, "cannot be read", largest=LONGEST).split())
    except StageError as error:
        contents.problems += error.problems
        return ""


def read_librispeech(folder: Path) -> Contents:
    """The utterances of every part that is there; captions are the transcripts in lower case."""
    contents = Contents()
    root = _librispeech_root(folder)
    parts = [name for name in LIBRISPEECH if (root / name).is_dir()]
    if require_folder(contents, root) and not parts:
        names = ", ".join(LIBRISPEECH)
        contents.problems.append(Problem(str(root), f"holds none of {names}"))
    for name in parts:
        _read_part(contents, root / name, LIBRISPEECH[name])
    return contents


def _librispeech_root(folder: Path) -> Path:
    """The folder of the parts: the one named, or `LibriSpeech` in it."""
    inner = folder / "LibriSpeech"
    return inner if inner.is_dir() else folder


def _read_part(contents: Contents, part: Path, split: Split) -> None:
    transcripts = _transcripts(contents, sorted(part.glob("*/*/*.trans.txt")))
    files = audio_under(contents, part)
    untold = []
    for file in files:
        text = transcripts.pop(file.parent / file.stem, None)
        if text is None:
            untold.append(file.name)
            continue
        labels = {"speaker": file.parent.parent.name, "part": part.name}
        contents.rows.append(Row(path=file, split=split, captions=[text], labels=labels))
    contents.lacks(part, untold, len(files), "file", "without a line in a .trans.txt")
    unread = [path.name for path in transcripts]
    total = len(files) - len(untold) + len(unread)
    contents.lacks(part, unread, total, "transcript", "without a .flac")


def _transcripts(contents: Contents, tables: Iterable[Path]) -> dict[Path, str]:
    """Path of an utterance without its ending -> its text."""
    texts = {}
    for table in tables:
        try:
            lines = require_text(table, "cannot be read", largest=LONGEST).splitlines()
        except StageError as error:
            contents.problems += error.problems
            continue
        for line in lines:
            name, _, text = line.strip().partition(" ")
            if text:
                texts[table.parent / name] = text.lower()
    return texts
