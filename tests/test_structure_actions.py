"""`stage.structure.action`: the blocks it takes from the groups, and the term on their outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_recipe

from stagecli.errors import StageError
from stagecli.flow.objective import Result
from stagecli.recipe.load import load_recipe
from stagecli.stage.base import Plan
from stagecli.stage.structure import StructureMechanism, StructureOptions
from stagecli.stage.structure_actions import Action, Align, Diversify, align_pairs, build_action

REGIME: dict[str, Any] = {"stage__regime__every": 2, "stage__regime__clips": 4}
TOKENS = 5


def of_sizes(*sizes: int) -> list[int]:
    return [k for k, size in enumerate(sizes) for _ in range(size)]


def result_of(hidden: dict[int, torch.Tensor], mask_BT: torch.Tensor | None = None) -> Result:
    clips = len(hidden[max(hidden)])
    condition = {} if mask_BT is None else {"mask": mask_BT}
    frames = torch.zeros(clips, 1, 1)
    return Result(torch.zeros(clips), frames, frames, torch.zeros(clips), condition, hidden)


def random_states(depth: int, clips: int = 4, width: int = 8) -> dict[int, torch.Tensor]:
    """Hidden states as leaves that need gradients, of blocks 0 (the input) to `depth`."""
    generator = torch.Generator().manual_seed(0)
    shape = (clips, TOKENS, width)
    return {
        k: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for k in range(depth + 1)
    }


def gradients(action: Action, hidden: dict[int, torch.Tensor]) -> dict[int, float]:
    """Largest gradient by block, of those that have one."""
    states = [hidden[k] for k in sorted(hidden)]
    by_block = torch.autograd.grad(action.value(result_of(hidden)), states, allow_unused=True)
    return {k: float(g.abs().max()) for k, g in enumerate(by_block) if g is not None}


# -- which blocks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "pairs"),
    [
        ((2, 2), [(2, 3)]),
        ((2, 2, 2), [(2, 4)]),
        ((3, 3), [(2, 4)]),
        ((2, 4), [(2, 4)]),
        ((4, 2), [(3, 4)]),
        ((4, 4, 4), [(3, 7)]),
        ((6, 6), [(4, 9)]),
        ((2, 2, 2, 2, 2, 2), [(2, 4), (4, 6), (6, 8)]),
        ((8, 8, 8), [(5, 13)]),
    ],
)
def test_the_middles_of_groups_are_aligned(
    sizes: tuple[int, ...], pairs: list[tuple[int, int]]
) -> None:
    assert list(align_pairs(of_sizes(*sizes))) == pairs


def test_every_grouping_gives_pairs_of_different_blocks() -> None:
    """Shuffled groups, a control, are not contiguous; a pair is always drawn to a deeper block."""
    generator = torch.Generator().manual_seed(0)
    for sizes in ((2, 2), (2, 2, 2), (3, 3), (2, 4), (4, 4, 4), (5, 7)):
        labels = torch.tensor(of_sizes(*sizes))
        for _ in range(40):
            shuffled = labels[torch.randperm(len(labels), generator=generator)].tolist()
            pairs = align_pairs(shuffled)
            assert pairs
            assert all(1 <= student < teacher <= len(labels) for student, teacher in pairs)
    assert align_pairs([0, 1, 2, 0, 1, 2]) == ((4, 5),)


def test_an_action_names_the_blocks_that_it_reads() -> None:
    align = build_action("align", of_sizes(2, 2, 2))
    assert align is not None
    assert (align.blocks, align.describe()) == ((2, 4), "2 <- 4")
    diversify = build_action("diversify", [0, 0, 1, 2, 2, 1])
    assert diversify is not None
    assert (diversify.blocks, diversify.describe()) == (tuple(range(7)), "1+2, 3+6, 4+5")
    assert build_action("none", of_sizes(2, 2)) is None


# -- the terms -------------------------------------------------------------------------------------


def test_align_is_the_mean_distance_and_moves_the_student_only() -> None:
    hidden = random_states(6)
    action = Align(((2, 4), (3, 5)))
    cosines = [torch.cosine_similarity(hidden[a], hidden[b], dim=-1) for a, b in action.pairs]
    expected = sum(float(1 - c.detach().mean()) for c in cosines) / 2
    assert float(action.value(result_of(hidden)).detach()) == pytest.approx(expected, rel=1e-5)
    assert set(gradients(action, hidden)) == {2, 3}
    same = {**hidden, 2: hidden[4].detach().clone().requires_grad_()}
    assert gradients(Align(((2, 4),)), same)[2] == pytest.approx(0, abs=1e-6)


def test_diversify_is_the_mean_square_of_the_cosines_of_updates() -> None:
    hidden = random_states(5)
    action = Diversify(((1, 2, 3), (4, 5)))
    update = {k: hidden[k] - hidden[k - 1] for k in range(1, 6)}
    pairs = [(1, 2), (1, 3), (2, 3), (4, 5)]
    squares = [torch.cosine_similarity(update[a], update[b], dim=-1).square() for a, b in pairs]
    expected = sum(float(square.detach().mean()) for square in squares) / 4
    assert float(action.value(result_of(hidden)).detach()) == pytest.approx(expected, rel=1e-5)


def test_updates_along_one_line_or_at_right_angles() -> None:
    x, y = torch.eye(8)[:2].view(2, 1, 1, 8)
    start = torch.zeros(1, 1, 8)
    for second, expected in ((3 * x, 1.0), (-2 * x, 1.0), (y, 0.0)):
        hidden = {0: start, 1: start + x, 2: start + x + second}
        assert float(Diversify(((1, 2),)).value(result_of(hidden))) == pytest.approx(expected)


def test_steps_along_diversify_make_updates_differ() -> None:
    torch.manual_seed(0)
    shared, *own = torch.randn(4, 2, TOKENS, 8)
    updates = [(shared + 0.3 * each).requires_grad_() for each in own]
    action = Diversify(((1, 2, 3),))

    def value() -> torch.Tensor:
        states = torch.cat([torch.zeros(1, 2, TOKENS, 8), torch.stack(updates)]).cumsum(0)
        return action.value(result_of(dict(enumerate(states))))

    before = float(value().detach())
    for _ in range(50):
        for update, gradient in zip(updates, torch.autograd.grad(value(), updates), strict=True):
            update.data -= 5 * gradient
    assert before > 0.7
    assert float(value().detach()) < 0.2


def test_blocks_that_do_nothing_yet_have_a_bounded_gradient() -> None:
    """adaLN-zero: at the start every block is the identity, and soon after nearly so."""
    for size in (0.0, 1e-8, 1e-4):
        hidden = {k: v.detach().float() for k, v in random_states(2, width=8).items()}
        hidden[1] = hidden[0] + size * hidden[1]
        hidden[2] = hidden[1] + size * hidden[2]
        hidden = {k: v.requires_grad_() for k, v in hidden.items()}
        largest = max(gradients(Diversify(((1, 2),)), hidden).values())
        assert largest < 5  # 1 / LEAST_UPDATE over 20 tokens


def test_masked_padding_does_not_count() -> None:
    """Two frames a token: a token counts if one of its frames is real."""
    hidden = random_states(4)
    mask_BT = torch.tensor([[True] * 9, [True] * 5 + [False] * 4])[[0, 1, 1, 0]]
    for action in (Align(((2, 4),)), Diversify(((1, 2), (3, 4)))):
        whole = [
            float(
                action.value(result_of({k: v[b : b + 1, :n] for k, v in hidden.items()})).detach()
            )
            for b, n in enumerate((5, 3, 3, 5))
        ]
        value = float(action.value(result_of(hidden, mask_BT)).detach())
        assert value == pytest.approx(sum(whole) / 4, rel=1e-6)


@pytest.mark.parametrize("action", [Align(((1, 3),)), Diversify(((1, 2), (3, 4)))])
def test_half_precision_states_give_an_fp32_term(action: Action) -> None:
    hidden = {k: v.detach().bfloat16() for k, v in random_states(4).items()}
    assert action.value(result_of(hidden)).dtype == torch.float32


# -- in the mechanism ------------------------------------------------------------------------------


def acting(folder: Path, labels: list[int], **options: Any) -> StructureMechanism:
    """A mechanism of 1000 steps whose action began at step 100 with these groups."""
    changes = {"train__steps": 1000, "train__validate_every": 50, **REGIME}
    recipe = load_recipe(
        write_recipe(folder / "r.toml", "t2a", model__depth=len(labels), **changes)
    )
    structure = StructureMechanism.build(StructureOptions(**options), recipe)
    structure.begin(tuple(labels), 100)
    return structure


def test_the_weight_rises_over_the_ramp_and_is_the_action_s_own(tmp_path: Path) -> None:
    for options, weight in (
        ({"action": "align"}, 0.25),
        ({"action": "diversify"}, 0.05),
        ({"action": "align", "weight": 0.7}, 0.7),
    ):
        structure = acting(tmp_path, of_sizes(2, 2), **options)
        hidden = random_states(4)
        bare = float(structure.action.value(result_of(hidden)).detach())
        for step, share in ((100, 0.001), (124, 0.5), (149, 1.0), (900, 1.0)):
            plan = structure.plan(step, Plan())
            assert plan.active == ("structure",)
            term = float(structure.loss(result_of(hidden)).detach())
            assert term == pytest.approx(share * weight * bare, rel=0.02)
            assert structure.metrics()["value"] == pytest.approx(bare)
        assert structure.metrics()["lambda"] == weight


def test_hidden_states_are_asked_for_beside_those_of_others(tmp_path: Path) -> None:
    structure = acting(tmp_path, of_sizes(2, 2, 2), action="align")
    plan = structure.plan(100, Plan(hidden=(1, 2, 3), active=("guidance",)))
    assert (plan.hidden, plan.active) == ((1, 2, 3, 4), ("guidance", "structure"))
    idle = acting(tmp_path, of_sizes(2, 2, 2))
    assert idle.plan(100, Plan()) == Plan()
    assert idle.loss(result_of(random_states(6))) is None


@pytest.mark.parametrize("key", ["z", "change", "share", "cap"])
def test_retired_keys_are_refused_with_the_reason(key: str, tmp_path: Path) -> None:
    changes = {**REGIME, f"stage__structure__{key}": 0.1}
    path = write_recipe(tmp_path / "r.toml", "t2a", **changes)
    with pytest.raises(StageError) as caught:
        load_recipe(path)
    problem = str([each.what for each in caught.value.problems])
    assert "this key is gone; delete it" in problem
