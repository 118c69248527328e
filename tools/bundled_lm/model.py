"""The model of `pretrain_lm.py`, and the dropout it has in training only."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bundled_lm.settings import Settings


def build_model(settings: Settings, bos_id: int) -> LlamaForCausalLM:
    """A randomly initialised model with tied embeddings, float32, as the seed gives it."""
    torch.manual_seed(settings.seed)
    heads = settings.hidden_size // settings.head_dim
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=settings.vocab_size,
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=settings.head_dim,
            max_position_embeddings=settings.window,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=bos_id,
            eos_token_id=None,  # documents are long and few: the model never sees one end
            pad_token_id=None,
        )
    )


def add_dropout(model: LlamaForCausalLM, rate: float) -> None:
    """Drops out embeddings and sublayer outputs in training mode. LlamaConfig has no such switch: hooks add it."""

    def hook(module: nn.Module, _inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(output, rate, module.training)

    model.model.embed_tokens.register_forward_hook(hook)
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(hook)
        layer.mlp.down_proj.register_forward_hook(hook)
