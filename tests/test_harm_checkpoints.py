"""Checkpoints of strangers: no code is run, no weight is random, no question is asked.

Each fault is tried in every role that loads a checkpoint of `transformers`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, write_recipe
from helpers.encoder_checkpoints import save_clap, save_wave
from safetensors.torch import load_file, save_file

from stagecli.codec.neural import load_neural_codec
from stagecli.codec.vocoder import load_vocoder
from stagecli.condition.text import load_text_encoder
from stagecli.errors import EXIT_USAGE, StageError
from stagecli.evaluate.clap import open_clap
from stagecli.ssl import make_encoder

transformers = pytest.importorskip("transformers")

Cli = Callable[..., Result]
RATE = 8000
WORDS = ["<pad>", "</s>", "<s>", "[UNK]", "a", "dog", "barks"]

LOADERS: dict[str, Callable[[str], Any]] = {
    "codec": lambda folder: load_neural_codec(folder, sample_rate=RATE),
    "vocoder": load_vocoder,
    "text encoder": lambda folder: load_text_encoder(folder, 8),
    "encoder": lambda folder: make_encoder("transformers", folder),
    "CLAP": open_clap,
}
ROLES = list(LOADERS)
READ_PICKLED = (
    "encoder",
    "CLAP",
)  # tensors only, never objects; many are published in no other way


def save_words(folder: Path, words: list[str] = WORDS, pad: str | None = "<pad>") -> None:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {word: number for number, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=pad, unk_token="[UNK]"
    ).save_pretrained(folder)


def save_t5(folder: Path, **changes: Any) -> None:
    options = {"vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1}
    config = transformers.T5Config(**{**options, "num_heads": 2, **changes})
    transformers.T5EncoderModel(config).save_pretrained(folder)


def save_bert(folder: Path, **changes: Any) -> None:
    options = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
    config = transformers.BertConfig(**{**options, "num_attention_heads": 2, **changes})
    transformers.BertModel(config).save_pretrained(folder)


def save_clip(folder: Path) -> None:
    """A whole CLIP, image tower included."""
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 16, "intermediate_size": 8, "pad_token_id": 0}
    vision = {**small, "intermediate_size": 8, "image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=4)
    transformers.CLIPModel(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random checkpoint of every role."""
    root = tmp_path_factory.mktemp("checkpoints")
    folders = {role: root / role.replace(" ", "_") for role in ROLES}
    torch.manual_seed(0)
    dac = transformers.DacConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=16,
        hidden_size=16,
        downsampling_ratios=[2, 5, 8],
        sampling_rate=RATE,
        n_codebooks=2,
        codebook_size=16,
        codebook_dim=4,
    )
    transformers.DacModel(dac).save_pretrained(folders["codec"])
    vocoder = transformers.SpeechT5HifiGanConfig(
        model_in_dim=32,
        sampling_rate=RATE,
        upsample_initial_channel=16,
        upsample_rates=[8, 8],
        upsample_kernel_sizes=[16, 16],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
    )
    transformers.SpeechT5HifiGan(vocoder).save_pretrained(folders["vocoder"])
    save_t5(folders["text encoder"])
    save_words(folders["text encoder"])
    save_wave(folders["encoder"], "hubert")
    save_clap(folders["CLAP"])
    save_words(folders["CLAP"])
    return folders


@pytest.fixture
def copy(checkpoints: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """`copy("codec") -> folder`, to be damaged."""
    return lambda role: Path(shutil.copytree(checkpoints[role], tmp_path / "copy"))


def refusal(role: str, folder: Path) -> StageError:
    """The error of loading a folder in a role; asserts that it says where and one way out."""
    with pytest.raises(StageError) as caught:
        LOADERS[role](str(folder))
    assert role in caught.value.message
    assert str(folder) in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == EXIT_USAGE
    return caught.value


def add_to_json(file: Path, **values: Any) -> None:
    plain = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**plain, **values}))


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Puts code into a folder that raises when it is imported; fails if a question is asked."""

    def asked(*_: object) -> str:
        raise AssertionError("the library asks a question")

    monkeypatch.setattr("builtins.input", asked)

    def put(folder: Path) -> None:
        (folder / "code.py").write_text("raise SystemExit('code of the checkpoint was run')")
        auto = {"AutoConfig": "code.C", "AutoModel": "code.M", "AutoTokenizer": ["code.T", None]}
        add_to_json(folder / "config.json", auto_map=auto)

    return put


# --- code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_all_whole_checkpoints_load(role: str, checkpoints: dict[str, Path]) -> None:
    LOADERS[role](str(checkpoints[role]))


@pytest.mark.parametrize("role", ROLES)
def test_a_checkpoint_that_brings_code_is_refused_and_the_code_is_not_run(
    role: str, copy: Callable[[str], Path], trap: Callable[[Path], None]
) -> None:
    folder = copy(role)
    trap(folder)
    assert "auto_map" in refusal(role, folder).message
    assert "code" not in sys.modules or "copy" not in str(sys.modules["code"].__file__)


@pytest.mark.parametrize("model_type", ["unknown-of-a-stranger", "bert", "clap", ""])
def test_an_unknown_model_type_with_code_is_refused(
    model_type: str, copy: Callable[[str], Path], trap: Callable[[Path], None]
) -> None:
    folder = copy("text encoder")
    trap(folder)
    add_to_json(folder / "config.json", model_type=model_type)
    assert "auto_map" in refusal("text encoder", folder).message


@pytest.mark.parametrize("role", ["text encoder", "CLAP"])
def test_a_tokenizer_that_brings_code_is_refused(role: str, copy: Callable[[str], Path]) -> None:
    folder = copy(role)
    add_to_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.T", None]})
    assert "tokenizer_config.json" in refusal(role, folder).message


def test_code_named_below_the_top_of_a_config_is_found(copy: Callable[[str], Path]) -> None:
    folder = copy("CLAP")
    add_to_json(folder / "config.json", text_config={"auto_map": {"AutoModel": "code.M"}})
    assert "auto_map" in refusal("CLAP", folder).message


def test_a_kernel_of_the_hub_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("text encoder")
    add_to_json(folder / "config.json", _attn_implementation="stranger/kernel")
    assert "_attn_implementation" in refusal("text encoder", folder).message


def test_sample_asks_no_question_about_the_text_encoder_of_a_run(
    checkpoints: dict[str, Path],
    copy: Callable[[str], Path],
    trap: Callable[[Path], None],
    runs: Path,
    cli: Cli,
) -> None:
    folder = copy("text encoder")
    trap(folder)
    recipe = runs / "t2a" / "recipe.toml"
    changed = f'text = "transformers"\nmodel = {json.dumps(str(folder))}'
    text = recipe.read_text().replace('text = "bytes"', changed)
    text = "\n".join(line for line in text.splitlines() if line != 'model = ""')
    recipe.write_text(text)
    for saved in (runs / "t2a" / "checkpoints").glob("step_*"):
        (saved / "recipe.toml").write_text(text)
        (saved / "sha256sums.txt").unlink(missing_ok=True)
    result = cli("sample", "runs/t2a", "-p", "hi")
    assert result.code == EXIT_USAGE
    assert "auto_map" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("role", ROLES)
def test_pickles_are_never_executed(role: str, copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy(role)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()

    class Touch:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    torch.save({**tensors, "code": Touch()}, folder / "pytorch_model.bin")
    error = refusal(role, folder)
    assert "weights" in error.message
    assert not (tmp_path / "executed").exists()
    torch.save(tensors, folder / "pytorch_model.bin")
    if role in READ_PICKLED:
        LOADERS[role](str(folder))
    else:
        assert "only pickled weights" in refusal(role, folder).message


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_missing_and_differently_named_tensors_are_refused(
    role: str, copy: Callable[[str], Path]
) -> None:
    folder = copy(role)
    tensors = load_file(folder / "model.safetensors")
    metadata = {"format": "pt"}
    prefixed = {f"somewhere.else.{name}": value for name, value in tensors.items()}
    save_file(prefixed, folder / "model.safetensors", metadata=metadata)
    assert "lacks" in refusal(role, folder).message
    name = next(name for name in sorted(tensors) if name.endswith("weight") and "pool" not in name)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    assert "lacks" in refusal(role, folder).message


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda whole: whole[: len(whole) // 2], "damaged or cut short"),
        (lambda whole: whole[:-1], "damaged or cut short"),
        (lambda whole: b"", "damaged or cut short"),
        (lambda whole: b"\xff" * 64, "damaged or cut short"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid x\n", "Git LFS pointer"),
    ],
)
def test_weights_that_are_not_whole_are_refused(
    role: str,
    content: Callable[[bytes], bytes],
    words: str,
    copy: Callable[[str], Path],
) -> None:
    file = copy(role) / "model.safetensors"
    file.write_bytes(content(file.read_bytes()))
    assert words in refusal(role, file.parent).message


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "config",
    [
        "[]",
        "null",
        "{}",
        "{",
        '{"model_type": []}',
        "[" * 5000,
        '{"a": ' + "9" * 5000 + "}",
        "\xff",
    ],
)
def test_a_config_that_is_none_is_refused(
    role: str, config: str, copy: Callable[[str], Path]
) -> None:
    folder = copy(role)
    (folder / "config.json").write_text(config, encoding="latin-1")
    refusal(role, folder)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("value", ["x", -1, None, [], {}])
def test_config_values_of_a_wrong_type_are_refused(
    role: str, value: object, copy: Callable[[str], Path]
) -> None:
    key = {"codec": "sampling_rate", "vocoder": "upsample_rates", "text encoder": "d_model"}
    folder = copy(role)
    add_to_json(folder / "config.json", **{key.get(role, "hidden_size"): value})
    if role == "CLAP":
        # null and {} would be the published size, whose tensors are of other shapes: slow to test.
        add_to_json(folder / "config.json", text_config=value or "y", audio_config=value or "y")
    refusal(role, folder)


# --- text encoders: the check embeds one caption --------------------------------------------------


def test_a_tokenizer_that_is_a_pointer_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("text encoder")
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "tokenizer.json is a Git LFS pointer" in refusal("text encoder", folder).message


def test_a_tokenizer_without_a_pad_token_is_refused(tmp_path: Path) -> None:
    save_t5(tmp_path)
    save_words(tmp_path, pad=None)
    assert "no pad token" in refusal("text encoder", tmp_path).message


def test_a_tokenizer_with_more_words_than_the_network_is_refused(tmp_path: Path) -> None:
    save_t5(tmp_path)
    save_words(tmp_path, [*WORDS, *map(str, range(20))])
    assert "ids up to 26, its network 16" in refusal("text encoder", tmp_path).message


def test_a_caption_beyond_the_positions_is_refused(tmp_path: Path) -> None:
    save_bert(tmp_path, max_position_embeddings=8)
    save_words(tmp_path)
    load_text_encoder(str(tmp_path), 8)
    with pytest.raises(StageError, match="cannot embed a caption of 9 tokens") as caught:
        load_text_encoder(str(tmp_path), 9)
    assert "condition.max_length" in (caught.value.hint or "")
    assert "8 positions" in (caught.value.hint or "")


def test_a_whole_clip_is_refused(tmp_path: Path) -> None:
    save_clip(tmp_path)
    save_words(tmp_path)
    error = refusal("text encoder", tmp_path)
    assert "cannot embed a caption" in error.message
    assert "CLIPTextModel" in (error.hint or "")


def test_every_t5_is_read_by_its_own_class(tmp_path: Path) -> None:
    options = {"vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2}
    config = transformers.UMT5Config(**options, num_heads=2)
    theirs = transformers.UMT5EncoderModel(config).eval()
    theirs.save_pretrained(tmp_path)
    save_words(tmp_path)
    (ours,) = load_text_encoder(str(tmp_path), 8).embed(["a dog"])
    expected = theirs(torch.tensor([[4, 5]])).last_hidden_state[0]
    torch.testing.assert_close(ours, expected)


def test_the_dry_run_embeds_one_caption(tmp_path: Path, cli: Cli) -> None:
    save_clip(tmp_path / "clip")
    save_words(tmp_path / "clip")
    recipe = write_recipe(
        tmp_path / "r.toml",
        condition__text="transformers",
        condition__model=str(tmp_path / "clip"),
    )
    result = cli("train", recipe, "--dry-run")
    assert result.code == EXIT_USAGE
    assert "cannot embed a caption" in result.stderr


def test_two_tokenizers_with_one_vocabulary_have_different_caches(tmp_path: Path) -> None:
    from tokenizers import normalizers

    save_t5(tmp_path)
    save_words(tmp_path)
    encoder = load_text_encoder(str(tmp_path), 8)
    before = encoder.tokenizer_hash()
    encoder.embed(["a dog"])
    assert encoder.tokenizer_hash() == before
    encoder.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert encoder.tokenizer_hash() != before
