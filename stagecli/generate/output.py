"""Where `stagecli sample` writes: a folder of audio files with a samples.jsonl beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from stagecli.data.finding import SUFFIXES
from stagecli.errors import EXIT_FAILED, Problem, StageError
from stagecli.files import JsonRow, append_json_lines, json_line, read_json_lines
from stagecli.generate.encoding import SUBTYPES, Encoding
from stagecli.generate.listening import (
    FLOAT_WAV,
    LISTING,
    loudness_note,
    write_listening,
    write_long_listening,
)
from stagecli.generate.settings import SamplerSettings
from stagecli.generate.trained import Trained
from stagecli.targets import Target, plan_targets, write_target


@dataclass(frozen=True, kw_only=True)
class Destination:
    """What the flags of `sample` say about its files.

    output: --output, a folder or one file, or None for a new folder in the run; encoding: of the
    files; force: replace files that exist; warn, note: print a line.
    """

    output: Path | None
    encoding: Encoding = FLOAT_WAV
    force: bool = False
    warn: Callable[[str], None]
    note: Callable[[str], None]

    @property
    def is_single_file(self) -> bool:
        """Whether one audio file is named rather than a folder."""
        return self.output is not None and self.output.suffix.lower() == self.encoding.suffix

    def name(self, default: str) -> str:
        """The name of the only file if the flags give one, else `default`."""
        return self.output.name if self.output and self.is_single_file else default

    def require_encoding(self, sample_rate: int, shape: tuple[int, int]) -> None:
        """Raise StageError unless audio of this rate and shape can be written in the format."""
        problem = self.encoding.problem(sample_rate, shape)
        if problem:
            raise StageError(
                f"--format {self.encoding.format}: {problem}", hint="choose another --format"
            )


@dataclass(kw_only=True)
class Results:
    """Writes the files of one call, each with its row in samples.jsonl as soon as it is whole.

    listed: names that samples.jsonl has rows of already; rows: the new ones, with `file` added,
    which includes the folder.
    """

    folder: Path
    encoding: Encoding
    force: bool
    listed: set[str]
    rows: list[JsonRow] = field(default_factory=list)

    def add(self, name: str, audio: np.ndarray, sample_rate: int, row: JsonRow) -> None:
        """Write audio [N] or [N, channels]; name: relative to the folder. Raises StageError."""
        path = self.folder / name
        write = partial(write_target, force=self.force)
        levels = write_listening(path, audio, sample_rate, write=write, encoding=self.encoding)
        self._list(name, row, levels)

    def add_long(
        self,
        name: str,
        blocks: Iterable[np.ndarray],
        shape: tuple[int, int],
        sample_rate: int,
        row: JsonRow,
    ) -> None:
        """`add` for audio in blocks [n, channels], of `shape` in all."""
        path = self.folder / name
        write = partial(write_target, force=self.force)
        levels = write_long_listening(
            path, blocks, shape, sample_rate, write=write, encoding=self.encoding
        )
        self._list(name, row, levels)

    def _list(self, name: str, row: JsonRow, levels: JsonRow) -> None:
        listed = {"path": name, **row, **asdict(self.encoding), **levels}
        listing = self.folder / LISTING
        if name in self.listed:
            lines = _lines_without(listing, name)
            write_target(listing, b"".join([*lines, json_line(listed).encode()]), force=True)
        else:
            _append(listing, listed)
        self.rows.append({**listed, "file": str(self.folder / name)})


@contextmanager
def open_results(
    destination: Destination,
    default_folder: Path,
    *,
    names: Sequence[tuple[str, str]],
    inputs: Sequence[Path] = (),
) -> Iterator[Results]:
    """Check that every file can be written, before any work; reports at the end what was written.

    default_folder: a number is added to it, so that every call has a new one; names: (name in the
    folder, prompt or input that it is made from); inputs: files that are read. Raises StageError.
    """
    folder = _folder(destination, default_folder)
    try:
        plan_targets(
            [Target(folder / name, origin) for name, origin in names],
            inputs=inputs,
            force=destination.force,
            make_folders=True,
        )
        listing = Target(folder / LISTING, "the list of samples")
        plan_targets([listing], inputs=inputs, force=True, make_folders=True)
        results = Results(
            folder=folder,
            encoding=destination.encoding,
            force=destination.force,
            listed=_listed_names(listing.path),
        )
        yield results
    except BaseException:
        if destination.output is None:
            with suppress(OSError):  # keeps what has been written
                folder.rmdir()
        raise
    number = len(results.rows)
    destination.note(f"wrote {number} {'file' if number == 1 else 'files'} to {folder}")
    line = loudness_note(results.rows)
    if line:
        destination.warn(line)


def provenance(settings: SamplerSettings, trained: Trained) -> JsonRow:
    """What a row of samples.jsonl records about how its file was made."""
    options: dict[str, Any] = asdict(settings)
    options.pop("batch_size")  # has no effect on the result
    return {**options, "run": str(trained.home), "checkpoint": trained.name}


def _folder(destination: Destination, default: Path) -> Path:
    """The folder to write to; the default one is created here, so that no other call gets it."""
    output = destination.output
    if output is not None:
        if destination.is_single_file:
            return output.parent
        if output.suffix.lower() in SUFFIXES and not output.is_dir():
            endings = " ".join(f".{name}" for name in SUBTYPES)
            raise StageError(
                f"cannot write {output}: that format is not written",
                hint=f"end the file name in one of {endings}, or name a folder",
            )
        return output
    try:
        default.parent.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            folder = default.with_name(f"{default.name}_{number:03d}")
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise StageError(
            "cannot write the samples",
            problems=[Problem(str(default.parent), error.strerror or str(error))],
            hint="give another place with --output",
        ) from error
    raise AssertionError("numbers do not end")


def _append(listing: Path, row: JsonRow) -> None:
    try:
        append_json_lines(listing, [row])
    except OSError as error:
        raise StageError(
            f"cannot write {listing}: {error.strerror}",
            hint="free some space, or choose another place",
            exit_code=EXIT_FAILED,
        ) from error


def _listed_names(listing: Path) -> set[str]:
    """The files that have a row."""
    if not listing.is_file():
        return set()
    rows = (row for _, row in read_json_lines(listing) if isinstance(row, dict))
    return {row["path"] for row in rows if isinstance(row.get("path"), str)}


def _lines_without(listing: Path, name: str) -> list[bytes]:
    """The lines of a listing, whole and as they are, without the row of one file."""
    lines = [line + b"\n" for line in listing.read_bytes().split(b"\n") if line.strip()]
    return [line for line in lines if not _is_row_of(line, name)]


def _is_row_of(line: bytes, name: str) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and row.get("path") == name
