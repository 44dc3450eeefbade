"""What the figures mean that mechanisms report, in a few words each. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Mechanism -> figure, without the number of a block or a noise level at its end -> meaning.
FIGURES: Mapping[str, Mapping[str, str]] = {
    "guidance": {
        "lambda": "weight of the guidance loss",
        "cosine": "cosine of a guided block with the teacher's features, 1 where they agree",
        "error": "error of the codec's frames as a guided block predicts them",
        "gradient_cosine": "cosine of the gradients of guidance and of the loss, below 0 where "
        "they work against each other; _t...: at that noise level",
        "gain": "what guidance adds to the fall of the loss that it brings itself, as a share",
        "gain_bound": "upper bound of the mean gain, one-sided 95 %",
    },
    "timesteps": {
        "t_q": "noise level below which 10, 50 or 90 % of the training lies; 1 is noise",
        "ess": "effective share of a batch under its importance weights, 1 without any",
        "uniform_share": "share of t that is drawn uniformly",
    },
    "structure": {
        "active": "1 while the term acts",
        "lambda": "weight of the term",
        "value": "the term: 1 - cosine (align) or squared cosine (diversify) of the blocks",
    },
}


def figure_meaning(mechanism: str, figure: str) -> tuple[str, str] | None:
    """(name, meaning) of a figure such as `cosine_block4`; None where there is none."""
    known = FIGURES.get(mechanism, {})
    for name in (figure, re.sub(r"(_block|_t|)[\d.]+$", "", figure)):
        if name in known:
            return name, known[name]
    return None
