"""`[stage.structure]`: blocks of a group are drawn to each other, once the grouping of the blocks has converged.

Measured at every probe from the averaged weights: which blocks' second moments change alike (`grouping`). When that has
settled and stands out of a null without groups, the blocks of a group are drawn to their common second moments

    L += c mean_m [ mean_l (1 - cos(B_lm, B_g(l)m)) + beta mean_{g != h} max(0, cos(B_gm, B_hm) - c0_ghm) ]

m: q, k, v, o, fc1, fc2; B_lm = A P / |A P|, A = W^T W (q, k, v, fc1) or W W^T (o, fc2), P a fixed random matrix of 64
columns; B_gm: the mean over a group, without gradient in the first term and for h in the second. A does not change when
heads or hidden units change places; raw weights are never averaged. Every second step takes one m, in turn, twice as
large: the same gradient over twelve steps at a twelfth of the cost (lazy regularization, StyleGAN2, arXiv 1912.04958).
That groups turn a regularizer on is the idea of arXiv 2605.04547, of which only the abstract is public; all formulas
are this project's own (`docs/structure.md`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from stagecli.errors import Problem, StageError
from stagecli.flow.objective import Result
from stagecli.schema import Fraction, Natural, PositiveReal, Recipe, Section
from stagecli.stage import grouping
from stagecli.stage.base import Event, Mechanism, Plan, Signals
from stagecli.stage.grouping import Grouping, Sketch

READING = ("q", "k", "v", "fc1")  # from the residual stream; o and fc2 write to it
TYPES = ("q", "k", "v", "o", "fc1", "fc2")
EVERY_TYPE = slice(len(TYPES))
MATRIX = re.compile(r"(?:.*\.)?blocks\.(\d+)\.(?:attention\.)?(q|k|v|o|fc1|fc2)\.weight")
WIDTHS = {"moments": 4096, "updates": 512}  # of a sketch
COLUMNS = 64  # of P
KEPT = 4  # probes that S is the mean over
NEEDED = 3  # probes, or validations, in a row
SAME = 0.9  # adjusted Rand index from which two partitions count as the same
BETA = 0.5  # weight of the hinge
EVERY = 2  # steps; the term of one type at each of them
TURNS = EVERY * len(TYPES)  # steps until all types have had their turn
CHECK = 10 * TURNS  # steps between measurements of the whole term's gradient
MEMORY = 0.98  # of the running mean of the gradient norm, per step
RISE = 0.01  # of the validation loss above its best, relative
LEAST_DEPTH = 4  # two groups of two
SURE = 12  # depth from which every partition can reach z = 4


class StructureOptions(Section):
    groups: Literal["measured", "shuffled", "random", "thirds"] = "measured"
    """`measured`; controls: the measured ones with blocks `shuffled`, a `random` partition, `thirds` of the depth."""
    when: Literal["converged", "always", "step"] = "converged"
    """When the term acts: once groups have converged, as soon as there are groups (`always`), or at a `step`."""
    at: Fraction = 0.5
    """Share of the budget from which the term acts (when = "step")."""
    similarity: Literal["moments", "updates"] = "moments"
    """What is compared between blocks: changes of W^T W or W W^T, or of W itself (blind to permuted units)."""
    z: PositiveReal = 4.0
    """How far groups must stand out of the Toeplitz null, in its standard deviations (when = "converged")."""
    change: PositiveReal = 0.15
    """Largest relative change of the similarities from probe to probe (when = "converged")."""
    r: Fraction = 0.5
    """Least regime variable (when = "converged")."""
    share: PositiveReal = 0.03
    """Norm of the term's gradient (mean of 12 steps), relative to the whole gradient's, at the end of the ramp."""
    cap: Annotated[float, Field(gt=0, le=1)] = 0.1
    """It is never more than this."""
    ramp: Fraction = 0.05
    """Share of the budget over which the term comes in, by a half cosine."""
    seed: Natural = 0
    """Of the sketches, of the null and of the controls' groups."""

    @model_validator(mode="after")
    def together(self) -> StructureOptions:
        if self.share > self.cap:
            raise ValueError("share must not exceed cap")
        if self.when != "step" and "at" in self.model_fields_set and self.at != 0.5:
            raise ValueError('at is for when = "step"')
        return self


class StructureMechanism(Mechanism):
    """Measures the groups, decides when the term acts, and computes it from the live weights."""

    name = "structure"
    Options = StructureOptions

    def __init__(self, options: StructureOptions, recipe: Recipe) -> None:
        """Raises StageError: no [stage.regime], no validation, or a depth at which the options can never act."""
        self.options = options
        self.steps = recipe.train.steps
        self.accumulate = recipe.train.accumulate
        self.depth = recipe.model.resolved()[1]
        _check(options, recipe, self.depth)
        # of the step that is planned
        self.r = 0.0
        self.at = 0
        self.fresh = True  # no term yet in this step
        # measured
        self.before_MLp: np.ndarray | None = (
            None  # sketches of the averaged weights at the last probe
        )
        self.recent: list[np.ndarray] = []  # similarities of the last probes
        self.found: Grouping | None = None
        self.S_LL: np.ndarray | None = None
        self.ari = math.nan
        self.change = math.nan
        self.row = 0
        self.probes_seen = 0
        # the term
        self.state = "waiting"
        self.start = 0  # step
        self.labels: tuple[int, ...] = ()
        self.ceiling_MGG: Tensor | None = None  # c0
        # running mean of the gradient norm, and of 1
        self.level = 0.0
        self.level_norm = 0.0
        # norm of the bare term's gradient: newest, and at the end of the ramp
        self.unit = 0.0
        self.reference = 0.0
        self.values: list[Tensor | float] = [0.0] * len(TYPES)  # of the bare term by type, newest
        # of the validation loss since the start
        self.best = math.inf
        self.rises = 0
        self.valid_step = -1

    def attach(self, network: nn.Module, feature_width: int | None) -> None:
        """Raises StageError for a network without the blocks' matrices."""
        named: dict[tuple[str, int], tuple[str, nn.Parameter]] = {}
        for name, p in network.named_parameters():
            if match := MATRIX.fullmatch(name):
                named[match[2], int(match[1])] = (name, p)
        missing = [
            f"{t} of block {k}" for t in TYPES for k in range(self.depth) if (t, k) not in named
        ]
        if missing:
            raise StageError(
                f"the network has no matrix {missing[0]}: its blocks cannot be grouped"
            )
        self.names = {t: [named[t, k][0] for k in range(self.depth)] for t in TYPES}
        self.matrices = {t: [named[t, k][1] for k in range(self.depth)] for t in TYPES}
        self.device = self.matrices["q"][0].device
        self.sketches: dict[str, Sketch] = {}
        width = self.matrices["q"][0].shape[-1]
        rng = np.random.default_rng(_seed(self.options.seed, 3, width))
        self.P_DX = torch.from_numpy(rng.standard_normal((width, COLUMNS), dtype=np.float32)).to(
            self.device
        )

    # -- what is measured --------------------------------------------------------------------------

    def _measure(self, ema_weights: Mapping[str, Tensor]) -> None:
        """Similarity and groups after a probe; average: the averaged weights by name."""
        now_MLp = np.stack([self._sketched(t, ema_weights) for t in TYPES])
        before_MLp = self.before_MLp
        self.before_MLp = now_MLp
        if before_MLp is None:
            return
        self.probes_seen += 1
        self.recent = [*self.recent, grouping.similarity(now_MLp - before_MLp)][-KEPT:]
        last_LL = self.S_LL
        last = self.found
        self.S_LL = np.mean(self.recent, axis=0)
        self.found = grouping.group(self.S_LL, seed=_seed(self.options.seed, 1, self.probes_seen))
        self.ari = grouping.adjusted_rand(self.found.labels, last.labels) if last else math.nan
        self.change = (
            grouping.relative_change(self.S_LL, last_LL) if last_LL is not None else math.nan
        )
        self.row = self.row + 1 if self._settled() else 0

    def _sketched(self, kind: str, ema_weights: Mapping[str, Tensor]) -> np.ndarray:
        """Sketches [L, p] of the averaged matrices of one type or of their moments, in double precision on the CPU."""
        weights = [ema_weights[name] for name in self.names[kind]]
        if self.options.similarity == "moments":
            weights = [grouping.traceless_moment(w if kind in READING else w.T) for w in weights]
        if kind not in self.sketches:
            seed = _seed(self.options.seed, 0, TYPES.index(kind))
            width = min(
                WIDTHS[self.options.similarity], self.matrices["q"][0].numel()
            )  # of tiny models exact
            self.sketches[kind] = Sketch.make(weights[0].numel(), width, seed, weights[0].device)
        return torch.stack([self.sketches[kind](w) for w in weights]).cpu().double().numpy()

    def _settled(self) -> bool:
        """The four conditions at one probe; S must be over all the probes that it is the mean of."""
        o = self.options
        found = self.found
        full = found is not None and len(self.recent) == KEPT
        return bool(
            full
            and self.ari >= SAME
            and self.change <= o.change
            and found
            and found.z >= o.z
            and self.r >= o.r
        )

    # -- when it acts ------------------------------------------------------------------------------

    def plan(self, step: int, plan: Plan) -> Plan:
        self.r = plan.r
        self.at = step
        self.fresh = True
        return replace(plan, active=(*plan.active, self.name)) if self._ramp(step) > 0 else plan

    def observe(self, signals: Signals) -> list[Event]:
        events: list[Event] = []
        if math.isfinite(signals.grad_norm):  # a step that fp16's scaler skips has none
            self.level = MEMORY * self.level + (1 - MEMORY) * signals.grad_norm
            self.level_norm = MEMORY * self.level_norm + (1 - MEMORY)
        if signals.probe is not None and signals.ema_weights is not None:
            self._measure(signals.ema_weights)
            events += self._few() if self.probes_seen == 1 else []
        if self.state == "active":
            return events + self._validated(signals)
        if self.state == "waiting" and (reason := self._reason(signals.step)):
            events.append(self._activate(signals, reason))
        return events

    def _few(self) -> list[Event]:
        """What a model is told in which some groups could not pass the test, after the first measurement."""
        count, every, most = (
            grouping.reachable(self.depth, self.options.z) if self.depth < SURE else (1, 1, 0.0)
        )
        if count == every or self.options.when != "converged":
            return []
        reason = f"{self.depth} blocks are few: only {count} of their {every} partitions could pass the test"
        return [
            Event(
                self.name,
                "waiting",
                "waiting",
                reason,
                {"z needed": self.options.z, "largest z": most},
            )
        ]

    def _reason(self, step: int) -> str:
        """Why the term begins after this step; empty: it does not."""
        o = self.options
        if o.groups in ("measured", "shuffled") and self.found is None:
            return ""
        if o.when == "always":
            return 'when = "always": there are groups'
        if o.when == "step":
            return f"{100 * o.at:g} % of the steps are done" if step >= o.at * self.steps else ""
        return f"the groups have converged: {NEEDED} probes in a row" if self.row >= NEEDED else ""

    def _activate(self, signals: Signals, reason: str) -> Event:
        self.labels = self._choose()
        self.state = "active"
        self.start = signals.step
        with torch.no_grad():
            self.ceiling_MGG = grouping.between(self._moments(EVERY_TYPE), self.labels)
        if signals.valid is not None and math.isfinite(signals.valid[1]):
            self.valid_step, self.best = signals.valid
        evidence = {
            **self._scores(),
            "r": self.r,
            "groups": list(self.labels),
            "kind": self.options.groups,
        }
        return Event(self.name, "waiting", "active", reason, evidence)

    def _choose(self) -> tuple[int, ...]:
        """Groups of the blocks, from 0, by the option `groups`."""
        rng = np.random.default_rng(_seed(self.options.seed, 2, 0))
        return grouping.choose(self.options.groups, self.depth, self.found, rng)

    def _validated(self, signals: Signals) -> list[Event]:
        """Off for good where the validation loss stays above its best since the term began."""
        if signals.valid is None or signals.valid[0] == self.valid_step:
            return []
        self.valid_step, loss = signals.valid
        self.rises = 0 if loss <= (1 + RISE) * self.best else self.rises + 1  # no number is a rise
        self.best = min(self.best, loss) if math.isfinite(loss) else self.best
        if self.rises < NEEDED:
            return []
        what = f"the validation loss is over {100 * RISE:g} % above its best since the start, {NEEDED} times in a row"
        found = {
            "valid loss": loss,
            "best": self.best,
            "coefficient": self.coefficient(self.at),
            "since": self.start,
        }
        self.state = "stopped"
        self.values = [0.0] * len(TYPES)
        self.ceiling_MGG = None
        return [Event(self.name, "active", "stopped", what, found)]

    # -- the term ----------------------------------------------------------------------------------

    def _ramp(self, step: int) -> float:
        """0 where the term does not act, else (1 - cos(pi x)) / 2 over the ramp; `step` steps are done."""
        if self.state != "active":
            return 0.0
        x = (step + 1 - self.start) / max(1.0, self.options.ramp * self.steps)
        return (1 - math.cos(math.pi * min(1.0, x))) / 2

    def coefficient(self, step: int) -> float:
        """c: `share` of the running gradient norm at the ramp's end, by the term's gradient norm then; the cap uses
        the newest one. 0 where that gradient vanishes."""
        if min(self.unit, self.reference) <= 0 or self.level_norm == 0:
            return 0.0
        o = self.options
        level = self.level / self.level_norm
        return min(self._ramp(step) * o.share * level / self.reference, o.cap * level / self.unit)

    def loss(self, result: Result) -> Tensor | None:
        """EVERY c times the term of the type whose turn it is: the mean over TURNS steps is c times the whole term.
        Once a step for all of its `accumulate` parts: the weights are the same in each."""
        since = self.at - self.start
        if self.state != "active" or not self.fresh or since % EVERY:
            return None
        self.fresh = self.accumulate == 1
        turn = since // EVERY % len(TYPES)
        with torch.autocast(device_type=self.device.type, enabled=False):
            if since % CHECK == 0:
                self._remember_gradient()
            part = self._by_type(slice(turn, turn + 1)).sum()
        self.values[turn] = (
            part.detach()
        )  # a number only when a row asks: a GPU is not to wait every step
        return self.accumulate * EVERY * self.coefficient(self.at) * part

    def term(self) -> Tensor:
        """The bare term of the live weights: c = 1, all types."""
        return self._by_type(EVERY_TYPE).mean()

    def _by_type(self, types: slice) -> Tensor:
        """The bare term of some of TYPES, [M]."""
        assert self.ceiling_MGG is not None
        return grouping.pull_and_hinge(
            self._moments(types), self.labels, self.ceiling_MGG[types], BETA
        )

    def _moments(self, types: slice) -> list[Tensor]:
        """Per type the sketched second moments [L, D * 64] of every block."""
        found = []
        for kind in TYPES[types]:
            W_LOI = torch.stack([w.float() for w in self.matrices[kind]])
            reading_LOD = W_LOI if kind in READING else W_LOI.mT
            found.append(grouping.second_moments(reading_LOD, self.P_DX))
        return found

    def _remember_gradient(self) -> None:
        found_M = self._by_type(EVERY_TYPE)
        self.values = list(found_M.detach().unbind())
        weights = [w for kind in TYPES for w in self.matrices[kind]]
        gradients = torch.autograd.grad(found_M.mean(), weights)
        self.unit = float(torch.stack([g.float().norm() for g in gradients]).norm())
        if self._ramp(self.at) < 1 or self.reference == 0:
            self.reference = self.unit

    # -- state and rows ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        def packed(x: np.ndarray | None) -> Tensor | None:
            return None if x is None else torch.from_numpy(x.copy())

        found = self.found
        return {
            "before": packed(self.before_MLp),
            "recent": [packed(S) for S in self.recent],
            "S": packed(self.S_LL),
            "found": None
            if found is None
            else [list(found.labels), found.contrast, found.z, found.p],
            "ceiling": self.ceiling_MGG,
            "labels": list(self.labels),
            **{name: getattr(self, name) for name in PLAIN},
            "values": [float(v) for v in self.values],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises StageError for the state of a network of another depth."""
        S = state["S"]
        if S is not None and len(S) != self.depth:
            raise StageError(
                f"the checkpoint's groups are of {len(S)} blocks, the model has {self.depth}"
            )
        self.before_MLp = None if state["before"] is None else state["before"].numpy().copy()
        self.recent = [part.numpy().copy() for part in state["recent"]]
        self.S_LL = None if S is None else S.numpy().copy()
        found = state["found"]
        self.found = (
            None if found is None else Grouping(tuple(found[0]), found[1], found[2], found[3])
        )
        self.ceiling_MGG = (
            None if state["ceiling"] is None else state["ceiling"].clone().to(self.device)
        )
        self.labels = tuple(state["labels"])
        self.values = list(state["values"])
        for name in PLAIN:
            setattr(self, name, state[name])

    def metrics(self) -> dict[str, float]:
        """value: of the bare term, each type as last computed; gradient_ratio: norm of the whole term's gradient, as
        last measured, over the running gradient norm."""
        c = self.coefficient(self.at) if self.state == "active" else 0.0
        ratio = c * self.unit * self.level_norm / self.level if self.level else 0.0
        active = float(self.state == "active")
        value = sum(map(float, self.values)) / len(TYPES)
        return {"active": active, "coefficient": c, "value": value, "gradient_ratio": ratio}

    def _scores(self) -> dict[str, Any]:
        found = self.found
        return {
            "K": None if found is None else found.K,
            "ari": self.ari,
            "change": self.change,
            "z": None if found is None else found.z,
            "p": None if found is None else found.p,
            "contrast": None if found is None else found.contrast,
        }

    def probe_row(self) -> dict[str, Any]:
        """Names begin with `structure_`; None, or NaN, where two probes are needed and one has been."""
        S = (
            None
            if self.S_LL is None
            else [[round(v, 4) for v in line] for line in self.S_LL.tolist()]
        )
        labels = None if self.found is None else list(self.found.labels)
        scores = {
            k: None if isinstance(v, float) and math.isnan(v) else v
            for k, v in self._scores().items()
        }
        row = {**scores, "row": self.row, "state": self.state, "active": self.state == "active"}
        row |= {"S": S, "labels": labels, "groups": list(self.labels) or None}
        return {f"structure_{name}": value for name, value in row.items()}


PLAIN = (
    "r",
    "ari",
    "change",
    "row",
    "probes_seen",
    "state",
    "start",
    "level",
    "level_norm",
    "unit",
    "reference",
    "best",
    "rises",
    "valid_step",
)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _check(options: StructureOptions, recipe: Recipe, depth: int) -> None:
    """Raises StageError, see `StructureMechanism`."""
    if "regime" not in recipe.stage:
        raise StageError(
            "structure needs [stage.regime]: its probes give the averaged weights, and it waits for r",
            problems=[Problem("stage.structure", "without a table [stage.regime]")],
            hint='add [stage.regime] (its source = "linear" takes r from the step)',
        )
    if not recipe.train.validate_every:
        raise StageError(
            "structure watches the validation loss, and none is measured",
            problems=[Problem("train.validate_every", "0: never")],
            hint="set train.validate_every, for example to a 20th of train.steps",
        )
    least = 6 if options.groups == "thirds" else LEAST_DEPTH
    if depth < least:
        raise StageError(
            f"groups of at least {grouping.LEAST} blocks need {least} blocks, the model has {depth}",
            problems=[Problem("stage.structure.groups", options.groups)],
            hint=f"set model.depth to {least} or more, or leave [stage.structure] out",
        )
    if options.when == "converged" and depth < SURE:
        count, every, most = grouping.reachable(depth, options.z)
        if not count:
            raise StageError(
                f"{depth} blocks are too few to tell groups from chance: none of their {every} partitions gets past "
                f"z = {most:.1f} against the Toeplitz null, and {options.z:g} is asked for: the term would never act",
                problems=[
                    Problem(
                        "model.depth",
                        f"{depth}; from 8 on some partitions reach z = 4, from 12 on all",
                    )
                ],
                hint='use a deeper model, or when = "step" or "always", which do not claim that groups were found',
            )
