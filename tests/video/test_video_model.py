"""The host: transformers' VideoMAE with a frozen layer, and what of the original transformers lacks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from transformers import VideoMAEForVideoClassification

from frozenllm.core import BlockSpec, FrozenLLMLayer, random_block
from frozenllm.video import FrozenLLMVideoMAE, videomae_config

SPEC = {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "intermediate_size": 96}
LLM = {"kind": "random", "spec": SPEC}
SIZES: dict[str, Any] = {
    "image_size": 16, "patch_size": 8, "num_frames": 4, "hidden_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 2, "intermediate_size": 48, "num_labels": 5,
}  # fmt: skip


def make(llm: Any = LLM, drop_path_rate: float = 0.0, head_init_scale: float = 1.0, **options: Any) -> Any:
    torch.manual_seed(0)
    config = videomae_config(**{**SIZES, **options})
    return FrozenLLMVideoMAE(config, llm=llm, drop_path_rate=drop_path_rate, head_init_scale=head_init_scale)


def clips(batch: int = 2, frames: int = 4, height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_host_alone_is_transformers_model() -> None:
    model = make(llm=None).eval()
    plain = VideoMAEForVideoClassification(model.config).eval()
    plain.fc_norm.eps = 1e-6
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(clips()), plain(clips()).logits, rtol=0, atol=1e-6)


@torch.no_grad()
def test_layer_stands_between_blocks_and_mean() -> None:
    model = make().eval()
    tokens = model.tokens(clips())
    wanted = model.classifier(model.fc_norm(model.llm(tokens).mean(1)))
    assert torch.equal(model(clips()), wanted)
    assert model.forward_features(clips()).shape == tokens.shape == (2, 8, 24)
    model.llm = None
    assert torch.equal(model.forward_features(clips()), tokens)


@settings(max_examples=12, deadline=None)
@given(
    grid=st.tuples(*[st.integers(1, 3)] * 3), patch=st.sampled_from([4, 8]), tubelet=st.integers(1, 2),
    batch=st.integers(1, 2),
)  # fmt: skip
@torch.no_grad()
def test_any_grid(grid: tuple[int, int, int], patch: int, tubelet: int, batch: int) -> None:
    """Tokens are in the order of the grid: changing one patch of the clip changes one token before the blocks."""
    times, rows, columns = grid
    model = make(
        image_size=[rows * patch, columns * patch], patch_size=patch, num_frames=times * tubelet, tubelet_size=tubelet
    ).eval()
    assert model.grid == grid
    inputs = clips(batch, times * tubelet, rows * patch, columns * patch)
    assert model(inputs).shape == (batch, 5)
    changed = inputs.clone()
    changed[:, -1, :, -1, 0] += 1  # in the last tubelet, lowest row and first column
    embed = model.videomae.embeddings
    difference = (embed(changed, None) - embed(inputs, None)).abs().amax(dim=(0, 2)).reshape(grid)
    assert difference.nonzero().tolist() == [[times - 1, rows - 1, 0]]


def test_every_norm_has_the_originals_epsilon() -> None:
    config = videomae_config(**SIZES)
    config.layer_norm_eps = 1e-12  # as in published configs
    for model in (make(), FrozenLLMVideoMAE(config), copy.deepcopy(make())):
        assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


def test_drop_path_rises_linearly_and_adds_no_names() -> None:
    model = make(drop_path_rate=0.3)
    chances = [
        [getattr(branch.dropout, "p", None) for branch in (layer.attention.output, layer.output)]
        for layer in model.videomae.encoder.layer
    ]
    assert chances == [[0.0, 0.0], pytest.approx([0.15, 0.15]), pytest.approx([0.3, 0.3])]
    assert isinstance(model.videomae.encoder.layer[2].output.dropout, StochasticDepth)
    assert model.state_dict().keys() == make().state_dict().keys()
    both = make(drop_path_rate=0.3, hidden_dropout_prob=0.1).videomae.encoder.layer[2].output.dropout
    assert [type(m) for m in both] == [nn.Dropout, StochasticDepth]


def test_drop_path_drops_branches_of_samples() -> None:
    """In training each sample of the last block keeps or loses a branch, and what is kept is scaled up."""
    rate = 0.4
    layer = make(drop_path_rate=rate).videomae.encoder.layer[2]
    x = torch.randn(400, 2, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attention = layer.eval().attention(layer.layernorm_before(x))
        evaluated = layer(x)
        ffn = evaluated - (x + attention)
        layer.train()
        torch.manual_seed(0)
        dropped = layer.attention(layer.layernorm_before(x))
        kept = dropped.abs().amax(dim=(1, 2)) > 0
        torch.testing.assert_close(dropped[kept], attention[kept] / (1 - rate))
        assert 0.52 < kept.float().mean() < 0.68
        hidden = layer.intermediate(layer.layernorm_after(x + attention))
        change = layer.output(hidden, x + attention) - (x + attention)
        kept = change.abs().amax(dim=(1, 2)) > 1e-7
        torch.testing.assert_close(change[kept], ffn[kept] / (1 - rate), rtol=1e-3, atol=1e-5)
        assert 0.52 < kept.float().mean() < 0.68
        assert torch.equal(layer.eval()(x), evaluated)


def test_adapters_and_head_start_as_in_the_official_code() -> None:
    model = make(head_init_scale=1e-3, hidden_size=256)
    for adapter, fan_in in ((model.llm.adapter_in, 256), (model.llm.adapter_out, 48)):
        bound = fan_in**-0.5  # PyTorch's own for linear layers
        assert 0.97 * bound < adapter.weight.abs().max() <= bound
        assert adapter.bias is None
    assert model.classifier.weight.std().item() == pytest.approx(2e-5, rel=0.1)
    assert not model.classifier.bias.any()
    truncated = make(llm={**LLM, "adapter_init": "trunc_normal"}, hidden_size=256)
    assert truncated.llm.adapter_in.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_hosts_start_equal_with_and_without_the_layer() -> None:
    alone, inserted = make(llm=None), make()
    for name, parameter in alone.named_parameters():
        assert torch.equal(parameter, inserted.get_parameter(name)), name


@torch.no_grad()
def test_positions_survive_moves_and_casts() -> None:
    model = make(llm=None).eval()
    table, before = model.videomae.embeddings.position_embeddings.clone(), model(clips())
    state = model.state_dict()
    model.to("meta").to_empty(device="cpu").load_state_dict(state)
    assert torch.equal(model(clips()), before)
    model.half().float()
    assert torch.equal(model.videomae.embeddings.position_embeddings, table)  # not rounded
    assert model.bfloat16()(clips().bfloat16()).dtype == torch.bfloat16
    with torch.device("meta"):
        abstract = make(llm=None)
        assert abstract(torch.empty(2, 4, 3, 16, 16)).device.type == "meta"
    abstract.to_empty(device="cpu")
    assert torch.equal(abstract.videomae.embeddings.position_embeddings, table)
    assert "position" not in " ".join(state)


def test_checkpointing_changes_nothing() -> None:
    gradients = []
    for enable in (False, True):
        model = make().train()
        model.set_grad_checkpointing(enable)
        assert model.llm.checkpoint_activations == enable
        assert model.videomae.encoder.layer[0].gradient_checkpointing == enable
        model(clips()).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    model.set_grad_checkpointing(False)
    assert not model.llm.checkpoint_activations


def test_ready_blocks_and_layers() -> None:
    block = random_block(BlockSpec.from_dict(SPEC))
    assert make(llm=block).llm.block is block
    layer = FrozenLLMLayer(24, block, output_norm="none")
    assert make(llm=layer).llm is layer
    assert make(llm="bundled").llm.block.record.source == "bundled"
    assert make(llm="none").llm is None


def test_other_config_stays_as_it_is() -> None:
    config = videomae_config(**SIZES)
    config.layer_norm_eps = 1e-12
    FrozenLLMVideoMAE(config)
    assert config.layer_norm_eps == 1e-12


@pytest.mark.parametrize(("options", "words"), [
    ({"size": "huge"}, "small, base"),
    ({"hiden_size": 8}, "no option hiden_size"),
    ({"use_mean_pooling": False}, "use_mean_pooling must be true"),
    ({"hidden_size": 25}, "hidden_size=25 is not a multiple of num_attention_heads=2"),
    ({"num_frames": 5}, "num_frames=5 is not a multiple of tubelet_size=2"),
    ({"image_size": 20}, "image_size=20 does not divide into patches of 8"),
    ({"drop_path_rate": 1.0}, "drop_path_rate must be"),
    ({"llm": {"kind": "radnom"}}, "radnom"),
])  # fmt: skip
def test_mistakes_give_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 3, 4, 16, 16), (2, 8, 3, 16, 16), (2, 4, 3, 16, 8), (4, 3, 16, 16)])
def test_clips_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(batch, 4, 3, 16, 16\), which is frames, channels"):
        make()(torch.zeros(shape))
