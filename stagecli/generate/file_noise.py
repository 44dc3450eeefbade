"""The noise that a file is restored from: its own, and as wide as what its channels share."""

from __future__ import annotations

import hashlib

import numpy as np

from stagecli.data.examples import stream

FILE_NOISE_STREAM = 101  # number of the random stream; `Pipeline.noise` and training use others
BLOCK = 256  # frames that are drawn together


class FileNoise:
    """Noise that depends on (seed, name of the file, channel, frame) alone.

    correlation_CC: of the channels' noise; width: channels of the codec.
    """

    def __init__(self, seed: int, name: str, correlation_CC: np.ndarray, width: int) -> None:
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        self._key = (seed, FILE_NOISE_STREAM, int.from_bytes(digest[:8], "little"))
        self._mix_CC = square_root(correlation_CC)
        self._width = width

    def frames(self, start: int, stop: int) -> np.ndarray:
        """Frames [channels, stop - start, width]."""
        first = start // BLOCK
        own = []
        for channel in range(len(self._mix_CC)):
            drawn = [self._block(channel, block) for block in range(first, -(-stop // BLOCK))]
            own.append(np.concatenate(drawn)[start - first * BLOCK : stop - first * BLOCK])
        return np.tensordot(self._mix_CC, np.stack(own), axes=1).astype(np.float32)

    def _block(self, channel: int, block: int) -> np.ndarray:
        seed, number, name = self._key
        generator = stream(seed, number, name, channel, block)
        return generator.standard_normal((BLOCK, self._width), dtype=np.float32)


def square_root(correlation_CC: np.ndarray) -> np.ndarray:
    """Weights that give independent noise of variance 1 these correlations, and keep its variance.

    The least change: the symmetric square root.
    """
    values_C, vectors_CC = np.linalg.eigh(correlation_CC)
    root_CC = (vectors_CC * np.sqrt(np.maximum(values_C, 0.0))) @ vectors_CC.T
    return root_CC / np.linalg.norm(root_CC, axis=1, keepdims=True)
