"""Audio that generation starts from: noised and changed as a whole, or in a span of time.

Changed as a whole: SDEdit (Meng et al., 2022, arXiv 2108.01073), from t = strength instead of from
noise alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stagecli.flow import sampler


@dataclass(frozen=True)
class Edit:
    """frames_TC: the encoded audio; strength: t at which generation starts from it, 1 is noise;
    known_T: where the frames are kept, None: nowhere.
    """

    frames_TC: Tensor
    strength: float = 1.0
    known_T: Tensor | None = None

    def noised(self, noise_BTC: Tensor) -> Tensor:
        """The audio at t = strength: x_t = (1 - t) x0 + t eps."""
        return (1 - self.strength) * self.frames_TC + self.strength * noise_BTC

    def constrained(self, velocity: sampler.Velocity) -> sampler.Velocity:
        """A velocity that leads back to the frames that are kept."""
        if self.known_T is None:
            return velocity
        return sampler.keep_frames(velocity, self.frames_TC[None], self.known_T)
