"""The model card (``README.md``) of a saved model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from frozenllm.core.weights.resolve import hub_name

__all__ = ["model_card"]

_TEMPLATE = """---
{header}
---

# {title}

A vision transformer, {width} wide with {depth} blocks, for {classes} classes and images of {image} pixels{layer}.
Method: Pang et al., *Frozen Transformers in Language Models Are Effective Visual Encoder Layers*,
ICLR 2024, https://arxiv.org/abs/2310.12973.

```python
from frozenllm.vision2d import FrozenLLMViT

model = FrozenLLMViT.from_pretrained("{name}")  # a folder, or a repository on the hub
```
{block}{text}"""

_BLOCK = """
## The frozen block

The weights of the language model are **not** in this repository; the model that they come from has a license of its
own. `from_pretrained` takes them from where they came from and verifies them:

| | |
|---|---|
| source | `{source}` |
| revision | {revision} |
| layers | {layers} |
| stored as | {dtype} |
| SHA-256 | `{sha256}` |
{elsewhere}"""

_ELSEWHERE = """
The source is on the machine that saved the model. Anywhere else, say where the same layers are:
`FrozenLLMViT.from_pretrained(..., block="<folder, file or repository>")`.
"""


def is_public(source: str) -> bool:
    """Whether a block's source is the same everywhere, and not a path on one machine."""
    return source == "bundled" or source.startswith("random:") or hub_name(source) is not None


def model_card(
    description: Mapping[str, Any],
    data: ModelCardData,
    *,
    name: str = "<folder or org/name>",
    text: str = "",
    **fields: Any,
) -> ModelCard:
    """Write the card.

    Args:
        description: What `describe_model` returns.
        data: Fields of the header that all models share.
        name: What the example loads.
        text: Added at the end: training data, results, intended use.
        **fields: More fields of the header, such as ``license``, ``datasets`` or ``metrics``.
    """
    arguments, record = description["model_args"], description["frozenllm"].get("record")
    header = ModelCardData(**{**data.to_dict(), **fields})
    layer, block = "", ""
    if record is not None:
        kind = "trained" if arguments["llm"].get("trainable") else "frozen"
        layer = f", with a {kind} block of a language model among its own blocks"
    elif description["frozenllm"]["llm"] != "none":
        layer = ", with an MLP in the place of a language model's block"
    if record is not None and not arguments["llm"].get("trainable"):
        repository = hub_name(record["source"])
        if repository is not None and header.base_model is None:
            header.base_model = repository[0]
        block = _BLOCK.format(
            source=record["source"],
            revision=f"`{record['revision']}`" if record["revision"] else "-",
            layers=", ".join(map(str, record["layers"])),
            dtype=record["dtype"],
            sha256=record["sha256"],
            elsewhere="" if is_public(record["source"]) else _ELSEWHERE,
        )
    image = arguments.get("img_size")
    content = _TEMPLATE.format(
        header=header.to_yaml(),
        title=description["architecture"],
        width=arguments["embed_dim"],
        depth=arguments["depth"],
        classes=arguments["num_classes"],
        image=" x ".join(map(str, image)) if image else "any number of",
        layer=layer,
        name=name,
        block=block,
        text=f"\n{text}\n" if text else "",
    )
    return ModelCard(content)
