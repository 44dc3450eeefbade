"""The cache of caption embeddings: read again for the same text encoder, and for no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import write_recipe

from stagecli.condition.text import load_text_encoder
from stagecli.data.cache import FeatureCache
from stagecli.recipe.load import load_recipe
from stagecli.train.prepare import prepare

WORDS = "a an and bell click deep high hiss loud low noise of pitched quiet short soft the tone two"


def save_encoder(folder: Path, seed: int = 0) -> Path:
    """A tiny random T5 encoder; its weights are a function of the seed."""
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    transformers.T5EncoderModel(config).save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, words: list[str]) -> Path:
    """A tokenizer of whole words whose ids are their positions in the list, after three others."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def text_cache(folder: Path, encoder: Path) -> FeatureCache:
    """The filled cache of a run with this text encoder; all runs share their cache directory."""
    recipe = load_recipe(
        write_recipe(
            folder / "r.toml",
            condition__text="transformers",
            condition__model=str(encoder),
            data__cache_dir=str(folder / "cache"),
        )
    )
    cache = prepare(recipe, None, torch.device("cpu"), lambda *_: None).text_cache
    assert cache is not None
    return cache


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return save_tokenizer(save_encoder(tmp_path / "t5"), WORDS.split())


def differs(one: FeatureCache, other: FeatureCache) -> bool:
    """Whether two caches hold other embeddings of the same captions."""
    names = {path.relative_to(one.path) for path in one.path.rglob("*.npy")}
    assert names == {path.relative_to(other.path) for path in other.path.rglob("*.npy")} != set()
    return any(
        not np.array_equal(np.load(one.path / name), np.load(other.path / name)) for name in names
    )


def test_the_same_encoder_reads_the_same_cache(tmp_path: Path, encoder: Path) -> None:
    first = text_cache(tmp_path, encoder)
    copy = shutil.copytree(encoder, tmp_path / "copy")
    assert text_cache(tmp_path, copy).path == first.path


def test_another_tokenizer_with_the_same_weights_has_a_cache_of_its_own(
    tmp_path: Path, encoder: Path
) -> None:
    first = text_cache(tmp_path, encoder)
    other = shutil.copytree(encoder, tmp_path / "other")
    save_tokenizer(other, WORDS.split()[::-1])
    second = text_cache(tmp_path, other)
    assert second.path != first.path
    assert differs(first, second)


def test_other_weights_with_the_same_tokenizer_have_a_cache_of_their_own(
    tmp_path: Path, encoder: Path
) -> None:
    first = text_cache(tmp_path, encoder)
    other = save_tokenizer(save_encoder(tmp_path / "other", seed=1), WORDS.split())
    second = text_cache(tmp_path, other)
    assert second.path != first.path
    assert differs(first, second)


def test_the_part_of_a_caption_that_is_read_is_counted_in_tokens(encoder: Path) -> None:
    """Two captions with one beginning are one condition when they are cut there."""
    text = load_text_encoder(str(encoder), max_length=3)
    short, loud, quiet = text.kept(["a bell", "a deep bell loud", "a deep bell quiet"])
    assert not short.is_cut
    assert loud.is_cut and quiet.is_cut
    assert loud.part == quiet.part != short.part
    embeddings = text.embed(["a deep bell loud", "a deep bell quiet"])
    assert torch.equal(*embeddings)
