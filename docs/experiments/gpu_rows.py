"""Rows of the table of `gpu_check.py`, and what its checks are given."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from timed_session import Session

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


@dataclass
class Row:
    """check: what was measured; value: in words; aim: what was hoped for; ok: None where no aim."""

    check: str
    value: str
    aim: str = ""
    ok: bool | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Place:
    """folder: for caches; data: `--set` values that choose the data; full: measure more;
    end: of the time there is, on the monotonic clock.
    """

    folder: Path
    data: tuple[str, ...]
    full: bool
    end: float

    def session(self, name: str, *settings: str, compile_blocks: bool = True) -> Session:
        path = self.folder / f"{time.monotonic_ns()}"
        values = (*self.data, *settings)
        return Session(name, values, path, compile_blocks=compile_blocks)


def short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def print_table(rows: list[Row]) -> None:
    device = torch.cuda.get_device_name() if CUDA else f"CPU ({platform.machine()}), small sizes"
    print(f"\n{device}; torch {torch.__version__}; {os.cpu_count()} cores\n")
    print("| check | result | aim | |\n|---|---|---|---|")
    for row in rows:
        mark = {True: "ok", False: "NO", None: ""}[row.ok]
        print(f"| {row.check} | {row.value} | {row.aim} | {mark} |")
