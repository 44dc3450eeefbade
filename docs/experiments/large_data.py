"""Start-up and memory with a manifest of a million lines, and with 10 to 1000 shards.

    OMP_NUM_THREADS=1 python docs/experiments/large_data.py manifest --clips 1000000
    OMP_NUM_THREADS=1 python docs/experiments/large_data.py shards --counts 10 100 1000

Clips are 64 ms of noise, hard links of a few files where there are many. Each figure is that of a
process of its own, which opens the data as `train` does, compares it with that of its run, and
takes three batches from a loader process. Memory is the resident memory at its peak, less that with
a data set of a hundred clips: what the data add to a program with torch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RATE = 16000
CLIP_BYTES = 4096 + 512  # of a clip in a tar: two headers, 2 kB of audio, a line of JSON
PER_INODE = 20_000  # hard links of one file
RECIPE = """
[task]
kind = "t2a"
[data]
source = "{source}"
path = "{path}"
cache_dir = "{cache}"
sample_rate = 16000
seconds = 0.064
workers = 1
[codec]
kind = "mel"
n_fft = 128
hop = 64
n_mels = 8
[condition]
text = "bytes"
max_length = 64
[model]
width = 32
depth = 1
heads = 1
[train]
steps = 10
batch_size = 16
"""


# -- data ------------------------------------------------------------------------------------------


def write_audio(folder: Path, clips: int) -> list[str]:
    """Names of so many files, most of them hard links."""
    import numpy as np
    import soundfile

    names = []
    for number in range(clips):
        if number % 1000 == 0:
            (folder / f"{number // 1000:04d}").mkdir(parents=True)
        name = f"{number // 1000:04d}/{number:07d}.wav"
        if number % PER_INODE == 0:
            noise = np.random.default_rng(number).standard_normal(1024)
            first = folder / name
            soundfile.write(first, 0.1 * noise, RATE)
        else:
            os.link(first, folder / name)
        names.append(name)
    return names


def write_manifest(folder: Path, clips: int, cache: Path | None = None) -> Path:
    """A manifest of so many clips, one in a hundred of them valid; `cache`: see `note_checks`."""
    path = folder / "manifest.jsonl"
    names = write_audio(folder, clips)
    if cache is not None:
        note_checks(folder, names, cache)
    with path.open("w") as file:
        for number, name in enumerate(names):
            split = "valid" if number % 100 == 99 else "train"
            caption = f"sound number {number} of many"
            row = {"path": name, "caption": caption, "split": split, "label": number % 50}
            file.write(json.dumps(row) + "\n")
    return path


def note_checks(folder: Path, names: list[str], cache: Path) -> None:
    """Note what the check of each file would find and its hash, so that no start decodes them.

    Files that are links of one file share what was found.
    """
    from stagecli.data.audio_checks import check_content
    from stagecli.data.checking import CHECKS, as_json
    from stagecli.data.file_index import FileIndex, content_hash, stamp_of

    checks = FileIndex(cache / "checks.jsonl", CHECKS)
    hashes = FileIndex(cache / "hashes.jsonl", 1)
    for start in range(0, len(names), PER_INODE):
        group = names[start : start + PER_INODE]
        first = folder / group[0]
        check = as_json(check_content(first))
        digest = content_hash(first)
        stamp = stamp_of(first)
        checks.put_all((str(folder / name), stamp, check) for name in group)
        hashes.put_all((str(folder / name), stamp, digest) for name in group)


def write_shards(folder: Path, count: int, clips: int) -> tuple[Path, int]:
    """About so many shards of so many clips together: where they are, and their number."""
    from stagecli.data.pack import pack
    from stagecli.schema import Data

    manifest = write_manifest(folder / "audio", clips)
    each = CLIP_BYTES * clips // count
    data = Data(source="manifest", path=str(manifest), sample_rate=RATE, seconds=1.0)
    shards = pack(
        data,
        folder / "tars",
        shard_bytes=each,
        force=False,
        cache_dir=folder / "pack",
        progress=lambda *_: None,
    )
    return folder / "tars", len(shards)


# -- one start, in a process of its own ------------------------------------------------------------


def start(recipe_path: Path, run_dir: Path) -> None:
    """Open the data as `train` does, and print seconds and memory as JSON."""
    import torch

    from stagecli.data.examples import Examples
    from stagecli.data.loader import MicroBatches, loader, read_batch
    from stagecli.recipe.load import load_recipe
    from stagecli.train.data_check import compare, examine, open_training_data

    recipe = load_recipe(recipe_path)
    torch.zeros(1)
    begin = time.perf_counter()
    source = open_training_data(recipe, lambda *_: None)
    opened = time.perf_counter()
    check = compare(examine(recipe, source, None, lambda *_: None), run_dir, accept=False)
    examples = Examples(
        recipe, source, source.clips("train"), shape=(16, 8), crop_samples=1024, hop=64
    )
    order = MicroBatches(batch_size=16, accumulate=1, rank=0, world=1, start=0, stop=3)
    batches = iter(loader(examples, order))
    sums = [float(read_batch(batches)["audio"].sum()) for _ in range(3)]
    ready = time.perf_counter()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "clips": check.report.facts["splits"]["train"]["clips"],
                "open_s": opened - begin,
                "ready_s": ready - begin,
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "peak_mib": usage.ru_maxrss / 1024,
                "sums": sums,
            }
        )
    )


def measure(folder: Path, source: str, path: Path, starts: int) -> list[dict[str, Any]]:
    """What some starts in a row on one data set took."""
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(source=source, path=path, cache=folder / "cache"))
    run_dir = folder / "run"
    run_dir.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "start", str(recipe), str(run_dir)]
    rows = []
    for _ in range(starts):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        rows.append(json.loads(done.stdout))
    return rows


def show(name: str, rows: list[dict[str, Any]], base_mib: float) -> None:
    """One line per start."""
    for number, row in enumerate(rows, 1):
        print(
            f"| {name} | {number} | {row['open_s']:.1f} | {row['ready_s']:.1f} | "
            f"{row['peak_mib'] - base_mib:.0f} |",
            flush=True,
        )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["manifest", "shards", "start"])
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--noted", action="store_true", help="spare the first start all decoding")
    parser.add_argument("--folder", type=Path, help="where the data are made; default: a new one")
    options = parser.parse_args()
    if options.what == "start":
        start(*map(Path, options.paths))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "small").mkdir()
        small = write_manifest(folder / "small", 100)
        base = measure(folder / "small", "manifest", small, 2)[-1]["peak_mib"]
        print("| data | start | opened, s | first batches, s | memory above 100 clips, MiB |")
        print("|---|---|---|---|---|")
        if options.what == "manifest":
            (folder / "large").mkdir()
            cache = folder / "large" / "cache" if options.noted else None
            path = write_manifest(folder / "large", options.clips, cache)
            rows = measure(folder / "large", "manifest", path, options.starts)
            show(f"{options.clips:,} lines", rows, base)
            return
        for count in options.counts:
            place = folder / str(count)
            tars, number = write_shards(place, count, options.clips)
            rows = measure(place, "shards", tars, options.starts)
            show(f"{options.clips:,} clips in {number} shards", rows, base)


if __name__ == "__main__":
    main()
