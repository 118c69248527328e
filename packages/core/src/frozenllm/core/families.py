"""The table of model families: one row each.

``config.json`` leaves out whatever equals the defaults of transformers, so every row repeats those of its
configuration class (``configuration_<model_type>.py``). ``docs/add_a_family.md`` shows how to add a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from frozenllm.core.family import Config, Family, layer_type, spec_activation


def _window_by_type(config: Config, layer: int) -> int | None:
    """Qwen2 and Qwen3: the upper layers slide where ``use_sliding_window`` is set."""
    if not config["use_sliding_window"]:
        return None
    slides = layer >= config["max_window_layers"]
    if (kind := layer_type(config, layer)) is not None:
        slides = kind == "sliding_attention"
    return config["sliding_window"] if slides else None


def _window_alternating(config: Config, layer: int) -> int | None:
    """Gemma 2: every other layer slides, from the first."""
    kind = layer_type(config, layer) or ("full_attention" if layer % 2 else "sliding_attention")
    return config["sliding_window"] if kind == "sliding_attention" else None


def _gemma_activation(config: Config, _layer: int) -> str:
    # The first Gemma configs say "gelu" and mean the tanh approximation, which is what the weights were trained with.
    name = config["hidden_act"]
    return "gelu_tanh" if name == "gelu" else spec_activation(name)


def _gpt2_scale(config: Config, layer: int) -> float:
    scale = (config["n_embd"] // config["n_head"]) ** -0.5 if config["scale_attn_weights"] else 1.0
    return scale / (layer + 1) if config["scale_attn_by_inverse_layer_idx"] else scale


def _opt_placement(config: Config, _layer: int) -> str:
    if not config["layer_norm_elementwise_affine"]:
        raise ValueError('"layer_norm_elementwise_affine": false (norms without weights) is not supported.')
    return "pre" if config["do_layer_norm_before"] else "post_residual"


def _plain_key(key: str) -> Callable[[Config, int], Any]:
    return lambda config, _layer: config[key]


_ATTENTION = {name: f"self_attn.{name[-1]}_proj" for name in ("attn.q", "attn.k", "attn.v", "attn.o")}
_GATED_FFN = {"ffn.gate": "mlp.gate_proj", "ffn.up": "mlp.up_proj", "ffn.down": "mlp.down_proj"}
_PRE_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_QK_NORMS = {"attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm"}
_LLAMA_TENSORS = {**_PRE_NORMS, **_ATTENTION, **_GATED_FFN}
_LAYERNORM = {"norm": "layernorm", "gated": False, "ffn_bias": True}

FAMILIES: tuple[Family, ...] = (
    Family(
        name="llama",
        models="LLaMA 1, 2, 3, Vicuna, TinyLlama, SmolLM 1 and 2, Yi; inside LLaVA",
        model_types=("llama", "llava", "llava_llama"),  # LLaVA's own files; transformers' say text_config
        architectures=("LlamaForCausalLM", "LlamaModel", "LLaMAForCausalLM", "LlavaLlamaForCausalLM"),
        defaults={
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "mlp_bias": False,
        },
        derived={
            "qkv_bias": _plain_key("attention_bias"),
            "out_bias": _plain_key("attention_bias"),
            "ffn_bias": _plain_key("mlp_bias"),
        },
        tensors=_LLAMA_TENSORS,
    ),
    Family(
        name="mistral",
        models="Mistral 7B and its fine-tunes, Zephyr",
        model_types=("mistral",),
        architectures=("MistralForCausalLM", "MistralModel"),
        defaults={
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "hidden_act": "silu",
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-6,
            "sliding_window": 4096,
        },
        keys={"sliding_window": "sliding_window"},
        tensors=_LLAMA_TENSORS,
    ),
    Family(
        name="qwen2",
        models="Qwen 1.5, 2 and 2.5",
        model_types=("qwen2",),
        architectures=("Qwen2ForCausalLM", "Qwen2Model"),
        defaults={
            "hidden_size": 4096,
            "intermediate_size": 22016,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "hidden_act": "silu",
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
        fixed={"qkv_bias": True},
        derived={"sliding_window": _window_by_type},
        tensors=_LLAMA_TENSORS,
    ),
    Family(
        name="qwen3",
        models="Qwen 3 (dense)",
        model_types=("qwen3",),
        architectures=("Qwen3ForCausalLM", "Qwen3Model"),
        defaults={
            "hidden_size": 4096,
            "intermediate_size": 22016,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "hidden_act": "silu",
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
        fixed={"qk_norm": "head"},
        derived={
            "qkv_bias": _plain_key("attention_bias"),
            "out_bias": _plain_key("attention_bias"),
            "sliding_window": _window_by_type,
        },
        tensors={**_LLAMA_TENSORS, **_QK_NORMS},
    ),
    Family(
        name="gemma",
        models="Gemma 2B and 7B",
        model_types=("gemma",),
        architectures=("GemmaForCausalLM", "GemmaModel"),
        defaults={
            "hidden_size": 3072,
            "intermediate_size": 24576,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
        },
        fixed={"norm_offset": 1.0},
        derived={
            "activation": _gemma_activation,
            "qkv_bias": _plain_key("attention_bias"),
            "out_bias": _plain_key("attention_bias"),
        },
        tensors=_LLAMA_TENSORS,
    ),
    Family(
        name="gemma2",
        models="Gemma 2 2B, 9B and 27B",
        model_types=("gemma2",),
        architectures=("Gemma2ForCausalLM", "Gemma2Model"),
        defaults={
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
        },
        keys={"activation": "hidden_activation", "attn_softcap": "attn_logit_softcapping"},
        fixed={"norm_offset": 1.0, "norm_placement": "sandwich"},
        derived={
            "query_scale": lambda config, _layer: config["query_pre_attn_scalar"] ** -0.5,
            "sliding_window": _window_alternating,
            "qkv_bias": _plain_key("attention_bias"),
            "out_bias": _plain_key("attention_bias"),
        },
        tensors={
            **_ATTENTION,
            **_GATED_FFN,
            "attn_norm": "input_layernorm",
            "attn_out_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "ffn_out_norm": "post_feedforward_layernorm",
        },
    ),
    Family(
        name="phi3",
        models="Phi-3, Phi-3.5 mini, Phi-4",
        model_types=("phi3",),
        architectures=("Phi3ForCausalLM", "Phi3Model"),
        defaults={
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
        keys={"sliding_window": "sliding_window"},
        rotary_fraction="partial_rotary_factor",
        tensors={
            **_PRE_NORMS,
            "attn.q": "self_attn.qkv_proj",
            "attn.k": "self_attn.qkv_proj",
            "attn.v": "self_attn.qkv_proj",
            "attn.o": "self_attn.o_proj",
            "ffn.gate": "mlp.gate_up_proj",
            "ffn.up": "mlp.gate_up_proj",
            "ffn.down": "mlp.down_proj",
        },
    ),
    Family(
        name="olmo2",
        models="OLMo 2",
        model_types=("olmo2",),
        architectures=("Olmo2ForCausalLM", "Olmo2Model"),
        defaults={
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
        },
        fixed={"norm_placement": "post_sublayer", "qk_norm": "full"},
        derived={"qkv_bias": _plain_key("attention_bias"), "out_bias": _plain_key("attention_bias")},
        tensors={
            **_ATTENTION,
            **_QK_NORMS,
            **_GATED_FFN,
            "attn_out_norm": "post_attention_layernorm",
            "ffn_out_norm": "post_feedforward_layernorm",
        },
    ),
    Family(
        name="granite",
        models="Granite 3 (dense)",
        model_types=("granite",),
        architectures=("GraniteForCausalLM", "GraniteModel"),
        defaults={
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "mlp_bias": False,
            "residual_multiplier": 1.0,
            "attention_multiplier": 1.0,
        },
        keys={"residual_scale": "residual_multiplier", "query_scale": "attention_multiplier"},
        derived={
            "qkv_bias": _plain_key("attention_bias"),
            "out_bias": _plain_key("attention_bias"),
            "ffn_bias": _plain_key("mlp_bias"),
        },
        tensors=_LLAMA_TENSORS,
    ),
    Family(
        name="opt",
        models="OPT 125M to 66B, also the post-norm 350M",
        model_types=("opt",),
        architectures=("OPTForCausalLM", "OPTModel"),
        defaults={
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "ffn_dim": 3072,
            "max_position_embeddings": 2048,
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "num_attention_heads": 12,
            "activation_function": "relu",
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
        },
        keys={"intermediate_size": "ffn_dim", "activation": "activation_function"},
        fixed={"norm": "layernorm", "norm_eps": 1e-5, "gated": False},
        derived={
            "norm_placement": _opt_placement,
            "qkv_bias": _plain_key("enable_bias"),
            "out_bias": _plain_key("enable_bias"),
            "ffn_bias": _plain_key("enable_bias"),
            "final_norm": lambda config, _layer: (
                config["do_layer_norm_before"] and not config["_remove_final_layer_norm"]
            ),
        },
        rotary=False,
        roots=("model.decoder.", "decoder."),
        final_norm="final_layer_norm",
        ignored=(),
        tensors={
            "attn_norm": "self_attn_layer_norm",
            "attn.q": "self_attn.q_proj",
            "attn.k": "self_attn.k_proj",
            "attn.v": "self_attn.v_proj",
            "attn.o": "self_attn.out_proj",
            "ffn_norm": "final_layer_norm",
            "ffn.up": "fc1",
            "ffn.down": "fc2",
        },
    ),
    Family(
        name="gpt2",
        models="GPT-2, DistilGPT-2",
        model_types=("gpt2",),
        architectures=("GPT2LMHeadModel", "GPT2Model"),
        defaults={
            "n_positions": 1024,
            "n_embd": 768,
            "n_layer": 12,
            "n_head": 12,
            "n_inner": None,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
        },
        keys={
            "hidden_size": "n_embd",
            "num_heads": "n_head",
            "norm_eps": "layer_norm_epsilon",
            "activation": "activation_function",
            "max_positions": "n_positions",
        },
        fixed={**_LAYERNORM, "qkv_bias": True, "out_bias": True},
        derived={
            "intermediate_size": lambda config, _layer: config["n_inner"] or 4 * config["n_embd"],
            "query_scale": _gpt2_scale,
        },
        num_layers="n_layer",
        rotary=False,
        roots=("transformer.", ""),
        layer="h.{i}.",
        final_norm="ln_f",
        ignored=("attn.bias", "attn.masked_bias"),
        transposed=True,
        tensors={
            "attn_norm": "ln_1",
            "attn.q": "attn.c_attn",
            "attn.k": "attn.c_attn",
            "attn.v": "attn.c_attn",
            "attn.o": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn.up": "mlp.c_fc",
            "ffn.down": "mlp.c_proj",
        },
    ),
    Family(
        name="gpt_neox",
        models="Pythia, GPT-NeoX 20B",
        model_types=("gpt_neox",),
        architectures=("GPTNeoXForCausalLM", "GPTNeoXModel"),
        defaults={
            "hidden_size": 6144,
            "intermediate_size": 24576,
            "num_hidden_layers": 44,
            "num_attention_heads": 64,
            "hidden_act": "gelu",
            "rotary_pct": 0.25,
            "rotary_emb_base": 10000,
            "max_position_embeddings": 2048,
            "layer_norm_eps": 1e-5,
            "use_parallel_residual": True,
            "attention_bias": True,
        },
        keys={"norm_eps": "layer_norm_eps"},
        fixed=_LAYERNORM,
        derived={
            "residual": lambda config, _layer: "parallel" if config["use_parallel_residual"] else "sequential",
            "qkv_bias": _plain_key("attention_bias"),
            "out_bias": _plain_key("attention_bias"),
        },
        rotary_base="rotary_emb_base",
        rotary_fraction="rotary_pct",
        roots=("gpt_neox.", ""),
        final_norm="final_layer_norm",
        ignored=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
        interleaved=True,
        tensors={
            **_PRE_NORMS,
            "attn.q": "attention.query_key_value",
            "attn.k": "attention.query_key_value",
            "attn.v": "attention.query_key_value",
            "attn.o": "attention.dense",
            "ffn.up": "mlp.dense_h_to_4h",
            "ffn.down": "mlp.dense_4h_to_h",
        },
    ),
    Family(
        name="vit",
        models="ViT, DeiT without distillation: no language models, but a control for them",
        model_types=("vit",),
        architectures=("ViTModel", "ViTForImageClassification"),
        defaults={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "qkv_bias": True,
        },
        keys={"norm_eps": "layer_norm_eps"},
        fixed={**_LAYERNORM, "out_bias": True},
        derived={"qkv_bias": _plain_key("qkv_bias")},
        rotary=False,
        roots=("vit.", ""),
        layer="encoder.layer.{i}.",
        final_norm="layernorm",
        ignored=(),
        tensors={
            "attn_norm": "layernorm_before",
            "attn.q": "attention.attention.query",
            "attn.k": "attention.attention.key",
            "attn.v": "attention.attention.value",
            "attn.o": "attention.output.dense",
            "ffn_norm": "layernorm_after",
            "ffn.up": "intermediate.dense",
            "ffn.down": "output.dense",
        },
    ),
)

# Where multimodal models in transformers' layout keep their language model: files up to version 4 and since.
_INNER_ROOTS = ("language_model.model.", "model.language_model.", "language_model.")


def find_language_model(config: Config) -> tuple[Config, Family]:
    """The part of a ``config.json`` that describes the language model, and its row.

    Args:
        config: The parsed file. One with ``text_config`` (LLaVA and other multimodal models) holds a language model
            whose own config that is; its tensors have the prefixes of such a model in front.

    Raises:
        ValueError: No row fits.
    """
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        return config, find_family(config)
    return inner, dataclasses.replace(find_family(inner), roots=_INNER_ROOTS)


def find_family(config: Config) -> Family:
    """The table row that a ``config.json`` belongs to.

    Args:
        config: The parsed file.

    Raises:
        ValueError: No row fits; the message lists those there are.
    """
    model_type = config.get("model_type")
    architectures = config.get("architectures")
    if not isinstance(architectures, list | tuple):  # damaged, or not given
        architectures = []
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
        if model_type is None and any(name in family.architectures for name in architectures):
            return family
    asked = model_type or ", ".join(map(str, architectures)) or "(no model_type in the config)"
    names = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise ValueError(
        f"Model type {asked!r} is not in the table of families, which has {names}; to add one, write a row in "
        "frozenllm/core/families.py as docs/add_a_family.md shows."
    )
