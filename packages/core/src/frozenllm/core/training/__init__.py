"""The training engine: Hydra composes a config, mmengine builds and runs it.

Start with `run.py` (one run), then `settings.py` (config to mmengine's dict) and `engine.py` (mmengine's runner with
our devices, files and checkpoints).
"""

try:
    import hydra  # noqa: F401
    import mmengine  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"Training needs {error.name}, which is not installed: pip install 'frozenllm-core[train]'.", name=error.name
    ) from error

from frozenllm.core.training.cli import errors_in_a_sentence, run_cli, run_tool
from frozenllm.core.training.compare import HOST_AND_LAYER, ArmResult, compare, compare_toys, print_table, table
from frozenllm.core.training.composition import compose_config
from frozenllm.core.training.guard import FrozenBlockChanged
from frozenllm.core.training.metrics import Accuracy, CrossEntropy, Metric, ReadableMetric, ScoreMetric
from frozenllm.core.training.optim import param_groups
from frozenllm.core.training.options import call_with_options
from frozenllm.core.training.registry import DATASETS, FUNCTIONS, METRICS, MODELS, TRANSFORMS
from frozenllm.core.training.run import RunResult, evaluate, train
from frozenllm.core.training.saved import SavedRun, folder_of_run, is_run, read_run
from frozenllm.core.training.settings import build_model
from frozenllm.core.training.task import ClassificationTask, Task
from frozenllm.core.training.tolerant import UNREADABLE, BrokenSample, TolerantDataset

__all__ = [
    "DATASETS",
    "FUNCTIONS",
    "HOST_AND_LAYER",
    "METRICS",
    "MODELS",
    "TRANSFORMS",
    "UNREADABLE",
    "Accuracy",
    "ArmResult",
    "BrokenSample",
    "ClassificationTask",
    "CrossEntropy",
    "FrozenBlockChanged",
    "Metric",
    "ReadableMetric",
    "RunResult",
    "SavedRun",
    "ScoreMetric",
    "Task",
    "TolerantDataset",
    "build_model",
    "call_with_options",
    "compare",
    "compare_toys",
    "compose_config",
    "errors_in_a_sentence",
    "evaluate",
    "folder_of_run",
    "is_run",
    "param_groups",
    "print_table",
    "read_run",
    "run_cli",
    "run_tool",
    "table",
    "train",
]
