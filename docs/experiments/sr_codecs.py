"""Compare lossless codecs for super-resolution: one short training each, scored on the valid split.

    STAGECLI_DATA=DIR python docs/experiments/sr_codecs.py --steps 400 --seeds 0 1

Every run is esc10-sr-static with the width and depth of esc10-sr, and a few keys changed. The crop
is 1.486 s for all, so a codec with half the hop has twice the frames and takes about twice the time
per step.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

SETTINGS: dict[str, list[str]] = {
    "stft 2048/1024": [],
    "stft 1024/512": ["codec.n_fft=1024", "codec.hop=512"],
    "mdct 1024": ['codec.kind="mdct"', "codec.hop=1024"],
    "mdct 512": ['codec.kind="mdct"', "codec.hop=512"],
    "stft, alpha 0.2": ["codec.alpha=0.2"],
    "stft, plain output": ['model.output="plain"'],
}


def run(arguments: list[str]) -> str:
    """Run a stagecli command; its stdout."""
    command = [sys.executable, "-m", "stagecli", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def train(name: str, seed: int, steps: int, runs_dir: Path) -> tuple[Path, float]:
    """Train one setting; its run directory, and the seconds it took."""
    label = re.sub(r"\W+", "-", name) + f"_s{seed}"
    size = ["model.width=256", "model.depth=6", "model.heads=4"]
    budget = [f"train.steps={steps}", f"train.seed={seed}", "train.samples=0"]
    keys = [*size, *budget, *SETTINGS[name]]
    flags = [flag for key in keys for flag in ("--set", key)]
    began = time.monotonic()
    run(["train", "esc10-sr-static", "-q", "--name", label, "--runs-dir", str(runs_dir), *flags])
    return runs_dir / label, time.monotonic() - began


def print_scores(name: str, seed: int, run_dir: Path, clips: int, seconds: float) -> None:
    """One line per system and cutoff."""
    flags = ["--split", "valid", "--samples", str(clips), "--json"]
    cutoffs = ["--cutoff", "4000", "--cutoff", "12000"]
    document = json.loads(run(["evaluate", str(run_dir), *flags, *cutoffs]))
    for row in document["rows"]:
        values = {k: v["value"] for k, v in row["metrics"].items()}
        shown = "  ".join(f"{key} {value:.3f}" for key, value in values.items())
        head = f"{name:26} seed {seed}  {row['cutoff']:>6.0f} Hz  {row['system']:12}"
        print(f"{head}  {shown}  train {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--clips", type=int, default=20, help="validation clips to score")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS), metavar="SETTING"
    )
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    options = parser.parse_args()
    for seed in options.seeds:
        for name in options.only:
            run_dir, seconds = train(name, seed, options.steps, options.runs_dir)
            print_scores(name, seed, run_dir, options.clips, seconds)


if __name__ == "__main__":
    main()
