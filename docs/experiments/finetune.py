"""Fine-tuning against training from nothing, on spoken digits, as Markdown.

    export STAGECLI_DATA=DIR OMP_NUM_THREADS=1      # DIR holds fsdd/manifest.jsonl
    python docs/experiments/finetune.py

A small model learns the digits of three speakers. From its weights, and from nothing, models of the
same size then learn those of a fourth from 40 clips, in equal steps, for several seeds; and one run
goes on with the same three speakers, for the loss that it starts at. The figures are `valid/loss`
of the EMA weights on the fixed grid of t. Some three minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stagecli.recipe.load import load_recipe
from stagecli.report.rows import read_rows
from stagecli.terminal.views import QuietView
from stagecli.train.launch import train

SPEAKERS = ("george", "jackson", "lucas")
NEW = "theo"
FEW = 40  # training clips of the new speaker
STEPS = 400  # of the source
TUNED = 100  # of each run on the new speaker
EVERY = 25  # steps between validation losses
SEEDS = (0, 1, 2)
COMMON = (
    "model.width=96",
    "model.depth=4",
    "model.heads=3",
    "train.batch_size=16",
    "train.warmup_steps=10",
    "train.ema=0.98",
    "train.precision=fp32",
    "train.samples=0",
    f"train.validate_every={EVERY}",
    "data.workers=0",
)


def write_manifest(path: Path, speakers: Sequence[str], most: int | None = None) -> Path:
    """A manifest of some speakers' clips; most: training clips, evenly over the digits."""
    folder = Path(os.environ["STAGECLI_DATA"]).resolve() / "fsdd"
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["speaker"] in speakers]
    if most is not None:
        training = [row for row in rows if row["split"] == "train"]
        kept = training[:: len(training) // most][:most]
        rows = kept + [row for row in rows if row["split"] != "train"]
    lines = [json.dumps({**row, "path": str(folder / row["path"])}) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def losses(folder: Path, name: str, manifest: Path, steps: int, *more: str) -> dict[int, float]:
    """Train a run; its validation loss by step."""
    changes = [*COMMON, f"data.path={manifest}", f"train.steps={steps}", *more]
    recipe = load_recipe(
        "fsdd-t2a", [*changes, f"train.checkpoint_every={steps}", f"data.cache_dir={folder}/cache"]
    )
    train(recipe, folder / "runs" / name, QuietView())
    rows = read_rows(folder / "runs" / name / "metrics.jsonl", [], expected=True)
    return {row["step"]: row["valid/loss"] for row in rows if "valid/loss" in row}


def cell(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds."""
    if len(values) < 2:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the source")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        init = f"train.init={folder}/runs/source"

        # The source, and a run that goes on with the same data.
        known = write_manifest(folder / "known.jsonl", SPEAKERS)
        source = losses(folder, "source", known, options.steps)
        same = losses(folder, "same", known, EVERY, init, "train.lr=1e-4")
        print(f"source: {source[EVERY]:.6f} at step {EVERY}, ", end="")
        print(f"{source[options.steps]:.6f} at step {options.steps}")
        print(f"started from it: {same[0]:.6f} at step 0, {same[EVERY]:.6f} at step {EVERY}\n")

        # A new speaker.
        new = write_manifest(folder / "new.jsonl", [NEW], FEW)
        tuned = []
        nothing = []
        for seed in SEEDS:
            of_seed = f"train.seed={seed}"
            tuned.append(losses(folder, f"tuned{seed}", new, TUNED, init, of_seed))
            nothing.append(losses(folder, f"nothing{seed}", new, TUNED, of_seed))

    # The table.
    print("| step | fine-tuned | from nothing |")
    print("|---|---|---|")
    print(f"| 0 | {cell([run[0] for run in tuned])} | |")
    for step in range(EVERY, TUNED + 1, EVERY):
        columns = [cell([run[step] for run in runs]) for runs in (tuned, nothing)]
        print(f"| {step} | {columns[0]} | {columns[1]} |")


if __name__ == "__main__":
    main()
