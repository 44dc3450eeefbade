"""Every key of a recipe: one pydantic model per section, every default written once, here.

No torch. The docstring under a field is its documentation: `stagecli recipes show` prints it above
the key.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from stagecli import bounds
from stagecli.bounds import Length, Range
from stagecli.files import name_problem
from stagecli.schema.model import Model
from stagecli.schema.section import (
    Batch,
    Bins,
    Clips,
    Depth,
    FilterOrder,
    Fraction,
    FractionBelowOne,
    Hertz,
    Natural,
    NoiseLevel,
    Paths,
    Positive,
    PositiveFraction,
    Real,
    SamplerSteps,
    Section,
    Seed,
    Some,
    Two,
    Width,
)

FilterFamily = Literal["cheby1", "butter", "bessel", "ellip"]
TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]


class About(Section):
    """`[about]`: describes the recipe; nothing here changes what is trained."""

    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$")
    """Name of the recipe and, without `--name`, of the run."""
    summary: str = ""
    """One-line summary shown by `stagecli recipes list`."""
    needs: str = ""
    """Requirements: machine, data and training time."""

    @field_validator("name")
    @classmethod
    def check_name(cls, name: str) -> str:
        """It becomes the name of a folder."""
        problem = name_problem(name) if name else None
        if problem:
            raise ValueError(f"the name of a run {problem}")
        return name


class Task(Section):
    """`[task]`: what the model learns to do."""

    kind: Literal["t2a", "sr"]
    """`t2a`: text to audio. `sr`: audio super-resolution."""


class Data(Section):
    """`[data]`: where clips come from and how they are cut."""

    source: Literal["synth", "manifest", "folder", "huggingface", "shards"] = "synth"
    """Kind of data set; `synth` generates clips and needs no download, `shards` are tar files."""
    path: Paths = ""
    """Manifest, folder, data set id, shards (`{000..099}`), or a URL; `${VAR}` is replaced."""
    sample_rate: Annotated[int, Range(1000, 384_000)]
    """Sample rate in Hz. Files with a higher rate are resampled; a lower rate is an error."""
    seconds: Annotated[float, bounds.CLIP_SECONDS]
    """Length in seconds of a training crop, and of a generated t2a clip."""
    padding: Literal["silence", "mask"] = "silence"
    """Padding of clips shorter than the crop: trained on as `silence`, or excluded by a `mask`."""
    on_bad_file: Literal["error", "skip"] = "error"
    """Unusable files either stop the run before it starts, or are skipped and reported."""
    path_column: str = "path"
    """Column of a manifest that holds the path of the audio file, relative to the manifest."""
    caption_column: str = "caption"
    """Column (or JSON key) of the caption or a list of them; `caption_*` joins several columns.

    In a folder of audio, `folder` means the name of each file's folder.
    """
    split_column: str = "split"
    """Column of a manifest that holds the name of the split."""
    audio_column: str = "audio"
    """Column of a Hugging Face data set that holds the audio."""
    train_split: str = "train"
    """Name of the training split in the data set."""
    valid_split: str = "valid"
    """Name of the validation split in the data set."""
    test_split: str = "test"
    """Name of the test split in the data set."""
    valid_share: Annotated[float, Range(0, 0.9, open_low=True)] = 0.05
    """Share of the clips to validate on, where a folder or manifest has no splits of its own."""
    clips: Annotated[int, Range(1, 100_000)] = 2000
    """Number of training clips of `synth`; valid and test have a tenth each (at least 16)."""
    synth_share: FractionBelowOne = 0.0
    """Share of training examples that are clips of `synth`; the others come from `source`."""
    narrow: Literal["silence", "mask"] = "silence"
    """What lies above the end of a clip's content: trained on as `silence`, or excluded (sr)."""
    workers: Annotated[int, Range(0, 256)] = 1
    """Data loader processes; the result does not depend on their number."""
    memory_mb: Annotated[int, Range(0, 10_000_000)] = 1024
    """MB of decoded audio each loader process may cache, and as much again of teacher features."""
    crops: Annotated[int, Range(1, 1000)] = 4
    """Crops per clip in the feature cache (neural codecs only)."""
    remote_cache_gb: Annotated[float, Range(0, 1e6)] = 20.0
    """GB of remote audio (`s3://`, `hf://`, ...) that are kept in `cache_dir`."""
    cache_dir: str = "runs/.cache"
    """Directory of the feature cache, which holds the outputs of frozen networks."""


class Codec(Section):
    """`[codec]`: the invertible map between audio and the frames that are diffused."""

    kind: Literal["mel", "mdct", "stft", "dac", "encodec"]
    """`mel`: log-mel, for t2a. `mdct`, `stft`: lossless. `dac`, `encodec`: pretrained networks."""
    hop: Annotated[int, Range(1, 65_536)] = 256
    """Hop between frames, in audio samples (mel, mdct, stft)."""
    n_fft: Annotated[int, Range(2, 65_536)] = 1024
    """Window length in audio samples (mel, stft)."""
    n_mels: Annotated[int, Range(1, 1024)] = 80
    """Number of mel bands (mel)."""
    f_min: Annotated[float, Range(0, 192_000)] = 0.0
    """Lowest frequency of the mel bands in Hz (mel)."""
    f_max: Hertz | None = None
    """Highest frequency of the mel bands in Hz (mel); default: half the sample rate."""
    floor: PositiveFraction = 1e-5
    """Clamp of mel magnitudes before the logarithm; spectral companding is linear below it."""
    iterations: Annotated[int, Range(1, 10_000)] = 64
    """Griffin-Lim iterations (mel without a vocoder)."""
    vocoder: str = ""
    """Hub id or folder of a `transformers` SpeechT5HifiGan vocoder (mel); default: Griffin-Lim."""
    alpha: PositiveFraction = 0.3
    """Exponent of the power-law companding of spectral values (mdct, stft)."""
    model: str = ""
    """Hub id or folder of a `transformers` model (dac, encodec)."""


class Condition(Section):
    """`[condition]`: what the network is conditioned on."""

    text: Literal["none", "bytes", "transformers"] = "none"
    """`bytes`: a small transformer, trained jointly. `transformers`: a frozen, cached encoder."""
    model: str = ""
    """Hub id or folder of the frozen text encoder (T5, CLAP or any AutoModel)."""
    max_length: Annotated[int, Range(1, 10_000)] = 64
    """Captions are truncated to this many bytes or tokens."""
    width: Width = 128
    """Width of the `bytes` encoder."""
    depth: Depth = 2
    """Number of layers of the `bytes` encoder."""
    dropout: Fraction = 0.1
    """Probability of dropping a caption in training, which classifier-free guidance relies on."""
    cutoff: Annotated[tuple[Hertz, Hertz], Two] | None = None
    """Range of the training low-pass cutoff in Hz (sr)."""
    filters: Annotated[tuple[FilterFamily, ...], Some] = (
        "cheby1",
        "butter",
        "bessel",
        "ellip",
    )
    """Low-pass filter families that produce the low-resolution training input (sr)."""
    orders: Annotated[tuple[FilterOrder, FilterOrder], Two] = (2, 10)
    """Range of the training filter order (sr)."""


class Augment(Section):
    """`[augment]`: how training alters clips and their inputs, for audio unlike them (sr)."""

    equaliser_db: Annotated[float, Range(0, 24)] = 0.0
    """Standard deviation in dB of a random gain at each octave, smooth in between."""
    tilt_db: Annotated[float, Range(0, 12)] = 0.0
    """Steepest random slope of a clip's spectrum, up or down, in dB an octave."""
    gain_db: Annotated[float, Range(0, 60)] = 0.0
    """Largest random change of a clip's level, up or down."""
    resampled: Fraction = 0.0
    """Share of inputs made by a resampler, windowed sinc or straight lines, instead of a filter."""
    lossy: Fraction = 0.0
    """Share of inputs that went through MP3 or Vorbis after their filter."""


class Objective(Section):
    """`[objective]`: rectified flow, and the density of its time t (1 is noise, 0 is data)."""

    density: Literal["uniform", "logit-normal"] = "uniform"
    """Density of t, unless a mechanism replaces it."""
    mean: Real = 0.0
    """Mean of logit t (logit-normal)."""
    std: Annotated[float, Range(0.01, 100)] = 1.0
    """Standard deviation of logit t (logit-normal)."""
    floor: Fraction = 0.0
    """Share of uniform t mixed in: sampling starts at t = 1, which logit-normal hardly covers."""


class Train(Section):
    """`[train]`: optimisation, and what a run reports and keeps while it trains."""

    steps: Positive
    """Optimiser steps."""
    batch_size: Batch = 32
    """Clips per optimiser step, over all processes and accumulation steps."""
    accumulate: Batch = 1
    """Backward passes per optimiser step."""
    lr: Annotated[float, Range(0, 100, open_low=True)] = 5e-4
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """After warm-up: cosine to `lr_end`, constant, or constant until a linear decay (`wsd`)."""
    warmup_steps: Natural = 100
    """Steps of linear learning-rate warm-up."""
    lr_end: Fraction = 0.05
    """Final learning rate of `cosine` and `wsd`, as a fraction of `lr`."""
    weight_decay: Annotated[float, Range(0, 100)] = 0.01
    """Decoupled weight decay of AdamW."""
    betas: Annotated[tuple[FractionBelowOne, FractionBelowOne], Two] = (0.9, 0.99)
    """Decay rates of AdamW's first and second moments."""
    clip: Annotated[float, Range(0, 1e9, open_low=True)] = 1.0
    """Gradient norm above which gradients are clipped."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """`auto`: bf16 where the device supports it, else fp32; resolved when the run is created."""
    init: str = ""
    """Fine-tuning: run, export or hub id whose EMA weights training starts from."""
    freeze: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Length(0, 100)] = ()
    """Fine-tuning: patterns of parameters that stay as they are, such as `bytes.*`."""
    ema: FractionBelowOne = 0.999
    """Decay per step of the weight average that is sampled and evaluated."""
    compile: Literal["none", "blocks", "step"] = "none"
    """`blocks`: compile the transformer blocks; `step`: also record the step as a CUDA graph."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower steps."""
    seed: Seed = 0
    """Seed of initialisation, data order, crops, noise and dropout."""
    log_every: Positive = 20
    """Steps between rows of metrics."""
    bins: Bins = 10
    """Number of noise bins that the loss is broken down by."""
    validate_every: Natural = 250
    """Steps between validation losses; 0: never."""
    validate_clips: Clips = 64
    """Clips of the valid split in the validation loss."""
    validate_t: Annotated[tuple[NoiseLevel, ...], Some] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Fixed values of t over which the validation loss is averaged."""
    evaluate_every: Natural = 0
    """Steps between evaluations of the EMA weights (and one at the last step); 0: never."""
    evaluate_clips: Clips = 64
    """Clips of the valid split per evaluation, as crops of the training length."""
    evaluate_steps: Annotated[int, Range(0, 10_000)] = 0
    """Sampler steps of these evaluations; 0: `evaluate.steps`."""
    best: str = "valid/loss"
    """Score that selects the best checkpoint: `valid/loss` or an evaluation row like `eval/lsd`."""
    sample_every: Natural = 1000
    """Steps between sets of samples; 0: only at the end."""
    samples: Annotated[int, Range(0, 10_000)] = 4
    """Number of clips per set of samples."""
    prompts: Annotated[tuple[str, ...], Length(0, 1000)] = ()
    """Prompts of every set of samples (t2a), instead of captions of the valid split."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints."""
    keep: Positive = 2
    """Number of newest checkpoints to keep; the best one is kept as well."""
    report_to: Annotated[tuple[TrackerName, ...], Length(0, 4)] = ()
    """Trackers that get a copy of the run's rows, events, audio and curves; offline by default."""


class Evaluate(Section):
    """`[evaluate]`: how checkpoints are sampled and scored."""

    sampler: Literal["euler", "heun", "ab2"] = "euler"
    """ODE solver; `ab2`: second-order Adams-Bashforth, one network call per step."""
    steps: SamplerSteps = 50
    """Sampler steps."""
    cfg_scale: Annotated[float, bounds.CFG_SCALE] = 1.0
    """Scale of classifier-free guidance (CFG); 1 turns it off."""
    cfg_interval: Annotated[tuple[Fraction, Fraction], Two] = (0.0, 1.0)
    """Range of t in which classifier-free guidance is applied."""
    samples: Clips = 200
    """Maximum number of clips that `stagecli evaluate` scores."""
    batch_size: Batch = 16
    """Clips (t2a) or windows (sr) per sampling batch."""
    seed: Seed = 0
    """Seed of the sampling noise."""
    cutoffs: Annotated[tuple[Hertz, ...], Some] = (4000.0,)
    """Test cutoffs in Hz (sr)."""
    filter: FilterFamily = "cheby1"
    """Filter family of the test low-pass (sr)."""
    order: FilterOrder = 8
    """Filter order of the test low-pass (sr)."""
    preset: Literal["nuwave", "ssr_eval"] = "nuwave"
    """Convention of the log-spectral distance, LSD (sr)."""
    judge: str = "bundled:judge"
    """SSL encoder that scores t2a, as kind:model; must not be the teacher or the monitor."""


class Recipe(Section):
    """A complete description of a run."""

    about: About = About()
    task: Task
    data: Data
    codec: Codec
    condition: Condition = Condition()
    augment: Augment = Augment()
    model: Model = Model()
    objective: Objective = Objective()
    train: Train
    stage: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of each mechanism, by its name; empty: plain training."""
    evaluate: Evaluate = Evaluate()
