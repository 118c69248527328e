"""Training and evaluation of vision-language models: ``python -m frozenllm.vqa.train [overrides]``.

Without arguments it trains a small METER on toy scenes with questions, alone and with the frozen bundled block, beside
a model that sees no image, on a CPU in about two minutes. ``task=retrieval`` does the same with captions,
``task=sqa3d`` with questions about rooms from where somebody stands in them (extra ``[scenes]``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from frozenllm.core.training import (
    DATASETS,
    FUNCTIONS,
    HOST_AND_LAYER,
    METRICS,
    MODELS,
    TRANSFORMS,
    compare_toys,
    run_tool,
)
from frozenllm.vqa.data import flickr30k, vqav2
from frozenllm.vqa.meter import build_retrieval, build_vqa
from frozenllm.vqa.metrics import EvalAI, Recall, VQAScore
from frozenllm.vqa.scenes.build import build_sqa3d
from frozenllm.vqa.scenes.data import scene_batch, sqa3d
from frozenllm.vqa.scenes.metrics import ExactMatch
from frozenllm.vqa.scenes.task import SituatedTask
from frozenllm.vqa.tasks import DrawMatches, RetrievalTask, VQATask
from frozenllm.vqa.text import collate

CONFIG = "frozenllm.vqa.conf"

MODELS.register_module("meter_vqa", module=build_vqa)
MODELS.register_module("meter_retrieval", module=build_retrieval)
MODELS.register_module("sqa3d", module=build_sqa3d)
MODELS.register_module("VQATask", module=VQATask)
MODELS.register_module("RetrievalTask", module=RetrievalTask)
MODELS.register_module("SituatedTask", module=SituatedTask)
DATASETS.register_module("vqav2", module=vqav2)
DATASETS.register_module("flickr30k", module=flickr30k)
DATASETS.register_module("sqa3d", module=sqa3d)
FUNCTIONS.register_module("text_batch", module=collate)
FUNCTIONS.register_module("scene_batch", module=scene_batch)
TRANSFORMS.register_module("draw_matches", module=DrawMatches)
METRICS.register_module("VQAScore", module=VQAScore)
METRICS.register_module("EvalAI", module=EvalAI)
METRICS.register_module("Recall", module=Recall)
METRICS.register_module("ExactMatch", module=ExactMatch)


@dataclass(frozen=True)
class Toy:
    """What the tool does without further arguments.

    Attributes:
        metric: The figure of the table.
        others: Further figures, below it.
        note: What the figures are to be compared with.
        arms: Arms beside the host and the host with the layer.
    """

    metric: str
    others: tuple[str, ...]
    note: str
    arms: dict[str, list[str]] = field(default_factory=dict)


TOYS = {
    "vqa": Toy(
        metric="vqa/overall",
        others=("vqa/yes_no", "vqa/number", "vqa/other"),
        note="Answers are balanced for every question, so that the question alone gives no more than its prior.",
        arms={"question only (no image)": ["llm=none", "model.blind=true"]},
    ),
    "retrieval": Toy(
        metric="retrieval/ir@1",
        others=("retrieval/ir@5", "retrieval/tr@1", "retrieval/tr@5"),
        note="Every image of the gallery belongs to 5 of its 250 captions: chance is 2 per cent for ir@1 and tr@1.",
    ),
    "sqa3d": Toy(
        metric="sqa3d/em@1",
        others=tuple(f"sqa3d/{name}" for name in ("what", "is", "how", "can", "which", "others", "em@10")),
        note="Answers are balanced for every question, so that the question alone gives no more than its prior.",
        arms={
            "no situation": ["llm=none", "model.blind=situation"],
            "question only (no scene)": ["llm=none", "model.blind=both"],
        },
    ),
}
"""By the choice of the config group ``task``."""


def toy(task: str = "vqa") -> None:
    """The host alone beside the host with the frozen layer, on the toy data of a task."""
    chosen = TOYS[task]
    results = compare_toys(CONFIG, [f"task={task}"], chosen.metric, HOST_AND_LAYER | chosen.arms)
    print()
    for result in results:
        figures = ", ".join(f"{name} {result.mean(name):.1f}" for name in chosen.others)
        print(f"{result.arm}: {figures}")
    print(chosen.note)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: Overrides in Hydra's grammar; None for the process's arguments. Without any, or with ``task=...`` alone,
            `toy` runs.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = arguments[0].removeprefix("task=") if len(arguments) == 1 and arguments[0].startswith("task=") else None
    if chosen in TOYS:
        run_tool(CONFIG, lambda: toy(chosen), [])
    else:
        run_tool(CONFIG, toy, arguments)


if __name__ == "__main__":
    main()
