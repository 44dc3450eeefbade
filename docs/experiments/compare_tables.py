"""Tables and pictures of the runs that `compare_stages.py run` and `score` made."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

VARIANTS = ("static", "timesteps", "structure", "guidance", "all", "replayed")  # order of the rows
# CPU time of a step relative to static's, measured side by side in one process
# (docs/log.md#what-the-mechanisms-cost-while-structure-acted-on-weights): the runs of a comparison
# share their machine, and their own step times differ by more than this.
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
SHOWN = {
    "t2a": ("valid/loss", "eval/kad", "eval/fd_judge", "eval/fd_log_mel"),
    "sr": ("valid/loss", "eval/lsd_4000", "eval/lsd_12000", "eval/lsd_hf_4000", "eval/si_sdr_4000"),
}
SCORES = "cfg_scales.json"  # in a run: cfg_scale -> scores of its last checkpoint

Runs = dict[str, dict[int, Path]]  # variant -> seed -> run directory
Curve = dict[int, float]  # step -> value


def task_of(recipe: str) -> str:
    return "sr" if "-sr" in recipe else "t2a"


def rows_of(run: Path, stream: str = "metrics") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"{stream}.jsonl").read_text().splitlines()]


def curve(run: Path, name: str) -> Curve:
    return {row["step"]: row[name] for row in rows_of(run) if row.get(name) is not None}


def runs_by_recipe(runs: Path) -> dict[str, Runs]:
    """recipe -> variant -> seed -> run directory, for all runs that have started."""
    result: dict[str, Runs] = {}
    for path in sorted(p.parent for p in runs.glob("*/metrics.jsonl")):
        recipe, variant, seed = path.name.rsplit("-", 2)
        result.setdefault(recipe, {}).setdefault(variant, {})[int(seed)] = path
    return result


def mean_and_spread(values: Iterable[float], seeds: int) -> str:
    """`mean ± standard deviation`; "(of n)" follows where fewer than `seeds` runs have a value."""
    known = list(values)
    if not known:
        return ""
    few = f" (of {len(known)})" if len(known) < seeds else ""
    spread = f" ± {statistics.stdev(known):.3g}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.4g}{spread}{few}"


# -- tables ----------------------------------------------------------------------------------------


def print_tables(runs: Path) -> None:
    """Markdown: metrics by variant and step, scores by cfg_scale, then time, r and events."""
    for recipe, variants in runs_by_recipe(runs).items():
        task = task_of(recipe)
        ordered = [variant for variant in VARIANTS if variant in variants]
        for name in SHOWN[task]:
            print_metric(recipe, name, {variant: variants[variant] for variant in ordered})
        if task == "t2a":
            print_cfg_scales(recipe, variants)
        print(f"\n{recipe}: seconds per step, r, and events\n")
        print("| variant | s per step | r at 1/2, 3/4, end | events |")
        print("|---|---|---|---|")
        for variant in ordered:
            print(f"| {variant} | " + " | ".join(progress(variants[variant].values())) + " |")


def print_metric(recipe: str, name: str, variants: Runs) -> None:
    """One metric by step; at the last step also the difference from static, by seed."""
    curves = {
        variant: {seed: curve(run, name) for seed, run in by_seed.items()}
        for variant, by_seed in variants.items()
    }
    steps = sorted({step for by_seed in curves.values() for c in by_seed.values() for step in c})
    heads = " | ".join(f"step {step}" for step in steps)
    print(f"\n{recipe}: {name}\n")
    print(f"| variant | seeds | {heads} | at the end, against static, by seed |")
    print("|---|---|" + "---|" * (len(steps) + 1))
    for variant, by_seed in curves.items():
        cells = [
            mean_and_spread((c[step] for c in by_seed.values() if step in c), len(by_seed))
            for step in steps
        ]
        differences: list[float] = []
        if variant != "static":
            differences = differences_at(steps[-1], by_seed, curves["static"])
        shown = ""
        if differences:
            each = ", ".join(f"{d:+.3g}" for d in differences)
            shown = f"{statistics.mean(differences):+.3g} ({each})"
        print(f"| {variant} | {len(by_seed)} | " + " | ".join(cells) + f" | {shown} |")


def differences_at(step: int, ours: dict[int, Curve], static: dict[int, Curve]) -> list[float]:
    """Value minus static's at a step, for the seeds where both have one."""
    return [
        ours[seed][step] - static[seed][step]
        for seed in ours
        if step in ours[seed] and step in static.get(seed, {})
    ]


def progress(runs: Iterable[Path]) -> tuple[str, str, str]:
    """Seconds per step, r at three points of the run, and the steps of the mechanisms' events."""
    runs = list(runs)
    r: list[list[float]] = []
    events: dict[str, list[int]] = {}
    for run in runs:
        probes = rows_of(run, "probes")
        r.append([probes[math.ceil(share * len(probes)) - 1]["r"] for share in (0.5, 0.75, 1)])
        for row in rows_of(run, "events"):
            if row["mechanism"] in ("guidance", "structure") and row["from"] != row["to"]:
                events.setdefault(f"{row['mechanism']} {row['to']}", []).append(row["step"])
    return (
        f"{seconds_per_step(runs):.3f}",
        ", ".join(f"{statistics.mean(values):.2f}" for values in zip(*r, strict=True)),
        "; ".join(f"{event} at {', '.join(map(str, steps))}" for event, steps in events.items()),
    )


def seconds_per_step(runs: Iterable[Path]) -> float:
    """Seconds per step in the fastest tenth of all rows, where other load interferes least.

    Probes, validation and evaluation are not included.
    """
    seconds = [row["speed/step_s"] for run in runs for row in rows_of(run) if "speed/step_s" in row]
    return sorted(seconds)[len(seconds) // 10]


def scores_of(run: Path) -> dict[str, dict[str, float]]:
    """cfg_scale -> scores of a run's last checkpoint; empty where `score` has not run."""
    path = run / SCORES
    return json.loads(path.read_text()) if path.exists() else {}


def print_cfg_scales(recipe: str, variants: Runs) -> None:
    """The last checkpoint of each run by cfg_scale, where `score` has measured it."""
    scored: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for variant in VARIANTS:
        scores = {seed: scores_of(run) for seed, run in variants.get(variant, {}).items()}
        if any(scores.values()):
            scored[variant] = {seed: by_scale for seed, by_scale in scores.items() if by_scale}
    scales = {
        scale for by_seed in scored.values() for by_scale in by_seed.values() for scale in by_scale
    }
    for scale in sorted(scales, key=float):
        for name in SHOWN["t2a"][1:]:
            print(f"\n{recipe}: {name} at the end, cfg_scale {scale}\n")
            print("| variant | mean | against static, by seed |\n|---|---|---|")
            static = {seed: scores[scale][name] for seed, scores in scored["static"].items()}
            for variant, by_seed in scored.items():
                values = {seed: scores[scale][name] for seed, scores in by_seed.items()}
                differences = ""
                if variant != "static":
                    shared = [seed for seed in values if seed in static]
                    differences = ", ".join(f"{values[s] - static[s]:+.3g}" for s in shared)
                mean = mean_and_spread(values.values(), len(variants[variant]))
                print(f"| {variant} | {mean} | {differences} |")


# -- pictures --------------------------------------------------------------------------------------


def plot(runs: Path, stem: Path) -> None:
    """STEM-RECIPE.svg: metrics against steps and against time; mean and range over seeds.

    The time of a step is static's plus the mechanisms' cost as measured side by side.
    """
    import matplotlib.pyplot as plt

    for recipe, variants in runs_by_recipe(runs).items():
        names = SHOWN[task_of(recipe)][1:3]
        figure, axes = plt.subplots(
            len(names), 2, figsize=(10, 3.6 * len(names)), sharey="row", squeeze=False
        )
        step_s = seconds_per_step(variants["static"].values())
        several = [variant for variant in VARIANTS if len(variants.get(variant, ())) > 1]
        for number, variant in enumerate(several):
            seconds = step_s * (1 + COST[task_of(recipe)].get(variant, 0.0))
            for pair, name in zip(axes, names, strict=True):
                curves = [curve(run, name) for run in variants[variant].values()]
                for axis, unit in zip(pair, (1.0, seconds), strict=True):
                    draw_variant(axis, curves, unit, variant, f"C{number}")
                pair[0].set_ylabel(f"{name} on valid, lower is better")
        axes[-1][0].set_xlabel("step")
        axes[-1][1].set_xlabel("seconds of training (per step: static's, plus the measured cost)")
        axes[0][0].legend(fontsize=8)
        figure.suptitle(f"{recipe}-static with stage sections added: mean and range over seeds")
        figure.tight_layout()
        figure.savefig(f"{stem}-{recipe}.svg")
        plt.close(figure)


def draw_variant(axis: Any, curves: list[Curve], unit: float, label: str, color: str) -> None:
    """Mean and range over seeds at the steps that all seeds have; unit: scale of the x axis."""
    from matplotlib.ticker import ScalarFormatter

    steps = sorted(set.intersection(*map(set, curves)))
    values = [[c[step] for c in curves] for step in steps]
    x = [step * unit for step in steps]
    means = [statistics.mean(v) for v in values]
    axis.plot(x, means, "o-", color=color, label=label, ms=3)
    axis.fill_between(x, list(map(min, values)), list(map(max, values)), color=color, alpha=0.12)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(ScalarFormatter())
    axis.grid(alpha=0.3)
