"""Compare static training, each mechanism alone, all three, and all three with another seed's r.

    export STAGECLI_DATA=DIR OMP_NUM_THREADS=1
    python docs/experiments/compare_stages.py run runs/compare fsdd-t2a=390 esc10-sr=300 --workers 2
    python docs/experiments/compare_stages.py table runs/compare
    python docs/experiments/compare_stages.py score runs/compare --cfg-scale 1.5 --workers 2
    python docs/experiments/compare_stages.py plot runs/compare --out docs/compare

A run is the recipe NAME-static with stage sections added; `stage.regime` is on in all of them, as
it does not affect training. Runs of one seed use the same clips, noise and order. `structure`
aligns from 30 % of the budget on; in `all` it only measures, as in the recipe. Finished runs
are kept. `score` scores the last checkpoints of t2a runs again at other values of cfg_scale
(classifier-free guidance), because the best value moves with training. The tables give mean and
standard deviation over seeds, and the difference from `static` by seed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import tomllib
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare_tables import SCORES, plot, print_tables, scores_of, task_of

GUIDANCE = "stage.guidance.weight=0.5"
TIMESTEPS = "stage.timesteps.kind=progress"
ALL = [GUIDANCE, TIMESTEPS, "stage.structure.when=converged"]
VARIANTS: dict[str, list[str]] = {
    "static": [],
    "timesteps": [TIMESTEPS],
    "structure": [
        "stage.structure.action=align",
        "stage.structure.when=step",
        "stage.structure.at=0.3",
    ],
    "guidance": [GUIDANCE],
    "all": ALL,
    "replayed": [*ALL, "stage.regime.source=replay"],
}
PROBES = 50  # per run
EVALUATIONS = 3  # per run
TASKS = {
    "t2a": ["train.evaluate_clips=180", "train.evaluate_steps=10", "evaluate.batch_size=60"],
    "sr": ["train.evaluate_clips=40", "evaluate.cutoffs=[4000, 12000]"],
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What all runs share: their folder, all seeds, and `--set` values from the command line."""

    runs: Path
    seeds: list[int]
    overrides: list[str]

    def run_dir(self, recipe: str, variant: str, seed: int) -> Path:
        return self.runs / f"{recipe}-{variant}-{seed}"

    def features_ready(self, recipe: str) -> Path:
        """A file that exists once the teacher's features are in the cache."""
        return self.runs / ".cache" / f"{recipe}.ready"


def finished(run: Path) -> bool:
    try:
        return bool(json.loads((run / "run.json").read_text())["status"] == "finished")
    except (OSError, ValueError, KeyError):
        return False


def settings(comparison: Comparison, recipe: str, steps: int, variant: str, seed: int) -> list[str]:
    """The `--set` values of a run."""
    from stagecli.recipe.source import find_recipe

    chosen = [
        f"train.steps={steps}",
        f"train.seed={seed}",
        f"train.log_every={max(1, steps // 20)}",
        f"train.evaluate_every={steps // EVALUATIONS}",
        f"train.validate_every={steps // EVALUATIONS}",
        f"train.checkpoint_every={steps}",
        "train.samples=0",
        f"data.cache_dir={comparison.runs / '.cache'}",
        "stage.regime.clips=16",
        f"stage.regime.every={max(1, steps // PROBES)}",
        *TASKS[task_of(recipe)],
        *VARIANTS[variant],
        *comparison.overrides,
    ]
    if TIMESTEPS in chosen:  # with the other options of the `-stage` twin
        section = tomllib.loads(find_recipe(f"{recipe}-stage").read_text())["stage"]["timesteps"]
        chosen += [
            f"stage.timesteps.{key}={value}" for key, value in section.items() if key != "kind"
        ]
    if variant == "replayed":
        place = comparison.seeds.index(seed)
        other = comparison.seeds[(place + 1) % len(comparison.seeds)]
        chosen.append(f"stage.regime.replay={comparison.run_dir(recipe, 'all', other)}")
    return chosen


def work(jobs: Any, comparison: Comparison, began: float) -> None:
    """Worker process: takes runs off the queue until it is empty."""
    from stagecli.recipe.load import load_recipe
    from stagecli.terminal.views import QuietView
    from stagecli.train.launch import prepare_only, train

    while (job := jobs.get()) is not None:
        recipe, steps, variant, seed = job
        run = comparison.run_dir(recipe, variant, seed)
        if finished(run):
            continue
        ready = comparison.features_ready(recipe)
        try:
            # The teacher's features are computed once, by the first job.
            if variant == "features":
                chosen = settings(comparison, recipe, steps, "guidance", seed)
                prepare_only(load_recipe(f"{recipe}-static", chosen), lambda *_: None)
                ready.touch()
                continue
            # A guided run waits for them, a replayed run for the run whose r it replays.
            chosen = settings(comparison, recipe, steps, variant, seed)
            needed = [
                Path(s.partition("=")[2]) for s in chosen if s.startswith("stage.regime.replay=")
            ]
            while (GUIDANCE in chosen and not ready.exists()) or not all(map(finished, needed)):
                time.sleep(0.5)
            status = train(
                load_recipe(f"{recipe}-static", chosen), run, QuietView(), overrides=chosen
            )
            print(f"{time.monotonic() - began:6.0f} s  {run.name}: {status}", flush=True)
            if status != "finished":  # Ctrl-C or SIGTERM, which stop this process too
                return
        except Exception:
            print(f"{run.name}:\n{traceback.format_exc()}", flush=True)


def run_all(
    comparison: Comparison, budgets: dict[str, int], chosen: list[str], workers: int
) -> None:
    """Train every chosen variant of every recipe and seed, `workers` at a time."""
    context = multiprocessing.get_context("spawn")
    (comparison.runs / ".cache").mkdir(parents=True, exist_ok=True)
    jobs: Any = context.Queue()
    # `all` comes early, because `replayed` waits for it.
    order = ["features", *sorted(chosen, key=lambda variant: variant != "all")]
    for variant in order:
        for seed in comparison.seeds[: 1 if variant == "features" else None]:
            for recipe, steps in budgets.items():
                jobs.put((recipe, steps, variant, seed))
    began = time.monotonic()
    processes = [
        context.Process(target=work, args=(jobs, comparison, began)) for _ in range(workers)
    ]
    for process in processes:
        jobs.put(None)
        process.start()
    for process in processes:
        process.join()


def score(run: Path, scales: list[float]) -> None:
    """Score the last checkpoint of a run at each cfg_scale, as the run does; writes SCORES."""
    from dataclasses import replace

    import torch
    from accelerate import Accelerator

    from stagecli.generate.pipeline import load_pipeline
    from stagecli.train.prepare import prepare
    from stagecli.train.scorer import build_scorer

    pipeline, _ = load_pipeline(run)
    prepared = prepare(pipeline.recipe, run, torch.device("cpu"), lambda *_: None)
    scorer = build_scorer(prepared, pipeline, Accelerator(cpu=True), lambda *_: None)
    scores = {}
    for scale in scales:
        scorer.settings = replace(scorer.settings, cfg_scale=scale)
        scores[scale] = scorer.measure()
    (run / SCORES).write_text(json.dumps(scores, indent=1))
    print(f"{run.name} scored", file=sys.stderr, flush=True)


def score_all(runs: Path, scales: list[float], workers: int) -> None:
    """Score all finished t2a runs that are not yet scored at these values of cfg_scale."""
    wanted = set(map(str, scales))
    paths = sorted(p.parent for p in runs.glob("*/run.json"))
    t2a = [run for run in paths if "-sr-" not in run.name and finished(run)]
    unscored = [run for run in t2a if not wanted <= scores_of(run).keys()]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(score, [(run, scales) for run in unscored], chunksize=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "score", "table", "plot"))
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("budgets", nargs="*", metavar="RECIPE=STEPS", help="run: what to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("compare"), help="plot: OUT-RECIPE.svg")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument(
        "--cfg-scale", type=float, nargs="+", default=[1.5], help="score: values of cfg_scale"
    )
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for all runs (repeatable)"
    )
    args = parser.parse_args()
    if args.action == "run":
        budgets = {name: int(steps) for name, _, steps in (b.partition("=") for b in args.budgets)}
        if not budgets:
            parser.error("name at least one RECIPE=STEPS")
        comparison = Comparison(runs=args.runs, seeds=args.seeds, overrides=args.set)
        run_all(comparison, budgets, args.variants, args.workers)
    if args.action == "score":
        score_all(args.runs, args.cfg_scale, args.workers)
    if args.action == "plot":
        plot(args.runs, args.out)
    else:
        print_tables(args.runs)


if __name__ == "__main__":
    main()
