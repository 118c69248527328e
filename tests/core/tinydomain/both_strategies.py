"""Started by torchrun: runs with DDP and FSDP, stopped in mid-epoch and resumed."""

import sys
from pathlib import Path

from frozenllm.core.training import compose_config, train
from tinydomain.train import CONFIG

folder, *overrides = sys.argv[1:]
for strategy in ("ddp", "fsdp"):
    common = [*overrides, f"runs={Path(folder)}", f"name={strategy}", f"runtime.strategy={strategy}"]
    train(compose_config(CONFIG, [*common, "runtime.stop_after=8"]))
    train(compose_config(CONFIG, [*common, "resume=true"]))
    several = [f"name=blocks_{strategy}", "llm.layers=[0,1]", "llm.lora_rank=2"]  # what is trained lies in their parts
    train(compose_config(CONFIG, [*common, *several]))

# Each process sees other samples, so BatchNorm's statistics drift apart; with dropout and augmentation on top.
common = [*overrides, f"runs={Path(folder)}", "model.norm=batch", "model.dropout=0.1", "data.train.augment=true"]
common += ["runtime.checkpoint.every_iters=8"]
train(compose_config(CONFIG, [*common, "name=whole"]))
train(compose_config(CONFIG, [*common, "name=parts", "runtime.stop_after=8"]))
train(compose_config(CONFIG, [*common, "name=parts", "resume=true"]))
