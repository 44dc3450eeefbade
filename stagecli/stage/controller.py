"""Folds the mechanisms of a run into one Plan, one loss term, one list of events and one state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from stagecli.errors import StageError
from stagecli.flow.objective import Result
from stagecli.schema import Recipe
from stagecli.stage import registry
from stagecli.stage.base import Event, FeatureSettings, Mechanism, Plan, ProbeSettings, Signals
from stagecli.stage.densities import plain


class Stages:
    """The mechanisms of a run, in the registry's order. Without any it is plain training."""

    def __init__(self, mechanisms: Mapping[str, Mechanism], base: Plan) -> None:
        self.mechanisms = dict(mechanisms)
        self.base = base

    @classmethod
    def of(cls, recipe: Recipe) -> Stages:
        chosen = [name for name in registry.MECHANISMS if name in recipe.stage]
        mechanisms = {
            name: registry.load(name)(registry.options(name, recipe.stage[name]), recipe)
            for name in chosen
        }
        return cls(mechanisms, base_plan(recipe))

    @property
    def probes(self) -> ProbeSettings | None:
        """What is to be measured while training, or None."""
        return next((m.probes for m in self.mechanisms.values() if m.probes is not None), None)

    @property
    def features(self) -> FeatureSettings | None:
        """What is wanted with every crop at present, or None."""
        return next((m.features for m in self.mechanisms.values() if m.features is not None), None)

    def attach(self, network: nn.Module, feature_width: int | None) -> None:
        for mechanism in self.mechanisms.values():
            mechanism.attach(network, feature_width)

    def step(self, lr: float, all_reduce_mean: Callable[[Tensor], Tensor], scale: float) -> None:
        for mechanism in self.mechanisms.values():
            mechanism.step(lr, all_reduce_mean, scale)

    def plan(self, step: int) -> Plan:
        plan = self.base
        for mechanism in self.mechanisms.values():
            plan = mechanism.plan(step, plan)
        return plan

    def loss(self, plan: Plan, result: Result) -> Tensor | None:
        """The sum of what the active mechanisms add, or None."""
        terms = [
            term for name in plan.active if (term := self.mechanisms[name].loss(result)) is not None
        ]
        return sum(terms[1:], terms[0]) if terms else None

    def observe(self, signals: Signals) -> list[Event]:
        return [
            event for mechanism in self.mechanisms.values() for event in mechanism.observe(signals)
        ]

    def metrics(self) -> dict[str, float]:
        return {
            f"stage/{n}/{k}": v for n, m in self.mechanisms.items() for k, v in m.metrics().items()
        }

    def probe_row(self) -> dict[str, Any]:
        return {
            k: v for mechanism in self.mechanisms.values() for k, v in mechanism.probe_row().items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {name: mechanism.state_dict() for name, mechanism in self.mechanisms.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state) != set(self.mechanisms):
            raise StageError(
                f"the checkpoint has the mechanisms {sorted(state)}, the recipe {sorted(self.mechanisms)}",
                hint="train the changed recipe under another name with --name",
            )
        for name, mechanism in self.mechanisms.items():
            mechanism.load_state_dict(state[name])


def base_plan(recipe: Recipe) -> Plan:
    """Plain training: the density of the `[objective]` table."""
    return Plan(density=plain(recipe.objective))
