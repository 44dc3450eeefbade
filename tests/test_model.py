"""The network: zero at the start, unaffected by padding, trainable; EMA; text encoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stagecli.condition.text import BEGIN, OFFSET, PAD, byte_ids, load_text_encoder
from stagecli.errors import EXIT_USAGE, StageError
from stagecli.hub import weights_hash
from stagecli.model.byte_encoder import ByteEncoder
from stagecli.model.dit import Conditioning, DiT, HeadNorm, rotary_table, rotate, sinusoid
from stagecli.model.ema import EMA
from stagecli.model.network import Network, count_parameters, meta_network
from stagecli.recipe.load import load_recipe
from stagecli.schema.model import SIZES

SMALL = [
    "model.width=16",
    "model.depth=2",
    "model.heads=2",
    "condition.width=8",
    "condition.depth=1",
]
B = 2
T = 7
C = 3
L = 5
D = 16
BAND = torch.tensor([[True, False, False], [True, True, False]])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stirred(module: nn.Module, scale: float = 0.3) -> nn.Module:
    """Perturb every weight, so that none is zero, as after training."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return module


def dit(**options: object) -> DiT:
    torch.manual_seed(0)
    return DiT(**{"channels": C, "width": D, "depth": 2, "heads": 2, "text": True, **options})  # type: ignore[arg-type]


def text(seed: int = 3) -> Conditioning:
    return Conditioning(
        text_BLD=normal(B, L, D, seed=seed), text_mask_BL=torch.ones(B, L, dtype=torch.bool)
    )


def low(condition: Conditioning, frames: int = T) -> Conditioning:
    return replace(
        condition,
        low_BTC=normal(B, frames, C, seed=4),
        cutoff_B=torch.tensor([0.2, 0.6]),
        level_B=torch.tensor([0.0, 1.5]),
        band_BC=BAND,
    )


TIMES = torch.tensor([0.2, 0.9])


# --- shapes and start -----------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("frames", [7, 8])
@pytest.mark.parametrize("task", ["t2a", "sr"])
def test_output_is_zero_at_first_and_has_the_shape_of_the_input(
    patch: int, frames: int, task: str
) -> None:
    network = dit(patch=patch, text=task == "t2a", low=task == "sr")
    condition = text() if task == "t2a" else low(Conditioning(), frames)
    x = normal(B, frames, C)
    output = network(x, TIMES, condition, return_hidden=(1, 2))
    assert output.velocity_BTC.shape == x.shape
    assert not output.velocity_BTC.any()
    assert {k: tuple(h.shape) for k, h in output.hidden.items()} == dict.fromkeys(
        (1, 2), (B, -(-frames // patch), D)
    )
    assert output.hidden[1].equal(output.hidden[2])  # every block starts as the identity
    stirred(network)
    assert network(x, TIMES, condition).velocity_BTC.abs().min() > 0
    assert network(x, TIMES, condition).hidden == {}


def test_hidden_states_are_outputs_of_the_blocks() -> None:
    network = stirred(dit(depth=3))
    kept: list[Tensor] = []
    network.blocks[1].register_forward_hook(lambda module, args, out: kept.append(out))
    output = network(normal(B, T, C), TIMES, text(), return_hidden=(2,))
    assert list(output.hidden) == [2]
    assert output.hidden[2].equal(kept[0])


def test_patches_are_frames_in_order() -> None:
    network = dit(patch=2)
    tokens = network.tokens(torch.arange(B * 5 * C).float().reshape(B, 5, C))
    assert tokens.shape == (B, 3, 2 * C)
    assert tokens[0, 1].tolist() == [6, 7, 8, 9, 10, 11]
    assert tokens[0, 2].tolist() == [12, 13, 14, 0, 0, 0]


def test_every_input_matters() -> None:
    """And samples of a batch do not mix."""
    network = stirred(dit(low=True))
    x = normal(B, T, C)
    condition = low(text())

    def velocity(x: Tensor = x, t: Tensor = TIMES, c: Conditioning = condition) -> Tensor:
        return network(x, t, c).velocity_BTC

    def bumped(value: Tensor) -> Tensor:
        changed = value.clone()
        changed[1] += 0.1
        return changed

    base = velocity()
    changes = [
        velocity(x=bumped(x)),
        velocity(t=bumped(TIMES) - torch.tensor([0, 0.3])),
        velocity(c=replace(condition, text_BLD=bumped(condition.text_BLD))),
        velocity(c=replace(condition, low_BTC=bumped(condition.low_BTC))),
        velocity(c=replace(condition, cutoff_B=bumped(condition.cutoff_B))),
        velocity(c=replace(condition, level_B=bumped(condition.level_B))),
        velocity(c=replace(condition, band_BC=BAND & torch.tensor([[True], [False]]))),
    ]
    for changed in changes:
        torch.testing.assert_close(changed[0], base[0], atol=1e-5, rtol=1e-5)
        assert (changed[1] - base[1]).abs().max().item() > 1e-4


def test_the_kept_band_is_read_from_the_low_input_alone() -> None:
    network = stirred(dit(low=True, text=False))
    x = normal(B, T, C)
    condition = low(Conditioning())
    noisier = torch.where(BAND[:, None], x + 10, x)
    other_low = torch.where(BAND[:, None], condition.low_BTC, condition.low_BTC + 10)
    base = network(x, TIMES, condition).velocity_BTC
    assert network(noisier, TIMES, replace(condition, low_BTC=other_low)).velocity_BTC.equal(base)


def test_a_gated_network_starts_as_the_best_guess_for_unit_gaussians() -> None:
    network = dit(gated=True)
    x = normal(B, T, C)
    t = torch.tensor([0.0, 0.7])
    # E[eps - x0 | x_t] where x0 ~ N(0, 1): the regression of one Gaussian on another
    slope = (t - (1 - t)) / (t.square() + (1 - t).square())
    torch.testing.assert_close(network(x, t, text()).velocity_BTC, slope[:, None, None] * x)
    assert torch.isfinite(stirred(network)(x, t, text()).velocity_BTC).all()


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("patch", "real"), [(1, 4), (2, 4), (2, 6)])
def test_padded_frames_do_not_reach_real_ones(patch: int, real: int) -> None:
    network = stirred(dit(patch=patch, low=True))
    mask = torch.arange(T).expand(B, T) < real
    condition = replace(low(text()), mask_BT=mask)
    x = normal(B, T, C)
    other = x.clone()
    other_low = condition.low_BTC.clone()
    other[:, real:] += 10
    other_low[:, real:] -= 10
    base = network(x, TIMES, condition).velocity_BTC
    changed = network(other, TIMES, replace(condition, low_BTC=other_low)).velocity_BTC
    torch.testing.assert_close(changed[:, :real], base[:, :real], atol=1e-5, rtol=1e-5)
    assert (changed[:, real:] - base[:, real:]).abs().max().item() > 1e-2
    unmasked = [
        network(v, TIMES, replace(condition, mask_BT=None)).velocity_BTC for v in (x, other)
    ]
    assert (unmasked[0] - unmasked[1])[:, :real].abs().max().item() > 1e-3


def test_a_masked_tail_is_the_same_as_none() -> None:
    network = stirred(dit())
    x = normal(B, T, C)
    mask = torch.arange(T).expand(B, T) < 4
    base = network(x, TIMES, replace(text(), mask_BT=mask)).velocity_BTC[:, :4]
    torch.testing.assert_close(
        base, network(x[:, :4], TIMES, text()).velocity_BTC, atol=1e-5, rtol=1e-5
    )


def test_padded_text_does_not_count() -> None:
    network = stirred(dit())
    x = normal(B, T, C)
    condition = text()
    condition.text_mask_BL = torch.arange(L).expand(B, L) < 3
    other = condition.text_BLD.clone()
    other[:, 3:] += 10
    base = network(x, TIMES, condition).velocity_BTC
    changed = network(x, TIMES, replace(condition, text_BLD=other)).velocity_BTC
    torch.testing.assert_close(changed, base, atol=1e-5, rtol=1e-5)
    cut = Conditioning(
        text_BLD=condition.text_BLD[:, :3], text_mask_BL=torch.ones(B, 3, dtype=torch.bool)
    )
    torch.testing.assert_close(network(x, TIMES, cut).velocity_BTC, base, atol=1e-5, rtol=1e-5)
    condition.text_mask_BL = torch.ones(B, L, dtype=torch.bool)
    assert (network(x, TIMES, condition).velocity_BTC - base).abs().max().item() > 1e-3


# --- positions ------------------------------------------------------------------------------------


def test_rotary_products_depend_on_distance_alone() -> None:
    table = rotary_table(32, 8, torch.device("cpu"))
    q, k = (normal(8, seed=s).expand(1, 1, 32, 8) for s in (0, 1))
    products = (rotate(q, table)[0, 0] @ rotate(k, table)[0, 0].T).double()
    for distance in range(-31, 32):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    assert float(products[0].std()) > 0.1  # and do depend on it
    torch.testing.assert_close(rotate(q, table).norm(dim=-1), q.norm(dim=-1))


def test_time_codes_are_distinct_and_bounded() -> None:
    code = sinusoid(torch.linspace(0, 1, 101), 256)
    assert code.shape == (101, 256)
    assert float(code.abs().max()) <= 1.0
    distance = torch.cdist(code, code) + 10 * torch.eye(101)
    assert float(distance.min()) > 1.0


def test_head_norm_is_computed_in_fp32() -> None:
    x = 1e4 * normal(1, 1, 2, 8)
    assert HeadNorm(8)(x.half()).dtype == torch.float16
    torch.testing.assert_close(
        HeadNorm(8)(x.half()).float().square().mean(-1), torch.ones(1, 1, 2), atol=1e-2, rtol=0
    )


# --- training -------------------------------------------------------------------------------------


def small(name: str, *sets: str) -> Network:
    torch.manual_seed(0)
    return Network(load_recipe(name, [*SMALL, *sets]), channels=C)


def batch(name: str) -> dict[str, Tensor]:
    if name == "quickstart":
        return {"text_ids": byte_ids(["rain", "a deep bell"], 16)}
    condition = low(Conditioning())
    return {
        "low": condition.low_BTC,
        "cutoff": condition.cutoff_B,
        "level": condition.level_B,
        "band": condition.band_BC,
    }


def loss_of(network: Network, name: str) -> Tensor:
    x = normal(B, T, C)
    return (
        (network(x, TIMES, batch(name)).velocity_BTC.float() - normal(B, T, C, seed=1))
        .square()
        .mean()
    )


@pytest.mark.parametrize("name", ["quickstart", "quickstart-sr"])
def test_gradients_reach_every_parameter(name: str) -> None:
    """From zero: first the output layer, then its inputs, then theirs."""
    network = small(name)
    optimizer = torch.optim.AdamW(network.parameter_groups(0.01), lr=1e-2)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        loss = loss_of(network, name)
        loss.backward()
        losses.append(loss.item())
        moved = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        if step == 0:
            assert moved == {"dit.output.weight", "dit.output.bias"}
        optimizer.step()
    assert moved == {n for n, _ in network.named_parameters()}
    assert losses[2] < losses[0]


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for flag in ("false", "true"):
        network = small("quickstart", f"train.activation_checkpointing={flag}")
        assert network.dit.activation_checkpointing == (flag == "true")
        stirred(network).train()
        calls: list[int] = []
        network.dit.blocks[0].fc1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        loss_of(network, "quickstart").backward()
        assert len(calls) == (2 if flag == "true" else 1)  # computed again on the way back
        gradients.append({n: p.grad for n, p in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.equal(gradients[1][name]), name


@pytest.mark.parametrize("name", ["quickstart", "quickstart-sr"])
def test_bf16_autocast_is_close_to_fp32(name: str) -> None:
    network = stirred(small(name), 0.05)
    exact = loss_of(network, name)
    exact.backward()
    gradients = {n: p.grad.clone() for n, p in network.named_parameters()}
    network.zero_grad()
    types: list[torch.dtype] = []
    network.dit.blocks[1].fc1.register_forward_hook(
        lambda module, args, out: types.append(out.dtype)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(network, name)
    assert types == [torch.bfloat16]
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    for key, parameter in network.named_parameters():
        assert parameter.grad.dtype == torch.float32
        error = (parameter.grad - gradients[key]).norm() / gradients[key].norm().clamp_min(1e-4)
        assert float(error) < 0.2, key


def test_conditions_may_be_encoded_once() -> None:
    network = stirred(small("quickstart"))
    x = normal(B, T, C)
    tensors = batch("quickstart")
    condition = network.encode_condition(tensors)
    expected = network(x, TIMES, tensors).velocity_BTC
    assert network(x, TIMES, condition).velocity_BTC.equal(expected)


def test_cached_embeddings_are_projected() -> None:
    recipe = load_recipe("quickstart", [*SMALL, "condition.text=transformers", "condition.model=x"])
    network = Network(recipe, channels=C, text_width=6)
    condition = network.encode_condition(
        {"text": normal(B, L, 6), "text_mask": torch.ones(B, L, dtype=torch.bool)}
    )
    assert condition.text_BLD.shape == (B, L, D)
    assert network.bytes is None


@pytest.mark.parametrize("size", SIZES)
def test_sizes_by_name(size: str) -> None:
    recipe = load_recipe("quickstart-sr", [f"model.size={size}"])
    network = meta_network(recipe, channels=C)
    width, depth, heads = SIZES[size]
    assert (network.dit.width, len(network.dit.blocks), network.dit.heads) == (width, depth, heads)
    assert next(network.parameters()).device.type == "meta"
    per_block = (4 + 8 + 6) * width**2  # attention, feed-forward, modulation
    assert count_parameters(network) == pytest.approx(depth * per_block, rel=0.15)
    override = load_recipe("quickstart-sr", [f"model.size={size}", "model.depth=3"])
    assert override.model.resolved() == (width, 3, heads)


def test_parameter_groups_hold_every_parameter_once() -> None:
    network = small("quickstart")
    groups = network.parameter_groups(0.3)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in network.parameters())
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    names = {id(p): n for n, p in network.named_parameters()}
    decayed = {names[id(p)] for p in groups[0]["params"]}
    assert "dit.blocks.0.fc1.weight" in decayed
    assert not decayed & {
        n for n in names.values() if n.endswith("bias") or "norm" in n or "embed" in n
    }
    network.dit.input.weight.requires_grad_(False)
    assert len([p for g in network.parameter_groups(0.3) for p in g["params"]]) == len(listed) - 1


# --- EMA ------------------------------------------------------------------------------------------


def test_ema_follows_its_formula() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    ema = EMA(network, 0.5)
    expected = 0.0
    for n in range(20):
        nn.init.constant_(network.weight, n + 1.0)
        ema.update(network)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * (n + 1)
        assert float(ema.weights["weight"]) == pytest.approx(expected, rel=1e-5)


def test_applied_restores_the_weights_to_the_bit() -> None:
    network = stirred(small("quickstart").to(torch.bfloat16))
    ema = EMA(network, 0.9)
    stirred(network)
    ema.update(network)
    own = {n: p.detach().clone() for n, p in network.named_parameters()}
    with ema.applied(network):
        for name, parameter in network.named_parameters():
            assert parameter.equal(ema.weights[name].to(torch.bfloat16))
            assert ema.weights[name].dtype == torch.float32
            assert name.endswith("_norm.weight") or not parameter.equal(own[name])
    assert all(p.equal(own[n]) for n, p in network.named_parameters())
    with pytest.raises(KeyError), ema.applied(network):
        raise KeyError
    assert all(p.equal(own[n]) for n, p in network.named_parameters())
    assert all(p.requires_grad for p in network.parameters())


def test_ema_continues_after_a_load() -> None:
    network = stirred(small("quickstart"))
    one = EMA(network, 0.9)
    two = EMA(stirred(small("quickstart")), 0.9)
    for _ in range(3):
        stirred(network)
        one.update(network)
    two.load({n: v.clone() for n, v in one.weights.items()}, one.updates)
    for ema in (one, two):
        ema.update(network)
    assert all(v.equal(two.weights[n]) for n, v in one.weights.items())
    with pytest.raises(KeyError):
        two.load({}, 1)


# --- text encoders --------------------------------------------------------------------------------


def test_byte_ids() -> None:
    assert byte_ids([""], 4).tolist() == [[BEGIN]]
    assert byte_ids(["ü", "a"], 9).tolist() == [
        [BEGIN, 0xC3 + OFFSET, 0xBC + OFFSET],
        [BEGIN, 97 + OFFSET, PAD],
    ]
    assert byte_ids(["x" * 99], 5).shape == (1, 5)


def test_the_empty_caption_and_padding_in_the_byte_encoder() -> None:
    torch.manual_seed(0)
    encoder = stirred(ByteEncoder(8, 2, D))
    tokens, mask = encoder(byte_ids(["rain", "", "rain on a tin roof"], 32))
    assert tokens.shape == (3, 19, D)
    assert mask.sum(1).tolist() == [5, 1, 19]
    assert torch.isfinite(tokens).all()
    for i, caption in enumerate(["rain", ""]):  # alone, without the padding
        alone, full = encoder(byte_ids([caption], 32))
        assert full.all()
        torch.testing.assert_close(tokens[i, : alone.shape[1]], alone[0], atol=1e-5, rtol=1e-5)
    swapped, _ = encoder(byte_ids(["niar"], 32))
    assert (swapped[0].mean(0) - tokens[0, :5].mean(0)).abs().max().item() > 1e-3  # order matters


WORDS = ["<pad>", "</s>", "<s>", "[UNK]", "rain", "on", "a", "roof", "bell"]


def save_tokenizer(folder: Path, **options: object) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="[UNK]", **options
    ).save_pretrained(folder)


def save_t5(folder: Path) -> int:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=16,
        d_model=12,
        d_kv=4,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    T5EncoderModel(config).save_pretrained(folder)
    return 12


def save_bert(folder: Path) -> int:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    BertModel(config).save_pretrained(folder)
    return 8


def save_bart(folder: Path) -> int:
    from transformers import BartConfig, BartModel

    config = BartConfig(
        vocab_size=16,
        d_model=10,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )
    BartModel(config).save_pretrained(folder)
    return 10


def save_clap(folder: Path) -> int:
    from transformers import ClapAudioConfig, ClapConfig, ClapModel, ClapTextConfig

    words = ClapTextConfig(
        vocab_size=16,
        hidden_size=14,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=40,
        pad_token_id=0,
    )
    audio = ClapAudioConfig(
        spec_size=32,
        num_mel_bins=8,
        hidden_size=8,
        patch_embeds_hidden_size=4,
        depths=[1, 1],
        num_attention_heads=[1, 1],
        window_size=2,
        patch_size=4,
        patch_stride=[4, 4],
        num_hidden_layers=2,
    )
    both = ClapConfig(text_config=words.to_dict(), audio_config=audio.to_dict(), projection_dim=6)
    ClapModel(both).save_pretrained(folder)
    return 14


@pytest.mark.parametrize("save", [save_t5, save_bert, save_bart, save_clap])
def test_pretrained_text(tmp_path: Path, save: Callable[[Path], int]) -> None:
    torch.manual_seed(0)
    width = save(tmp_path)
    save_tokenizer(tmp_path)
    encoder = load_text_encoder(str(tmp_path), max_length=4)
    assert encoder.width == width
    assert not any(p.requires_grad for p in encoder.network.parameters())
    assert not encoder.network.training
    rain, empty, long = encoder.embed(["rain on", "", "rain on a roof bell bell"])
    assert [tuple(x.shape) for x in (rain, empty, long)] == [(3, width), (1, width), (4, width)]
    assert all(x.dtype == torch.float32 and torch.isfinite(x).all() for x in (rain, empty, long))
    (alone,) = encoder.embed(["rain on"])  # padding in a batch changes nothing
    torch.testing.assert_close(alone, rain, atol=1e-5, rtol=1e-5)
    (other,) = encoder.embed(["bell on"])
    assert (other - rain).abs().max().item() > 1e-3
    again = load_text_encoder(str(tmp_path), max_length=4)
    assert again.tokenizer_hash() == encoder.tokenizer_hash()
    assert weights_hash(again.network) == weights_hash(encoder.network)
    stirred(again.network)
    assert weights_hash(again.network) != weights_hash(encoder.network)


def test_a_tokenizer_that_pads_on_the_left(tmp_path: Path) -> None:
    width = save_bert(tmp_path)
    save_tokenizer(tmp_path, padding_side="left")
    encoder = load_text_encoder(str(tmp_path), max_length=8)
    short, _ = encoder.embed(["rain", "rain on a roof"])
    assert short.shape == (2, width)
    torch.testing.assert_close(short, encoder.embed(["rain"])[0], atol=1e-5, rtol=1e-5)


def make_incomplete(folder: Path, missing: str) -> None:
    """A folder without one of its files, or no folder."""
    if missing == "folder":
        return
    folder.mkdir()
    if missing == "model":
        (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    elif missing == "tokenizer":
        save_t5(folder)


@pytest.mark.parametrize("missing", ["folder", "config", "model", "tokenizer"])
def test_an_incomplete_text_encoder_is_refused(tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "encoder"
    make_incomplete(folder, missing)
    with pytest.raises(StageError, match="text encoder") as caught:
        load_text_encoder(str(folder), 8)
    assert str(folder) in caught.value.message
    assert caught.value.exit_code == EXIT_USAGE
    assert "save_pretrained" in (caught.value.hint or "")
