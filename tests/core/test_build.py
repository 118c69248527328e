"""The one factory that every host uses."""

from __future__ import annotations

import pytest
import torch
from small_layers import SPEC

from frozenllm.core import FrozenLLMLayer, MLPLayer, build_llm_layer


@pytest.mark.parametrize("llm", [None, "none", {"kind": "none"}])
def test_host_alone(llm):
    assert build_llm_layer(12, llm) is None


def test_a_source_alone_gives_its_last_layer():
    layer = build_llm_layer(12, "bundled")
    assert layer.block.record.layers == (5,)
    assert layer(torch.randn(2, 3, 12)).shape == (2, 3, 12)


def test_options_reach_the_layer_and_the_block():
    layer = build_llm_layer(
        12,
        {"source": "bundled", "layers": [1, 2], "dtype": "bfloat16", "positions": "rotary", "lora_rank": 2},
        adapter_init="trunc_normal",
    )
    assert layer.block.record.layers == (1, 2)
    assert (layer.block.dtype, layer.positions, layer.adapter_init) == (torch.bfloat16, "rotary", "trunc_normal")
    assert any("low_rank" in name for name, _ in layer.named_parameters())
    given = build_llm_layer(12, {"source": "bundled", "adapter_init": "default"}, adapter_init="trunc_normal")
    assert given.adapter_init == "default", "what llm says goes before the host's own default"


def test_stand_ins():
    spec = SPEC.to_dict()
    random = build_llm_layer(12, {"kind": "random", "spec": spec, "seed": 4, "layers": [0, 1], "trainable": True})
    assert isinstance(random, FrozenLLMLayer)
    assert random.block.trainable
    assert len(random.block.specs) == 2
    like_bundled = build_llm_layer(12, {"kind": "random", "source": "bundled"})
    assert like_bundled.block.hidden_size == 256
    mlp = build_llm_layer(12, {"kind": "mlp", "source": "bundled"})
    assert isinstance(mlp, MLPLayer)
    assert mlp.adapter_in.out_features == 256
    assert build_llm_layer(12, {"kind": "mlp", "hidden_size": 20}).adapter_in.out_features == 20


@pytest.mark.parametrize(
    ("llm", "message"),
    [
        ({"kind": "large"}, "llm kind must be one of"),
        ({"sorce": "bundled"}, "Unknown llm option.s. sorce"),
        ({"kind": "pretrained"}, "llm needs a source"),
        ({"kind": "random"}, "llm needs a source or a spec"),
        ({"source": "bundled", "dtype": "int8"}, "llm dtype must be"),
        ({"source": "bundled", "layers": [6]}, "layer"),
        ({"source": "bundled", "quantize": "int3"}, "quantize"),
        ("bundeld", "bundeld"),
    ],
)
def test_one_clear_sentence(llm, message):
    with pytest.raises(ValueError, match=message) as error:
        build_llm_layer(12, llm)
    assert "\n" not in str(error.value)


def test_ignored_settings_are_named():
    with pytest.warns(UserWarning, match="llm kind pretrained ignores the option.s. seed"):
        build_llm_layer(12, {"source": "bundled", "seed": 3})
    with pytest.warns(UserWarning, match="llm kind mlp ignores the option.s. positions, trainable"):
        build_llm_layer(12, {"kind": "mlp", "hidden_size": 8, "trainable": True, "positions": "rotary"})
