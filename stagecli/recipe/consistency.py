"""Checks across keys: what no single field of the schema can see."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from stagecli.errors import significant
from stagecli.metrics.cutoffs import cutoff_problem
from stagecli.metrics.in_training import refusal
from stagecli.metrics.lsd_presets import LSD_PRESETS
from stagecli.recipe.messages import explain
from stagecli.recipe.toml_positions import Key
from stagecli.schema import Recipe

MPEG_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
LARGEST_MDCT = 4096  # samples; the transform is a matrix of as many rows and columns


def find_contradictions(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    """(key, what is wrong) for every value that does not fit the others, and for `[stage.*]`."""
    if recipe.task.kind == "sr":
        yield from _super_resolution(recipe)
    else:
        yield from _text_to_audio(recipe)
    yield from _alterations(recipe)
    yield from _data_and_codec(recipe)
    yield from _training(recipe)
    yield from _stages(recipe)


def _super_resolution(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    condition = recipe.condition
    codec = recipe.codec
    nyquist = recipe.data.sample_rate / 2
    below = f"below half the sample rate ({nyquist:g} Hz)"
    if condition.cutoff is None:
        yield ("condition", "cutoff"), "required for sr: the range of low-pass cutoffs in Hz"
    elif not condition.cutoff[0] <= condition.cutoff[1] < nyquist:
        yield ("condition", "cutoff"), f"must be in rising order and stay {below}"
    if codec.kind not in ("mdct", "stft"):
        yield ("codec", "kind"), f"sr needs a lossless codec (mdct or stft), got {codec.kind!r}"
    for cutoff in recipe.evaluate.cutoffs:
        if cutoff >= nyquist:
            yield ("evaluate", "cutoffs"), f"{cutoff:g} Hz is not {below}"
    if condition.orders[0] > condition.orders[1]:
        yield ("condition", "orders"), "must be in rising order"


def _alterations(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    """`[augment]`, and what else only super-resolution has."""
    augment = recipe.augment
    if recipe.task.kind != "sr":
        for name, value in augment.model_dump().items():
            if value:
                yield ("augment", name), "applies to sr only"
        if recipe.data.narrow != "silence":
            yield ("data", "narrow"), "applies to sr only"
        if recipe.model.levels:
            yield ("model", "levels"), "applies to sr only"
    elif augment.lossy and recipe.data.sample_rate not in MPEG_RATES:
        rates = ", ".join(map(str, MPEG_RATES))
        yield ("augment", "lossy"), f"needs a data.sample_rate that MP3 has: {rates}"


def _text_to_audio(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    if recipe.condition.text == "none":
        yield ("condition", "text"), "t2a needs a text encoder: `bytes` or `transformers`"
    if recipe.condition.cutoff is not None:
        yield ("condition", "cutoff"), "applies to sr only"


def _data_and_codec(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    data = recipe.data
    codec = recipe.codec
    condition = recipe.condition
    nyquist = data.sample_rate / 2
    if condition.text == "transformers" and not condition.model:
        yield ("condition", "model"), "required: hub id or folder of the text encoder"
    if condition.text == "bytes" and condition.width % 8:
        yield ("condition", "width"), "must be a multiple of 8: four heads of an even width"
    if codec.kind in ("dac", "encodec") and not codec.model:
        yield ("codec", "model"), f"required for {codec.kind}: hub id or folder"
    if data.source == "synth" and data.synth_share > 0:
        yield ("data", "synth_share"), 'mixes `synth` with another source, and source is "synth"'
    if data.source != "synth" and not data.path:
        yield ("data", "path"), f"required for source {data.source!r}"
    if codec.f_max is not None and codec.f_max > nyquist:
        yield ("codec", "f_max"), f"is above half the sample rate ({nyquist:g} Hz)"
    if codec.kind == "mel" and codec.n_fft < codec.hop:
        yield ("codec", "n_fft"), f"must be at least the hop ({codec.hop})"
    if codec.kind == "mel" and codec.f_min >= (codec.f_max or nyquist):
        yield ("codec", "f_min"), f"must be below f_max ({codec.f_max or nyquist:g} Hz)"
    if codec.kind == "stft" and (codec.hop % 2 or codec.n_fft % 2 or codec.n_fft < 2 * codec.hop):
        yield (
            ("codec", "n_fft"),
            f"stft needs an even hop and an even n_fft of twice that ({codec.hop}) or more",
        )
    if codec.kind == "mdct" and (codec.hop % 2 or codec.hop > LARGEST_MDCT):
        yield ("codec", "hop"), f"mdct needs an even hop of at most {LARGEST_MDCT:,}"


def _training(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    train = recipe.train
    if train.batch_size % train.accumulate:
        yield ("train", "batch_size"), f"must be a multiple of accumulate ({train.accumulate})"
    if train.compile == "step" and train.accumulate > 1:
        yield ("train", "compile"), "`step` needs accumulate = 1: its graph holds one gradient"
    if train.prompts and recipe.task.kind != "t2a":
        yield ("train", "prompts"), "applies to t2a only"
    if train.freeze and not train.init:
        yield ("train", "freeze"), "needs train.init: random parameters would stay random"
    problem = refusal(recipe)
    if problem:
        yield ("train", "best"), problem
    low, high = recipe.evaluate.cfg_interval
    if low > high:
        yield ("evaluate", "cfg_interval"), "must be in rising order"


def find_unscorable(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    """(key, what is wrong) for evaluations that could not give a number, however training goes."""
    if recipe.task.kind == "t2a":
        if recipe.train.evaluate_every and recipe.train.evaluate_clips < 2:
            yield ("train", "evaluate_clips"), "must be 2 or more: distances compare sets of clips"
        return
    rate = recipe.data.sample_rate
    preset = LSD_PRESETS[recipe.evaluate.preset]
    for cutoff in recipe.evaluate.cutoffs:
        if problem := cutoff_problem(cutoff, rate, preset):
            yield ("evaluate", "cutoffs"), problem
    half_window = preset.sizes(rate)[0] // 2
    if recipe.train.evaluate_every and round(recipe.data.seconds * rate) <= half_window:
        yield (
            ("data", "seconds"),
            f"is too short for LSD {preset.name} while training, which needs more than "
            f"{significant(half_window / rate, 3)} s; or set train.evaluate_every = 0",
        )


def _stages(recipe: Recipe) -> Iterator[tuple[Key, str]]:
    """The options of each mechanism, validated by its own model."""
    from stagecli.stage import registry

    for name, options in recipe.stage.items():
        problem = registry.unknown(name)
        if problem is not None:
            yield ("stage", name), problem
            continue
        try:
            registry.options(name, options)
        except ValidationError as error:
            known_keys = list(registry.load(name).Options.model_fields)
            yield from explain(error, ("stage", name), known_keys)
