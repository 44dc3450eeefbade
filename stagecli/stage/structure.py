"""`[stage.structure]`: measures which blocks do the same work and, once their groups have
converged, acts on the outputs of the blocks.

At every probe the EMA weights show which blocks' second moments change alike
(`structure_groups`). When the groups have converged, `action` adds a term that draws an early
group's output to the next group's, or that makes the updates within a group differ
(`structure_actions`); "none" only measures. That converged groups turn a regularizer on is the idea
of arXiv 2605.04547, of which only the abstract is public; the ingredients and their sources are in
`docs/structure.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from torch import Tensor, nn

from stagecli.errors import StageError
from stagecli.flow.objective import Result
from stagecli.schema import Recipe
from stagecli.stage import grouping
from stagecli.stage.base import Event, Mechanism, Plan, Signals
from stagecli.stage.structure_actions import Action, build_action
from stagecli.stage.structure_groups import GroupMonitor, block_matrices, seed_of
from stagecli.stage.structure_options import WEIGHTS, StructureOptions, check_structure
from stagecli.stage.structure_watch import RISE, ValidationWatch

NEEDED = 3  # consecutive probes, or validations, that a decision takes
SAME = 0.9  # adjusted Rand index from which two partitions count as the same


@dataclass
class PlannedStep:
    """The step being trained.

    number: steps done before it; r: regime variable; total: the bare term summed over the
    micro-batches so far, kept on the device and converted only when a row is written.
    """

    number: int = 0
    r: float = 0.0
    total: Tensor | None = None


class StructureMechanism(Mechanism):
    """Measures the groups, decides when the action begins and ends, and adds its term."""

    name = "structure"
    Options = StructureOptions

    def __init__(self, options: StructureOptions, recipe: Recipe) -> None:
        self.options = options
        self.steps = recipe.train.steps
        self.accumulate = recipe.train.accumulate
        self.depth = recipe.model.resolved()[1]
        self.weight = options.weight or WEIGHTS[options.action]
        self.planned = PlannedStep()
        self.streak = 0  # consecutive probes at which the partition was the same
        self.state = "waiting"  # then "active" and perhaps "stopped"; "fixed" without an action
        self.start = 0  # step after which the groups were fixed
        self.labels: tuple[int, ...] = ()  # group of each block, once they are fixed
        self.action: Action | None = None  # while it acts
        self.watch = ValidationWatch()

    @classmethod
    def build(cls, options: StructureOptions, recipe: Recipe) -> Self:
        """Raises StageError without validation, or for too few blocks."""
        check_structure(options, recipe)
        return cls(options, recipe)

    def attach(self, network: nn.Module, feature_width: int | None) -> None:
        """Raises StageError for a network without the blocks' matrices."""
        self.groups = GroupMonitor(
            similarity=self.options.similarity,
            seed=self.options.seed,
            matrices=block_matrices(network, self.depth),
            network=network,
        )

    # -- when it acts ------------------------------------------------------------------------------

    def plan(self, step: int, plan: Plan) -> Plan:
        self.planned = PlannedStep(step, plan.r)
        if self.action is None:
            return plan
        hidden = tuple(sorted({*plan.hidden, *self.action.blocks}))
        return replace(plan, hidden=hidden, active=(*plan.active, self.name))

    def observe(self, signals: Signals) -> list[Event]:
        if signals.probe is not None and signals.ema_weights is not None:
            self.groups.measure(signals.ema_weights)
            self.streak = self.streak + 1 if self.groups.ari >= SAME else 0
        if self.state == "active":
            return self._check_validation(signals)
        if self.state == "waiting":
            reason = self._reason_to_begin(signals.step)
            if reason is not None:
                return [self._begin(signals, reason)]
        return []

    def _reason_to_begin(self, step: int) -> str | None:
        """Why the groups are fixed after this step, or None if they are not."""
        options = self.options
        if options.groups in ("measured", "shuffled") and self.groups.grouping is None:
            return None
        if options.when == "always":
            return 'when = "always": there are groups'
        if options.when == "step":
            if step < options.at * self.steps:
                return None
            return f"{100 * options.at:g} % of the steps are done"
        if self.streak < NEEDED or self.planned.r < options.r:
            return None
        return f"the groups have converged: {NEEDED} probes in a row"

    def _begin(self, signals: Signals, reason: str) -> Event:
        labels = self.choose_labels()
        self.begin(labels, signals.step, signals.valid)
        evidence = {
            **self.groups.scores(),
            "r": self.planned.r,
            "groups": list(labels),
            "kind": self.options.groups,
            "action": self.options.action,
        }
        if self.action is not None:
            evidence["blocks"] = self.action.describe()
        return Event(self.name, "waiting", self.state, reason, evidence)

    def choose_labels(self) -> tuple[int, ...]:
        """Group of each block, from 0, by the option `groups`."""
        rng = np.random.default_rng(seed_of(self.options.seed, 2, 0))
        return grouping.choose(self.options.groups, self.depth, self.groups.grouping, rng)

    def begin(
        self, labels: tuple[int, ...], step: int, valid: tuple[int, float] | None = None
    ) -> None:
        """Fix these groups, and act, after `step` steps. valid: the newest validation."""
        self.labels = labels
        self.start = step
        self.action = build_action(self.options.action, labels)
        self.state = "fixed" if self.action is None else "active"
        self.watch.begin(valid)

    def _check_validation(self, signals: Signals) -> list[Event]:
        """End the action for good where the validation loss stays above its best since the
        beginning.
        """
        if not self.watch.update(signals.valid) or self.watch.streak < NEEDED:
            return []
        assert signals.valid is not None
        reason = (
            f"the validation loss is over {100 * RISE:g} % above its best since the start, "
            f"{NEEDED} times in a row"
        )
        evidence = {
            "valid loss": signals.valid[1],
            "best": self.watch.best,
            "lambda": self.strength(self.planned.number),
            "since": self.start,
        }
        self.state = "stopped"
        self.action = None
        return [Event(self.name, "active", "stopped", reason, evidence)]

    # -- the loss ----------------------------------------------------------------------------------

    def strength(self, step: int) -> float:
        """lambda at a step: rises by a half cosine over the ramp; 0 where nothing acts."""
        if self.action is None:
            return 0.0
        x = (step - self.start + 1) / max(1.0, self.options.ramp * self.steps)
        return self.weight * (1 - math.cos(math.pi * min(1.0, x))) / 2

    def loss(self, result: Result) -> Tensor | None:
        if self.action is None:
            return None
        value = self.action.value(result)
        total = self.planned.total
        self.planned.total = value.detach() if total is None else total + value.detach()
        return self.strength(self.planned.number) * value

    # -- state and rows ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "groups": self.groups.state_dict(),
            "watch": self.watch.state_dict(),
            "step": self.planned.number,
            "r": self.planned.r,
            "streak": self.streak,
            "state": self.state,
            "start": self.start,
            "labels": list(self.labels),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises StageError for the state of another version, or of a network of another depth."""
        if set(state) != set(self.state_dict()):
            raise StageError(
                "the checkpoint's state of [stage.structure] is of another version of stagecli",
                hint="train under another name with --name",
            )
        self.groups.load_state_dict(state["groups"])
        self.watch.load_state_dict(state["watch"])
        self.planned = PlannedStep(state["step"], state["r"])
        self.streak = state["streak"]
        self.state = state["state"]
        self.start = state["start"]
        self.labels = tuple(state["labels"])
        if self.state == "active":
            self.action = build_action(self.options.action, self.labels)

    def metrics(self) -> dict[str, float]:
        """lambda, and the bare term of the newest step: 1 - cos (align) or cos^2 (diversify)."""
        total = self.planned.total
        return {
            "active": float(self.action is not None),
            "lambda": self.strength(self.planned.number),
            "value": 0.0 if total is None else float(total) / self.accumulate,
        }

    def probe_row(self) -> dict[str, Any]:
        """Columns `structure_*`, as `structure_columns` reads them."""
        row = {
            **self.groups.row(),
            "streak": self.streak,
            "state": self.state,
            "action": self.options.action,
            "active": self.action is not None,
            "groups": list(self.labels) or None,
        }
        return {f"{self.name}_{column}": value for column, value in row.items()}
