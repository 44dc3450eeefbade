"""What a recipe may say: one pydantic model per table, every default written once, here.

No torch. The docstring under a field is its documentation: `stagecli recipes show` prints it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
PositiveReal = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Hertz = Annotated[float, Field(gt=0)]

FilterFamily = Literal["cheby1", "butter", "bessel", "ellip"]
SIZES: dict[str, tuple[int, int, int]] = {  # width, depth, heads (DiT paper, table 1, from S up)
    "tiny": (192, 6, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class About(Section):
    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$")
    """Name of the recipe and, unless `--name` says otherwise, of the run."""
    summary: str = ""
    """One line that `recipes list` shows."""
    needs: str = ""
    """What it takes: machine, data, time."""


class Task(Section):
    kind: Literal["t2a", "sr"]
    """`t2a`: text to audio. `sr`: audio super-resolution."""


class Data(Section):
    source: Literal["synth", "manifest", "folder", "huggingface"] = "synth"
    """Where clips come from; `synth` needs no download."""
    path: str = ""
    """Manifest file, folder, or data set id; `${VAR}` is replaced from the environment."""
    sample_rate: Positive
    """Hz. Files above it are resampled down; a file below it is an error."""
    seconds: PositiveReal
    """Length of a training crop, and of a t2a sample."""
    padding: Literal["silence", "mask"] = "silence"
    """A clip shorter than the crop: its padding is silence to be learnt, or is masked out."""
    on_bad_file: Literal["error", "skip"] = "error"
    """A file that cannot be used stops the run before it starts, or is left out and reported."""
    caption_column: str = "caption"
    """Column (or JSON key) that holds the caption."""
    audio_column: str = "audio"
    """Column that holds the audio of a Hugging Face data set."""
    train_split: str = "train"
    valid_split: str = "valid"
    test_split: str = "test"
    clips: Positive = 2000
    """Number of training clips of `synth`; valid and test have a tenth each (at least 16)."""
    workers: Natural = 1
    """Loader processes; the result does not depend on it."""
    memory_mb: Natural = 1024
    """Decoded audio each loader process may keep in memory, and as much again of features that guide."""
    crops: Positive = 4
    """Crops per clip in the feature cache (only where the codec is a network)."""
    cache_dir: str = "runs/.cache"
    """Feature cache: what is frozen is computed once."""


class Codec(Section):
    kind: Literal["mel", "mdct", "stft", "dac", "encodec"]
    """Audio <-> frames. `mel` for t2a without weights; `mdct`/`stft` are lossless; `dac`/`encodec` are networks."""
    hop: Positive = 256
    """Samples per frame (mel, mdct, stft)."""
    n_fft: Positive = 1024
    """Window in samples (mel, stft)."""
    n_mels: Positive = 80
    f_min: Annotated[float, Field(ge=0)] = 0.0
    f_max: PositiveReal | None = None
    """Hz; default: half the sample rate."""
    floor: PositiveReal = 1e-5
    """Mel magnitudes are clamped here before the logarithm; spectral companding is linear below it."""
    iterations: Positive = 64
    """Griffin-Lim iterations (mel without a vocoder)."""
    vocoder: str = ""
    """`transformers` vocoder (SpeechT5HifiGan) for mel: hub id or folder."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Power-law companding of spectral values (mdct, stft)."""
    model: str = ""
    """Hub id or folder of a `transformers` DAC or EnCodec model."""


class Condition(Section):
    text: Literal["none", "bytes", "transformers"] = "none"
    """`bytes`: a small transformer trained along. `transformers`: a frozen encoder, embeddings cached."""
    model: str = ""
    """Hub id or folder of the text encoder (T5, CLAP or any AutoModel)."""
    max_length: Positive = 64
    """Bytes or tokens kept of a caption."""
    width: Positive = 128
    """Width of the `bytes` encoder."""
    depth: Positive = 2
    """Layers of the `bytes` encoder."""
    dropout: Fraction = 0.1
    """Share of captions dropped in training, so that sampling can use classifier-free guidance."""
    cutoff: tuple[Hertz, Hertz] | None = None
    """Range of the low-pass cutoff in Hz (sr)."""
    filters: tuple[FilterFamily, ...] = ("cheby1", "butter", "bessel", "ellip")
    """Low-pass families the low-resolution input is made with (sr)."""
    orders: tuple[Positive, Positive] = (2, 10)
    """Range of the filter order (sr)."""


class Model(Section):
    size: Literal["tiny", "S", "B", "L", "XL"] = "tiny"
    """Named size; `width`, `depth`, `heads` override its numbers."""
    width: Positive | None = None
    depth: Positive | None = None
    heads: Positive | None = None
    patch: Positive = 1
    """Frames per token."""
    mlp_ratio: PositiveReal = 4.0
    output: Literal["plain", "gated"] = "plain"
    """`gated` lets x_t pass around the trunk, channel by channel: for codecs with more channels than `width`."""

    @model_validator(mode="after")
    def numbers(self) -> Model:
        width, _, heads = self.resolved()
        if width % heads or (width // heads) % 2:
            raise ValueError(f"width {width} must be an even multiple of heads {heads}")
        return self

    def resolved(self) -> tuple[int, int, int]:
        """(width, depth, heads) with the named size filled in."""
        width, depth, heads = SIZES[self.size]
        return self.width or width, self.depth or depth, self.heads or heads


class Objective(Section):
    kind: Literal["rectified-flow"] = "rectified-flow"
    density: Literal["uniform", "logit-normal"] = "uniform"
    """Density that t is drawn from, where no mechanism says otherwise."""
    mean: float = 0.0
    """Mean of logit t (logit-normal)."""
    std: PositiveReal = 1.0
    """Standard deviation of logit t (logit-normal)."""
    floor: Fraction = 0.0
    """Share of t drawn uniformly instead: sampling starts at t = 1, where logit-normal has next to nothing."""


class Train(Section):
    steps: Positive
    """Optimiser steps."""
    batch_size: Positive = 32
    """Clips per optimiser step, over all processes and accumulation steps."""
    accumulate: Positive = 1
    """Backward passes per optimiser step."""
    lr: PositiveReal = 5e-4
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """After warm-up: cosine to `lr_end`, constant, or stable with a linear decay in the last fifth."""
    warmup_steps: Natural = 100
    lr_end: Fraction = 0.05
    """Share of `lr` at the end of `cosine` and `wsd`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    clip: PositiveReal = 1.0
    """Largest gradient norm."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """`auto`: bf16 where the device computes in it, else fp32; settled when the run is made, and written to it."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the weight average that is sampled and evaluated."""
    compile: bool = False
    """Compile the blocks with `torch.compile`: one compilation serves all of them. Worth it on a GPU."""
    activation_checkpointing: bool = False
    seed: Natural = 0
    log_every: Positive = 20
    bins: Positive = 10
    """Noise bins that the loss is reported by."""
    validate_every: Natural = 250
    """Steps between validation losses; 0: never."""
    validate_clips: Positive = 64
    """Clips of the valid split that the validation loss reads."""
    validate_t: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Fixed grid of t that the validation loss is the mean over."""
    evaluate_every: Natural = 0
    """Steps between evaluations of the EMA weights on the valid split (and at the last step); 0: never."""
    evaluate_clips: Positive = 64
    """Clips of the valid split that such an evaluation scores, as crops of the training length."""
    evaluate_steps: Natural = 0
    """Sampler steps of such an evaluation; 0: `evaluate.steps`."""
    best: str = "valid/loss"
    """Row that chooses the best checkpoint: `valid/loss`, or one of the evaluation, such as `eval/lsd`."""
    sample_every: Natural = 1000
    """Steps between sets of samples; 0: only at the end."""
    samples: Natural = 4
    """Samples per set."""
    checkpoint_every: Positive = 1000
    keep: Positive = 2
    """Checkpoints kept; the best one is kept besides."""


class Evaluate(Section):
    sampler: Literal["euler", "heun", "ab2"] = "euler"
    """`ab2`: second-order Adams-Bashforth, one network call a step."""
    steps: Positive = 50
    """Sampler steps."""
    cfg_scale: Annotated[float, Field(ge=0)] = 1.0
    """Scale of classifier-free guidance (CFG); 1 turns it off."""
    cfg_interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Range of t in which classifier-free guidance acts."""
    samples: Positive = 200
    """Clips that `evaluate` scores at most."""
    batch_size: Positive = 16
    seed: Natural = 0
    cutoffs: tuple[Hertz, ...] = (4000.0,)
    """Test cutoffs in Hz (sr)."""
    filter: FilterFamily = "cheby1"
    """Test low-pass family (sr)."""
    order: Positive = 8
    """Test filter order (sr)."""
    preset: Literal["nuwave", "ssr_eval"] = "nuwave"
    """LSD convention (sr)."""
    judge: str = "bundled:judge"
    """SSL encoder that scores t2a, as kind:model; never the one that measures the regime."""


class Recipe(Section):
    """A run, completely."""

    about: About = About()
    task: Task
    data: Data
    codec: Codec
    condition: Condition = Condition()
    model: Model = Model()
    objective: Objective = Objective()
    train: Train
    stage: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """One table per mechanism, in declared order; none: plain training."""
    evaluate: Evaluate = Evaluate()
