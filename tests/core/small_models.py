"""Small random language models of every family, made by transformers, with weights that make every part matter."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

_LLAMA_SIZES = dict(
    vocab_size=40, hidden_size=48, intermediate_size=72, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=None,
)  # fmt: skip
_OPT_SIZES = dict(
    vocab_size=40, hidden_size=48, ffn_dim=72, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64,
    dropout=0.0,
)  # fmt: skip
_GPT2_SIZES = dict(vocab_size=40, n_embd=48, n_layer=3, n_head=4, n_positions=64)
_NEOX_SIZES = dict(
    vocab_size=40, hidden_size=48, intermediate_size=72, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=64,
)  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 3.0, 4.0], "original_max_position_embeddings": 16,
}  # fmt: skip

# name -> (model type of transformers, settings)
MODELS: dict[str, tuple[str, dict]] = {
    "llama": ("llama", _LLAMA_SIZES),
    "llama_biased": ("llama", {**_LLAMA_SIZES, "attention_bias": True, "mlp_bias": True, "head_dim": 20}),
    "llama3": ("llama", {**_LLAMA_SIZES, "rope_parameters": LLAMA3_ROPE}),
    "llama_linear": ("llama", {**_LLAMA_SIZES, "rope_parameters": {"rope_type": "linear", "factor": 3.0,
                                                                   "rope_theta": 500.0}}),
    "mistral": ("mistral", {**_LLAMA_SIZES, "sliding_window": 5}),
    "qwen2": ("qwen2", {**_LLAMA_SIZES, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen3": ("qwen3", {**_LLAMA_SIZES, "head_dim": 16, "attention_bias": True}),
    "gemma": ("gemma", {**_LLAMA_SIZES, "head_dim": 16}),
    "gemma2": ("gemma2", {**_LLAMA_SIZES, "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 30,
                          "attn_logit_softcapping": 2.0}),
    "phi3": ("phi3", {**_LLAMA_SIZES, "sliding_window": 6}),
    "phi3_long": ("phi3", {**_LLAMA_SIZES, "rope_parameters": LONGROPE, "original_max_position_embeddings": 16}),
    "olmo2": ("olmo2", _LLAMA_SIZES),
    "granite": ("granite", {**_LLAMA_SIZES, "residual_multiplier": 0.3, "attention_multiplier": 0.5}),
    "opt": ("opt", _OPT_SIZES),
    "opt_350m": ("opt", {**_OPT_SIZES, "do_layer_norm_before": False, "word_embed_proj_dim": 24}),
    "opt_unbiased": ("opt", {**_OPT_SIZES, "enable_bias": False, "activation_function": "gelu"}),
    "gpt2": ("gpt2", _GPT2_SIZES),
    "gpt2_scaled": ("gpt2", {**_GPT2_SIZES, "n_inner": 72, "scale_attn_by_inverse_layer_idx": True}),
    "gpt_neox": ("gpt_neox", _NEOX_SIZES),
    "gpt_neox_sequential": ("gpt_neox", {**_NEOX_SIZES, "use_parallel_residual": False, "attention_bias": False,
                                         "rope_parameters": {"rope_type": "default", "rope_theta": 700.0,
                                                             "partial_rotary_factor": 0.5}}),
}  # fmt: skip


def make_model(name: str, seed: int = 0, **settings) -> transformers.PreTrainedModel:
    """A model of `MODELS`, in eval mode, with eager attention."""
    model_type, own = MODELS[name]
    config = transformers.AutoConfig.for_model(model_type, **{**own, **settings})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomize(model, seed)
    return model


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that attention is far from uniform and no norm's gain is 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(values * 1.5 * 48**-0.5)
            elif name.endswith("bias") or "gemma" in type(model).__name__.lower():
                parameter.copy_(0.3 * values)
            else:
                parameter.copy_(1 + 0.3 * values)


def save_model(model: transformers.PreTrainedModel, folder: Path, **options) -> Path:
    """``save_pretrained`` without its progress bar."""
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder, **options)
    return folder


def decoder_layers(model: transformers.PreTrainedModel) -> list[torch.nn.Module]:
    """The model's own decoder layers."""
    base = model.base_model
    base = getattr(base, "decoder", base)
    return list(base.h if hasattr(base, "h") else base.layers)


def layer_inputs_and_outputs(model: transformers.PreTrainedModel, length: int = 12) -> list[tuple]:
    """(input, output) of every decoder layer in one untouched pass over random tokens (batch 2)."""
    seen: list[tuple] = []

    def hook(_module, args, kwargs, output):
        h = args[0] if args else kwargs["hidden_states"]
        seen.append((h.detach(), (output[0] if isinstance(output, tuple) else output).detach()))

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in decoder_layers(model)]
    ids = torch.randint(0, 40, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def update_error(got: torch.Tensor, expected: torch.Tensor, h: torch.Tensor) -> float:
    """Error relative to what a layer adds to its input h, which is smaller than its output."""
    return ((got - expected).norm() / (expected - h).norm()).item()


def write_config(folder: Path, **changes) -> None:
    """Change entries of a saved ``config.json``; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config.pop(key, None)
        if value is not None:
            config[key] = value
    path.write_text(json.dumps(config))
