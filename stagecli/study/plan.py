"""A checked study: its arms, its runs, and which run needs which other one. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stagecli.recipe.dump import toml_literal
from stagecli.recipe.load import load_recipe
from stagecli.schema import Recipe
from stagecli.study.schema import Score

REFERENCE = re.compile(r"\{([^{}@]*)@([^{}@]*)\}")  # {arm@next} in a value of `set`
NEXT = "next"
OWN_KEYS = ("train.seed", "train.checkpoint_every", "train.keep")
"""Recipe keys that the study sets itself."""


class RunId(NamedTuple):
    """A run of a study: an arm and a seed."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One variant of the recipe.

    overrides: flat recipe keys -> values, without those of the study; adaptive: whether its density
    of t follows a measurement.
    """

    name: str
    summary: str
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any]
    adaptive: bool = False

    def references(self) -> Iterator[tuple[str, str, str]]:
        """(key, arm, which seed) of every `{arm@next}` in the values."""
        for key, value in self.overrides.items():
            for arm, which in REFERENCE.findall(value) if isinstance(value, str) else ():
                yield key, arm, which


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as its file describes it, checked, with the folder that holds its runs and results.

    text: of the file; recipe: path of the recipe; shared: recipe keys of all arms; task: t2a or sr.
    """

    text: str
    name: str
    recipe: Path
    seeds: tuple[int, ...]
    baseline: str
    against: tuple[str, ...]
    score: Score
    shared: Mapping[str, Any]
    arms: Mapping[str, Arm]
    folder: Path
    task: str = ""

    @property
    def steps(self) -> int:
        """Steps of every run."""
        return self.score.steps[-1]

    @property
    def strengths(self) -> tuple[float | None, ...]:
        """Sampler strengths; for sr there is one, None."""
        return self.score.strengths or (None,)

    def runs(self) -> list[RunId]:
        """All runs in the order of training: of the first seed first."""
        seeds = dict.fromkeys([*self.seeds, *(s for arm in self.arms.values() for s in arm.seeds)])
        return [
            RunId(name, seed)
            for seed in seeds
            for name, arm in self.arms.items()
            if seed in arm.seeds
        ]

    def run_dir(self, run: RunId) -> Path:
        """The run directory of a run."""
        return self.folder / "runs" / str(run)

    def needs(self, run: RunId) -> list[RunId]:
        """Runs that must be trained before this one. Raises ValueError for one that cannot be."""
        references = self.arms[run.arm].references()
        return [self.referenced(arm, which, run.seed) for _, arm, which in references]

    def referenced(self, name: str, which: str, seed: int) -> RunId:
        """The run that `{name@which}` means in a run of `seed`.

        Raises ValueError, saying what is wrong.
        """
        if which != NEXT:
            raise ValueError(f"{{{name}@{which}}}: only @{NEXT} is known, the next seed of an arm")
        if name not in self.arms:
            raise ValueError(f"{{{name}@{which}}}: there is no arm {name!r}")
        seeds = self.arms[name].seeds
        if seed not in seeds:
            raise ValueError(f"{{{name}@{which}}}: the arm {name!r} has no seed {seed}")
        if len(seeds) < 2:
            raise ValueError(f"{{{name}@{which}}}: the arm {name!r} has no other seed than {seed}")
        return RunId(name, seeds[(seeds.index(seed) + 1) % len(seeds)])

    def with_needed(self, runs: Iterable[RunId]) -> list[RunId]:
        """The runs and all that they need, in the order of training."""
        wanted: set[RunId] = set()
        pending = list(runs)
        while pending:
            run = pending.pop()
            if run not in wanted:
                wanted.add(run)
                pending += self.needs(run)
        return [run for run in self.runs() if run in wanted]

    def overrides(self, run: RunId) -> list[str]:
        """The `--set` values of a run, those of the study itself last."""
        values = {**self.shared, **self.arms[run.arm].overrides}
        values.setdefault("data.workers", 0)  # the study has as many processes as it may use
        values |= {
            "train.seed": run.seed,
            "train.checkpoint_every": math.gcd(*self.score.steps),
            "train.keep": self.steps,  # until they are scored
        }
        return [
            f"{key}={toml_literal(self._resolved(value, run))}" for key, value in values.items()
        ]

    def _resolved(self, value: Any, run: RunId) -> Any:
        """A value with its references replaced by run directories."""
        if not isinstance(value, str):
            return value

        def path(match: re.Match[str]) -> str:
            return str(self.run_dir(self.referenced(match[1], match[2], run.seed)).resolve())

        return REFERENCE.sub(path, value)

    def load_recipe(self, run: RunId) -> Recipe:
        """The recipe of a run. Raises StageError."""
        return load_recipe(self.recipe, self.overrides(run))


def flat_keys(tree: Mapping[str, Any], prefix: Sequence[str] = ()) -> dict[str, Any]:
    """`{"a.b": 1, "c": {"d": 2}}` -> `{"a.b": 1, "c.d": 2}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = (*prefix, key)
        if isinstance(value, Mapping):
            flat |= flat_keys(value, path)
        else:
            flat[".".join(path)] = value
    return flat
