"""Small encoders of CLIP's and RoBERTa's form, with a tokenizer trained on the toy text, as transformers folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from frozenllm.vqa.quiet import quiet
from frozenllm.vqa.toy.scenes import CELL, SIZE

SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
VOCABULARY = 400


def write_image_encoder(folder: Path, *, width: int, layers: int, seed: int) -> None:
    """A `CLIPVisionModel` with random weights whose patches are the cells of the toy scenes.

    Args:
        folder: The folder to write.
        width: Width of its tokens; heads are 16 wide.
        layers: Its layers, of which METER drops the last.
        seed: Of its weights.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
        image_size=SIZE,
        patch_size=CELL,
        projection_dim=width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPVisionModel(config)
    with quiet():
        model.save_pretrained(folder)


def write_text_encoder(folder: Path, texts: Iterable[str], *, width: int, layers: int, seed: int) -> None:
    """A `RobertaModel` with random weights, and a byte-level tokenizer like RoBERTa's that was trained on the texts.

    Args:
        folder: The folder to write.
        texts: What the tokenizer learns its pieces from.
        width: Width of its tokens; heads are 16 wide.
        layers: Its layers.
        seed: Of its weights.
    """
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import RobertaProcessing
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    pieces = ByteLevelBPETokenizer()
    pieces.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=list(SPECIAL.values()), show_progress=False)
    ids = {name: pieces.token_to_id(token) for name, token in SPECIAL.items()}
    tokenizer = pieces._tokenizer
    tokenizer.post_processor = RobertaProcessing(("</s>", ids["eos_token"]), ("<s>", ids["bos_token"]))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", model_max_length=62, **SPECIAL
    ).save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
        max_position_embeddings=64,  # RoBERTa counts positions from the padding token's id on
        type_vocab_size=1,
        initializer_range=width**-0.5,  # RoBERTa's 0.02 is meant for 768
        hidden_dropout_prob=0.0,  # a toy run is over before anything is learnt by heart
        attention_probs_dropout_prob=0.0,
        bos_token_id=ids["bos_token"],
        pad_token_id=ids["pad_token"],
        eos_token_id=ids["eos_token"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RobertaModel(config, add_pooling_layer=False)
    with quiet():
        model.save_pretrained(folder)
