"""Every number of a recipe at both ends of its allowed range: a dry run, and two real steps.

    python tests/fuzz_recipes.py [--only train.lr] [--skip 20] [--seconds 30] [--gigabytes 6]

Not part of the suite. Every input starts in a process of its own, with bounded memory and time.
Right is exit code 0, or one error with exit code 1 or 2. What takes longer than the bound is slow:
some numbers mean hours of work. Exit status 1 for tracebacks, crashes and several errors.
"""

from __future__ import annotations

import argparse
import importlib
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_type_hints

from conftest import run_cli, write_recipe
from pydantic import BaseModel

from stagecli.bounds import Length, Range
from stagecli.schema import Recipe
from stagecli.stage import registry

BUSY = {"train__steps": 2, "train__validate_every": 2, "train__sample_every": 2}
EVALUATED = {"train__evaluate_every": 2, "train__evaluate_clips": 4}
REGIME = {"stage__regime__every": 1, "stage__regime__clips": 4, "stage__regime__partial_band": True}
MECHANISMS: dict[str, dict[str, Any]] = {
    "regime": {},
    "guidance": {"stage__guidance__hidden": 16},
    "timesteps": {"stage__timesteps__floor": 0.2},
    "structure": {"stage__structure__when": "always", "model__depth": 4},
}
SR_KEYS = {"condition.cutoff", "condition.orders", "evaluate.cutoffs", "evaluate.order"}
# Keys that something else has to allow, with it.
WITH: dict[str, dict[str, Any]] = {
    "objective.mean": {"objective__density": "logit-normal"},
    "objective.std": {"objective__density": "logit-normal"},
    "train.accumulate": {"train__batch_size": 4},
}
IMPORTS = ("cli", "train.launch", "train.dry_run", "evaluate.command", "generate.pipeline")


def ranges(annotation: Any) -> Iterator[tuple[type, Range]]:
    """(int or float, its range) of everything numeric in an annotation."""
    metadata = getattr(annotation, "__metadata__", ())
    for limits in metadata:
        if isinstance(limits, Range):
            yield get_args(annotation)[0], limits
    for part in get_args(annotation):
        if not isinstance(part, Range | Length):
            yield from ranges(part)


def is_list(annotation: Any) -> bool:
    """Whether a key holds several numbers."""
    return "tuple" in str(annotation)


def ends(kind: type, limits: Range) -> list[int | float]:
    """The lowest and the highest number of a range."""
    low, high = limits.low, limits.high
    if kind is int:
        return [int(low), int(high)]
    return [
        math.nextafter(low, math.inf) if limits.open_low else float(low),
        math.nextafter(high, -math.inf) if limits.open_high else float(high),
    ]


def numeric_keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, list[Any]]]:
    """(key, values to try) of every numeric key of a section and those in it."""
    hints = get_type_hints(model, include_extras=True)
    for name in model.model_fields:
        annotation = hints[name]
        key = f"{prefix}.{name}" if prefix else name
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from numeric_keys(annotation, key)
            continue
        limits = list(ranges(annotation))
        if not limits:
            continue
        values: list[Any] = ends(*limits[0])
        if is_list(annotation):
            values = [[value, value] for value in values] + [values]
        yield key, values


def inputs() -> Iterator[tuple[str, Any, str, dict[str, Any]]]:
    """(key, value, task, changes to the tiny recipe of the task)."""
    keys = list(numeric_keys(Recipe, ""))
    for name in registry.MECHANISMS:
        options = registry.load(name).Options
        keys += numeric_keys(options, f"stage.{name}")
    for key, values in keys:
        changes = dict(BUSY)
        if key.startswith("stage."):
            changes |= REGIME | MECHANISMS[key.split(".")[1]]
        if "evaluate" in key:
            changes |= EVALUATED
        changes |= WITH.get(key, {})
        tasks = ["sr"] if key in SR_KEYS else ["t2a"]
        if key.startswith("codec."):
            tasks.append("sr")
        for task in tasks:
            for value in values:
                yield key, value, task, {**changes, key.replace(".", "__"): value}


def attempt(folder: Path, recipe: Path, flags: list[str], gigabytes: float) -> None:
    """One command in this process, its result in files of `folder`."""
    import torch

    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = used + int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    result = run_cli("train", recipe, *flags, cwd=folder)
    (folder / "result.txt").write_text(f"{result.code}\n{result.stderr}")
    os._exit(0)


def outcome(folder: Path, recipe: Path, flags: list[str], options: Any) -> tuple[str, str]:
    """("right", "slow" or "wrong", details) of one command."""
    (folder / "result.txt").unlink(missing_ok=True)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=attempt, args=(folder, recipe, flags, options.gigabytes))
    process.start()
    process.join(options.seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return "slow", ""
    if not (folder / "result.txt").exists():
        return "wrong", f"ended by {process.exitcode}"
    code, _, stderr = (folder / "result.txt").read_text().partition("\n")
    errors = stderr.count("error: ")
    if "Traceback" in stderr or int(code) not in (0, 1, 2) or errors != (code != "0"):
        return "wrong", f"exit code {code}\n{stderr[-3000:]}"
    return "right", " ".join(stderr.split())[:150] if code != "0" else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="keys that contain this")
    parser.add_argument("--skip", type=int, default=0, help="inputs at the beginning")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--gigabytes", type=float, default=6)
    options = parser.parse_args()
    for module in IMPORTS:
        importlib.import_module(f"stagecli.{module}")

    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        for number, (key, value, task, changes) in enumerate(inputs()):
            if options.only not in key or number < options.skip:
                continue
            folder = Path(place) / str(number)
            folder.mkdir()
            recipe = write_recipe(folder / "r.toml", task, **changes)
            for flags in (["--dry-run"], []):
                began = time.monotonic()
                verdict, details = outcome(folder, recipe, flags, options)
                counts[verdict] += 1
                seconds = time.monotonic() - began
                command = "dry run" if flags else "train"
                tried = f"{task} {key} = {value}: {command}"
                print(f"{number:3} {verdict:5} {seconds:5.1f} s  {tried} {details}", flush=True)
                if verdict != "right":
                    break  # the real run would say the same, or take as long
            with suppress(OSError):
                for file in folder.rglob("*.safetensors"):
                    file.unlink()
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
