"""Folds the mechanisms of a run into one plan, one loss term, one list of events and one state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from torch import Tensor, nn

from stagecli.errors import Problem, StageError
from stagecli.flow.objective import Result
from stagecli.schema import Recipe
from stagecli.stage import registry
from stagecli.stage.base import Event, FeatureSettings, Mechanism, Plan, ProbeSettings, Signals
from stagecli.stage.densities_composed import objective_density

Request = TypeVar("Request", ProbeSettings, FeatureSettings)


class Stages:
    """The mechanisms of a run, in the registry's order. Without any, training is plain."""

    def __init__(self, mechanisms: Mapping[str, Mechanism], base: Plan) -> None:
        """base: the plan before any mechanism has changed it."""
        self.mechanisms = dict(mechanisms)
        self.base = base

    @classmethod
    def of(cls, recipe: Recipe) -> Stages:
        """The mechanisms of a recipe.

        Raises StageError where one cannot work in this recipe, lacks what it needs, or requests
        probes or features that differ from another one's.
        """
        chosen = {
            name: registry.options(name, recipe.stage[name])
            for name in registry.MECHANISMS
            if name in recipe.stage
        }
        registry.check_needs(chosen)
        mechanisms = {
            name: registry.load(name).build(options, recipe) for name, options in chosen.items()
        }
        stages = cls(mechanisms, base_plan(recipe))
        _merged("probes", stages._probe_requests())
        _merged("features", stages._feature_requests())
        return stages

    @property
    def probes(self) -> ProbeSettings | None:
        """The measurement to make while training, or None."""
        return _merged("probes", self._probe_requests())

    @property
    def features(self) -> FeatureSettings | None:
        """The features to load with every crop at present, or None."""
        return _merged("features", self._feature_requests())

    def _probe_requests(self) -> dict[str, ProbeSettings]:
        return {n: m.probes for n, m in self.mechanisms.items() if m.probes is not None}

    def _feature_requests(self) -> dict[str, FeatureSettings]:
        return {n: m.features for n, m in self.mechanisms.items() if m.features is not None}

    @property
    def reads_losses(self) -> bool:
        """Whether a mechanism reads the losses of every step."""
        return any(mechanism.reads_losses for mechanism in self.mechanisms.values())

    def attach(self, network: nn.Module, feature_width: int | None) -> None:
        """Bind every mechanism to the network being trained."""
        for mechanism in self.mechanisms.values():
            mechanism.attach(network, feature_width)

    def step(
        self,
        lr: float,
        all_reduce_mean: Callable[[Tensor], Tensor],
        scale: float,
        skip: Tensor | None = None,
    ) -> None:
        """Update the parameters that mechanisms train beside the network's."""
        for mechanism in self.mechanisms.values():
            mechanism.step(lr, all_reduce_mean, scale, skip)

    def plan(self, step: int) -> Plan:
        """The plan of a step: the base plan, changed by one mechanism after the other."""
        plan = self.base
        for mechanism in self.mechanisms.values():
            plan = mechanism.plan(step, plan)
        return plan

    def begin_step(self, plan: Plan, t_B: Tensor) -> None:
        """Pass the noise levels of the whole step, [B] on the CPU, to the active mechanisms."""
        for name in plan.active:
            self.mechanisms[name].begin_step(t_B)

    def loss(self, plan: Plan, result: Result) -> Tensor | None:
        """The sum of the terms that the plan's active mechanisms add, or None."""
        terms = []
        for name in plan.active:
            term = self.mechanisms[name].loss(result)
            if term is not None:
                terms.append(term)
        return sum(terms[1:], terms[0]) if terms else None

    def observe(self, signals: Signals) -> list[Event]:
        """Pass the measurements of a step on and collect the events."""
        return [
            event for mechanism in self.mechanisms.values() for event in mechanism.observe(signals)
        ]

    def metrics(self) -> dict[str, float]:
        """Columns `stage/NAME/FIGURE` for the next row of metrics.jsonl."""
        return {
            f"stage/{name}/{figure}": value
            for name, mechanism in self.mechanisms.items()
            for figure, value in mechanism.metrics().items()
        }

    def probe_row(self) -> dict[str, Any]:
        """Columns of all mechanisms for the row of the probe just observed."""
        row: dict[str, Any] = {}
        for mechanism in self.mechanisms.values():
            row |= mechanism.probe_row()
        return row

    def state_dict(self) -> dict[str, Any]:
        return {name: mechanism.state_dict() for name, mechanism in self.mechanisms.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises StageError where the checkpoint was written with other mechanisms."""
        if set(state) != set(self.mechanisms):
            saved = ", ".join(sorted(state)) or "none"
            own = ", ".join(sorted(self.mechanisms)) or "none"
            raise StageError(
                f"the checkpoint has other mechanisms ({saved}) than the recipe ({own})",
                hint="train the changed recipe under another name with --name",
            )
        for name, mechanism in self.mechanisms.items():
            mechanism.load_state_dict(state[name])


def base_plan(recipe: Recipe) -> Plan:
    """Plain training: t from the density of the `[objective]` section."""
    return Plan(density=objective_density(recipe.objective))


def _merged(resource: str, requests: Mapping[str, Request]) -> Request | None:
    """The one request that all mechanisms with a request agree on, or None if there is none.

    A run measures one probe set and loads one kind of features. Raises StageError that names the
    mechanisms whose requests differ.
    """
    if not requests:
        return None
    (first, request), *others = requests.items()
    for name, other in others:
        if other == request:
            continue
        ours = asdict(request)
        theirs = asdict(other)
        keys = [key for key in ours if ours[key] != theirs[key]]
        problems = []
        for section, values in ((first, ours), (name, theirs)):
            wanted = ", ".join(f"{key} = {values[key]!r}" for key in keys)
            problems.append(Problem(f"stage.{section}", f"requests {resource} with {wanted}"))
        raise StageError(
            f"[stage.{first}] and [stage.{name}] request different {resource}, and a run has one",
            problems=problems,
            hint="give both sections the same values, or leave one of them out",
        )
    return request
