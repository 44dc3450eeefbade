"""`[stage.structure]`: pulls the blocks of a group together, once the grouping of the blocks has
converged.

At every probe the EMA weights show which blocks' second moments change alike
(`structure_groups`). When the groups have settled and stand out of a null without groups, a term
pulls the blocks of each group towards their common second moments (`structure_term`). Every second
step takes one type of matrix, in turn, at twice its weight: the same gradient over twelve steps at
a twelfth of the cost (lazy regularization, StyleGAN2, arXiv 1912.04958). That converged groups turn
a regularizer on is the idea of arXiv 2605.04547, of which only the abstract is public; all formulas
are this project's own (`docs/structure.md`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from stagecli.flow.objective import Result
from stagecli.schema import Recipe
from stagecli.stage import grouping
from stagecli.stage.base import Event, Mechanism, Plan, Signals
from stagecli.stage.structure_groups import GroupMonitor, seed_of
from stagecli.stage.structure_options import SURE, StructureOptions, check_structure
from stagecli.stage.structure_size import RISE, TermSize, ValidationWatch
from stagecli.stage.structure_term import TYPES, GroupTerm, block_matrices

NEEDED = 3  # consecutive probes, or validations, that a decision takes
SAME = 0.9  # adjusted Rand index from which two partitions count as the same
EVERY = 2  # steps from one turn of the term to the next
TURNS = EVERY * len(TYPES)  # steps until every type has had its turn
CHECK = 10 * TURNS  # steps between measurements of the whole term's gradient


@dataclass
class PlannedStep:
    """The step being trained. number: steps done before it; fresh: the term was not yet added to
    it.
    """

    number: int = 0
    r: float = 0.0
    fresh: bool = True


class StructureMechanism(Mechanism):
    """Measures the groups, decides when the term acts, and adds it to the loss."""

    name = "structure"
    Options = StructureOptions

    def __init__(self, options: StructureOptions, recipe: Recipe) -> None:
        self.options = options
        self.steps = recipe.train.steps
        self.accumulate = recipe.train.accumulate
        self.depth = recipe.model.resolved()[1]
        self.planned = PlannedStep()
        self.streak = 0  # consecutive probes at which the groups had settled
        self.state = "waiting"
        self.start = 0  # step after which the term began
        self.size = TermSize(
            share=options.share, cap=options.cap, ramp_steps=options.ramp * self.steps
        )
        self.watch = ValidationWatch()

    @classmethod
    def build(cls, options: StructureOptions, recipe: Recipe) -> Self:
        """Raises StageError without validation, or for a depth at which the term could never
        act.
        """
        check_structure(options, recipe)
        return cls(options, recipe)

    def attach(self, network: nn.Module, feature_width: int | None) -> None:
        """Raises StageError for a network without the blocks' matrices."""
        matrices = block_matrices(network, self.depth)
        width = matrices["q"][0].shape[-1]
        self.term = GroupTerm(matrices, self._rng(3, width))
        self.groups = GroupMonitor(
            similarity=self.options.similarity,
            seed=self.options.seed,
            matrices=matrices,
            network=network,
        )

    def _rng(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng(seed_of(self.options.seed, *numbers))

    # -- when the term acts ------------------------------------------------------------------------

    def plan(self, step: int, plan: Plan) -> Plan:
        self.planned = PlannedStep(step, plan.r)
        if self.state != "active":
            return plan
        return replace(plan, active=(*plan.active, self.name))

    def observe(self, signals: Signals) -> list[Event]:
        events: list[Event] = []
        self.size.observe(signals.grad_norm)
        if signals.probe is not None and signals.ema_weights is not None:
            if self.groups.measure(signals.ema_weights):
                self.streak = self.streak + 1 if self._settled() else 0
            if self.groups.measurements == 1:
                events += self._few_blocks()
        if self.state == "active":
            return events + self._check_validation(signals)
        if self.state == "waiting":
            reason = self._reason_to_begin(signals.step)
            if reason is not None:
                events.append(self._begin(signals, reason))
        return events

    def _settled(self) -> bool:
        """The four conditions at one probe."""
        options = self.options
        enough = self.planned.r >= options.r
        return enough and self.groups.settled(ari=SAME, change=options.change, z=options.z)

    def _few_blocks(self) -> list[Event]:
        """A warning, after the first measurement, for a depth at which some groups cannot pass
        the test.
        """
        if self.options.when != "converged" or self.depth >= SURE:
            return []
        count, every, most = grouping.reachable(self.depth, self.options.z)
        if count == every:
            return []
        reason = (
            f"{self.depth} blocks are few: "
            f"only {count} of their {every} partitions could pass the test"
        )
        evidence = {"z needed": self.options.z, "largest z": most}
        return [Event(self.name, "waiting", "waiting", reason, evidence)]

    def _reason_to_begin(self, step: int) -> str | None:
        """Why the term begins after this step, or None if it does not."""
        options = self.options
        if options.groups in ("measured", "shuffled") and self.groups.grouping is None:
            return None
        if options.when == "always":
            return 'when = "always": there are groups'
        if options.when == "step":
            if step < options.at * self.steps:
                return None
            return f"{100 * options.at:g} % of the steps are done"
        if self.streak < NEEDED:
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
        }
        return Event(self.name, "waiting", "active", reason, evidence)

    def choose_labels(self) -> tuple[int, ...]:
        """Group of each block, from 0, by the option `groups`."""
        measured = self.groups.grouping
        return grouping.choose(self.options.groups, self.depth, measured, self._rng(2, 0))

    def begin(
        self, labels: tuple[int, ...], step: int, valid: tuple[int, float] | None = None
    ) -> None:
        """Let the term act with these groups after `step` steps. valid: the newest validation."""
        self.state = "active"
        self.start = step
        self.term.begin(labels)
        self.watch.begin(valid)

    def _check_validation(self, signals: Signals) -> list[Event]:
        """End the term for good where the validation loss stays above its best since the term
        began.
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
            "coefficient": self.coefficient(self.planned.number),
            "since": self.start,
        }
        self.state = "stopped"
        self.term.end()
        return [Event(self.name, "active", "stopped", reason, evidence)]

    # -- the loss ----------------------------------------------------------------------------------

    def coefficient(self, step: int) -> float:
        """c at a step; 0 where the term does not act."""
        return self.size.coefficient(step - self.start) if self.state == "active" else 0.0

    def loss(self, result: Result) -> Tensor | None:
        """EVERY c times the term of the type whose turn it is.

        Its mean over TURNS steps is c times the whole term. Added once a step for all of its
        `accumulate` batches, because the weights are the same in each.
        """
        since = self.planned.number - self.start
        if self.state != "active" or not self.planned.fresh or since % EVERY:
            return None
        self.planned.fresh = self.accumulate == 1
        with torch.autocast(device_type=self.term.device.type, enabled=False):
            if since % CHECK == 0:
                self.size.measured(self.term.gradient_norm(), since)
            value = self.term.one_type(since // EVERY % len(TYPES))
        return self.accumulate * EVERY * self.coefficient(self.planned.number) * value

    # -- state and rows ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "groups": self.groups.state_dict(),
            "term": self.term.state_dict(),
            "size": self.size.state_dict(),
            "watch": self.watch.state_dict(),
            "step": self.planned.number,
            "r": self.planned.r,
            "streak": self.streak,
            "state": self.state,
            "start": self.start,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises StageError for the state of a network of another depth."""
        self.groups.load_state_dict(state["groups"])
        self.term.load_state_dict(state["term"])
        self.size.load_state_dict(state["size"])
        self.watch.load_state_dict(state["watch"])
        self.planned = PlannedStep(state["step"], state["r"])
        self.streak = state["streak"]
        self.state = state["state"]
        self.start = state["start"]

    def metrics(self) -> dict[str, float]:
        """State of the term.

        value: of the bare term, each type as last computed; gradient_ratio: norm of the whole
        term's gradient, as last measured, over the running gradient norm.
        """
        coefficient = self.coefficient(self.planned.number)
        return {
            "active": float(self.state == "active"),
            "coefficient": coefficient,
            "value": self.term.value(),
            "gradient_ratio": self.size.gradient_ratio(coefficient),
        }

    def probe_row(self) -> dict[str, Any]:
        """Columns `structure_*`, as `structure_columns` reads them."""
        row = {
            **self.groups.row(),
            "streak": self.streak,
            "state": self.state,
            "active": self.state == "active",
            "groups": list(self.term.labels) or None,
        }
        return {f"{self.name}_{column}": value for column, value in row.items()}
