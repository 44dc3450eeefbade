"""Static training, each mechanism alone, all three, and all three with r replayed from another seed: runs and tables.

    export STAGECLI_DATA=DIR OMP_NUM_THREADS=1
    python docs/experiments/compare_stages.py run runs/compare fsdd-t2a=390 esc10-sr=300 --workers 2
    python docs/experiments/compare_stages.py table runs/compare
    python docs/experiments/compare_stages.py score runs/compare --cfg-scale 1.5 --workers 2
    python docs/experiments/compare_stages.py plot runs/compare --out docs/compare

A run is the recipe NAME-static with tables added, `stage.regime` in all of them (it changes nothing that is trained).
Runs of one seed see the same clips, noise and order. `structure` is forced on at 30 % of the budget, as its own test
has never let it begin in runs of this length; in `all` it waits for its test, as in the recipe. Runs that are there
already are kept. `score` scores the last checkpoints of t2a runs again with other strengths of classifier-free
guidance, as the best strength moves with training. The tables give mean and standard deviation over seeds, and the
difference to `static` by seed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
import tomllib
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# and what the twin says
GUIDANCE = "stage.guidance.weight=0.5"
TIMESTEPS = "stage.timesteps.kind=adaptive"
ALL = [GUIDANCE, TIMESTEPS, "stage.structure.when=converged"]
VARIANTS: dict[str, list[str]] = {
    "static": [],
    "timesteps": [TIMESTEPS],
    "structure": ["stage.structure.when=step", "stage.structure.at=0.3"],
    "guidance": [GUIDANCE],
    "all": ALL,
    "replayed": [*ALL, "stage.regime.source=replay"],
}
# CPU time of a step over static's, side by side in one process (docs/structure.md#cost): runs of a comparison share
# their machine with each other, and their own step times differ by more than this.
COST = {
    "t2a": {
        "timesteps": 0.004,
        "structure": 0.016,
        "guidance": 0.036,
        "all": 0.069,
        "replayed": 0.069,
    },
    "sr": {
        "timesteps": 0.003,
        "structure": 0.016,
        "guidance": 0.026,
        "all": 0.018,
        "replayed": 0.018,
    },
}
# of a run
PROBES = 50
EVALUATIONS = 3
TASKS = {
    "t2a": ["train.evaluate_clips=180", "train.evaluate_steps=10", "evaluate.batch_size=60"],
    "sr": ["train.evaluate_clips=40", "evaluate.cutoffs=[4000, 12000]"],
}
SHOWN = {
    "t2a": ("valid/loss", "eval/kad", "eval/fd_judge", "eval/fd_log_mel"),
    "sr": ("valid/loss", "eval/lsd_4000", "eval/lsd_12000", "eval/lsd_hf_4000", "eval/si_sdr_4000"),
}


def folder(runs: Path, recipe: str, variant: str, seed: int) -> Path:
    return runs / f"{recipe}-{variant}-{seed}"


def finished(run: Path) -> bool:
    try:
        return bool(json.loads((run / "run.json").read_text())["status"] == "finished")
    except (OSError, ValueError, KeyError):
        return False


def settings(
    runs: Path, recipe: str, steps: int, variant: str, seed: int, seeds: list[int], more: list[str]
) -> list[str]:
    """What `--set` gets."""
    from stagecli.recipe import load as recipes

    task = "sr" if "-sr" in recipe else "t2a"
    chosen = [
        f"train.steps={steps}",
        f"train.seed={seed}",
        f"train.log_every={max(1, steps // 20)}",
        f"train.evaluate_every={steps // EVALUATIONS}",
        f"train.validate_every={steps // EVALUATIONS}",
        f"train.checkpoint_every={steps}",
        "train.samples=0",
        f"data.cache_dir={runs / '.cache'}",
        "stage.regime.clips=16",
        "stage.regime.window=14",
        f"stage.regime.every={max(1, steps // PROBES)}",
        *TASKS[task],
        *VARIANTS[variant],
        *more,
    ]
    if TIMESTEPS in chosen:
        table = tomllib.loads(recipes.find(f"{recipe}-stage").read_text())["stage"]["timesteps"]
        chosen += [
            f"stage.timesteps.{key}={value}" for key, value in table.items() if key != "kind"
        ]
    if variant == "replayed":
        other = seeds[(seeds.index(seed) + 1) % len(seeds)]
        chosen.append(f"stage.regime.replay={folder(runs, recipe, 'all', other)}")
    return chosen


def work(jobs: Any, runs: Path, seeds: list[int], more: list[str], began: float) -> None:
    """One process: takes runs off the queue until there is none left."""
    from stagecli.recipe import load as recipes
    from stagecli.terminal.views import QuietView
    from stagecli.train.launch import prepare_only, train

    while (job := jobs.get()) is not None:
        recipe, steps, variant, seed = job
        run = folder(runs, recipe, variant, seed)
        if finished(run):
            continue
        ready = runs / ".cache" / f"{recipe}.ready"
        try:
            if variant == "features":  # of the teacher, once for all
                chosen = settings(runs, recipe, steps, "guidance", seed, seeds, more)
                prepare_only(recipes.load(f"{recipe}-static", chosen), lambda *_: None)
                ready.touch()
                continue
            chosen = settings(runs, recipe, steps, variant, seed, seeds, more)
            needed = [
                Path(s.partition("=")[2]) for s in chosen if s.startswith("stage.regime.replay=")
            ]
            while (GUIDANCE in chosen and not ready.exists()) or not all(map(finished, needed)):
                time.sleep(0.5)
            status = train(
                recipes.load(f"{recipe}-static", chosen), run, QuietView(), overrides=chosen
            )
            print(f"{time.monotonic() - began:6.0f} s  {run.name}: {status}", flush=True)
            if status != "finished":  # Ctrl-C or SIGTERM: of this process too
                return
        except Exception:
            print(f"{run.name}:\n{traceback.format_exc()}", flush=True)


def run_all(
    runs: Path,
    budgets: dict[str, int],
    seeds: list[int],
    more: list[str],
    chosen: list[str],
    workers: int,
) -> None:
    context = multiprocessing.get_context("spawn")
    (runs / ".cache").mkdir(parents=True, exist_ok=True)
    jobs: Any = context.Queue()
    order = [
        ("features", seeds[:1]),
        *((v, seeds) for v in sorted(chosen, key=lambda v: v != "all")),
    ]
    for variant, some in order:
        for seed in some:
            for recipe, steps in budgets.items():
                jobs.put((recipe, steps, variant, seed))
    began = time.monotonic()
    processes = [
        context.Process(target=work, args=(jobs, runs, seeds, more, began)) for _ in range(workers)
    ]
    for process in processes:
        jobs.put(None)
        process.start()
    for process in processes:
        process.join()


# -- tables ----------------------------------------------------------------------------------------


def rows_of(run: Path, stream: str = "metrics") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"{stream}.jsonl").read_text().splitlines()]


def curve(run: Path, name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in rows_of(run) if row.get(name) is not None}


def cell(values: Iterable[float], seeds: int) -> str:
    found = list(values)
    if not found:
        return ""
    few = f" (of {len(found)})" if len(found) < seeds else ""
    spread = f" ± {statistics.stdev(found):.3g}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.4g}{spread}{few}"


def found_runs(runs: Path) -> dict[str, dict[str, dict[int, Path]]]:
    """recipe -> variant -> seed -> folder, of all runs that have begun."""
    found: dict[str, dict[str, dict[int, Path]]] = {}
    for path in sorted(p.parent for p in runs.glob("*/metrics.jsonl")):
        recipe, variant, seed = path.name.rsplit("-", 2)
        found.setdefault(recipe, {}).setdefault(variant, {})[int(seed)] = path
    return found


def table(runs: Path) -> None:
    for recipe, variants in found_runs(runs).items():
        task = "sr" if "-sr" in recipe else "t2a"
        ordered = [v for v in VARIANTS if v in variants]
        for name in SHOWN[task]:
            curves = {v: {s: curve(p, name) for s, p in variants[v].items()} for v in ordered}
            steps = sorted(set.union(*(set(c) for v in curves.values() for c in v.values())))
            print(
                f"\n{recipe}: {name}\n\n| variant | seeds | "
                + " | ".join(f"step {s}" for s in steps),
                end="",
            )
            print(" | at the end, against static, by seed |\n|---|---|" + "---|" * (len(steps) + 1))
            for v, by_seed in curves.items():
                cells = [
                    cell((c[s] for c in by_seed.values() if s in c), len(by_seed)) for s in steps
                ]
                same = [
                    s
                    for s, c in by_seed.items()
                    if steps[-1] in c and steps[-1] in curves["static"].get(s, {})
                ]
                last = (
                    [by_seed[s][steps[-1]] - curves["static"][s][steps[-1]] for s in same]
                    if v != "static"
                    else []
                )
                shown = (
                    f"{statistics.mean(last):+.3g} ({', '.join(f'{d:+.3g}' for d in last)})"
                    if last
                    else ""
                )
                print(f"| {v} | {len(by_seed)} | " + " | ".join(cells) + f" | {shown} |")
        if task == "t2a":
            strengths_table(recipe, variants)
        print(
            f"\n{recipe}: seconds a step, r, and events\n\n| variant | s a step | r at 1/2, 3/4, end | events |"
        )
        print("|---|---|---|---|")
        for v in ordered:
            print(f"| {v} | " + " | ".join(course(variants[v].values())) + " |")


def course(runs: Iterable[Path]) -> tuple[str, str, str]:
    """Time of a step, r on its way, and how many runs had which event."""
    runs = list(runs)
    r: list[list[float]] = []
    events: dict[str, list[int]] = {}
    for run in runs:
        probes = rows_of(run, "probes")
        r.append([probes[math.ceil(share * len(probes)) - 1]["r"] for share in (0.5, 0.75, 1)])
        for row in rows_of(run, "events"):
            if row["mechanism"] in ("guidance", "structure") and row["from"] != row["to"]:
                events.setdefault(f"{row['mechanism']} {row['to']}", []).append(row["step"])
    told = "; ".join(f"{what} at {', '.join(map(str, steps))}" for what, steps in events.items())
    return (
        f"{pace(runs):.3f}",
        ", ".join(f"{statistics.mean(c):.2f}" for c in zip(*r, strict=True)),
        told,
    )


def pace(runs: Iterable[Path]) -> float:
    """Seconds of a step in the fastest tenth of all rows: where other load disturbs least.

    Probes, validation and evaluation are not in it.
    """
    found = [row["speed/step_s"] for run in runs for row in rows_of(run) if "speed/step_s" in row]
    return sorted(found)[len(found) // 10]


def score(run: Path, strengths: list[float]) -> None:
    """strengths.json in the run: strength -> scores of its last checkpoint, as the run itself scores."""
    from dataclasses import replace

    import torch
    from accelerate import Accelerator

    from stagecli.generate.pipeline import load_pipeline
    from stagecli.train.prepare import prepare
    from stagecli.train.scorer import build_scorer

    pipeline, _ = load_pipeline(run)
    prepared = prepare(pipeline.recipe, run, torch.device("cpu"), lambda *_: None)
    scorer = build_scorer(prepared, pipeline, Accelerator(cpu=True), lambda *_: None)
    found = {}
    for strength in strengths:
        scorer.settings = replace(scorer.settings, cfg_scale=strength)
        found[strength] = scorer.measure()
    (run / "strengths.json").write_text(json.dumps(found, indent=1))
    print(f"{run.name} scored", file=sys.stderr, flush=True)


def score_all(runs: Path, strengths: list[float], workers: int) -> None:
    """Of all t2a runs that are finished and not yet scored at these strengths."""

    def scored(run: Path) -> bool:
        path = run / "strengths.json"
        return path.exists() and set(map(str, strengths)) <= json.loads(path.read_text()).keys()

    found = sorted(p.parent for p in runs.glob("*/run.json"))
    t2a = [run for run in found if "-sr-" not in run.name and finished(run) and not scored(run)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(score, [(run, strengths) for run in t2a], chunksize=1)


def strengths_table(recipe: str, variants: dict[str, dict[int, Path]]) -> None:
    """The end of each run by strength of guidance, where `score` has been there."""
    read: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for v in (v for v in VARIANTS if v in variants):
        there = {
            seed: path
            for seed, run in variants[v].items()
            if (path := run / "strengths.json").exists()
        }
        if there:
            read[v] = {seed: json.loads(path.read_text()) for seed, path in there.items()}
    strengths = sorted(
        {k for by_seed in read.values() for scores in by_seed.values() for k in scores}, key=float
    )
    for strength in strengths:
        for name in SHOWN["t2a"][1:]:
            print(f"\n{recipe}: {name} at the end, guidance {strength}\n")
            print("| variant | mean | against static, by seed |\n|---|---|---|")
            for v, by_seed in read.items():
                values = {seed: scores[strength][name] for seed, scores in by_seed.items()}
                base = {seed: scores[strength][name] for seed, scores in read["static"].items()}
                over = ", ".join(
                    f"{values[s] - base[s]:+.3g}" for s in values if s in base and v != "static"
                )
                print(f"| {v} | {cell(values.values(), len(variants[v]))} | {over} |")


def plot(runs: Path, out: Path) -> None:
    """OUT-RECIPE.svg: each metric against steps, and against the time of as many steps; mean, and range over seeds.

    A step takes static's time, and the mechanisms' as it was measured side by side.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    for recipe, variants in found_runs(runs).items():
        task = "sr" if "-sr" in recipe else "t2a"
        names = SHOWN[task][1:3]
        step = pace(variants["static"].values())
        figure, axes = plt.subplots(
            len(names), 2, figsize=(10, 3.6 * len(names)), sharey="row", squeeze=False
        )
        for k, variant in enumerate(v for v in VARIANTS if len(variants.get(v, ())) > 1):
            by_seed = list(variants[variant].values())
            seconds = step * (1 + COST[task].get(variant, 0.0))
            for row, name in enumerate(names):
                curves = [curve(run, name) for run in by_seed]
                steps = sorted(set.intersection(*map(set, curves)))  # that all seeds have
                values = [[c[s] for c in curves] for s in steps]
                for axis, unit in zip(axes[row], (1.0, seconds), strict=True):
                    x = [s * unit for s in steps]
                    axis.plot(
                        x,
                        list(map(statistics.mean, values)),
                        "o-",
                        color=f"C{k}",
                        label=variant,
                        ms=3,
                    )
                    axis.fill_between(
                        x, list(map(min, values)), list(map(max, values)), color=f"C{k}", alpha=0.12
                    )
                    axis.set_yscale("log")
                    axis.yaxis.set_major_formatter(ScalarFormatter())
                    axis.yaxis.set_minor_formatter(ScalarFormatter())
                    axis.grid(alpha=0.3)
                axes[row][0].set_ylabel(f"{name} on valid, lower is better")
        for axis, label in zip(
            axes[-1],
            ("step", "seconds of training (of a step: static's, and the measured cost)"),
            strict=True,
        ):
            axis.set_xlabel(label)
        axes[0][0].legend(fontsize=8)
        figure.suptitle(f"{recipe}-static with tables added: mean and range over seeds")
        figure.tight_layout()
        figure.savefig(f"{out}-{recipe}.svg")
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=("run", "score", "table", "plot"))
    parser.add_argument("runs", type=Path)
    parser.add_argument("budgets", nargs="*", help="RECIPE=STEPS")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("compare"), help="plot: OUT-RECIPE.svg")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--cfg-scale", type=float, nargs="+", default=[1.5], help="score: strengths"
    )
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for all runs (repeatable)"
    )
    args = parser.parse_args()
    if args.do == "run":
        budgets = {name: int(steps) for name, _, steps in (b.partition("=") for b in args.budgets)}
        if not budgets:
            sys.exit("name at least one RECIPE=STEPS")
        run_all(args.runs, budgets, args.seeds, args.set, args.variants, args.workers)
    if args.do == "score":
        score_all(args.runs, args.cfg_scale, args.workers)
    if args.do == "plot":
        plot(args.runs, args.out)
    else:
        table(args.runs)


if __name__ == "__main__":
    main()
