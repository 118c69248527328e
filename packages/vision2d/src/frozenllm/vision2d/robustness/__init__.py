"""Accuracy on ImageNet and its relatives: ``python -m frozenllm.vision2d.robustness checkpoint=... data.imagenet=...``.

Start with `run.py` (the command), then `sets.py` (what is evaluated) and `evaluation.py` (how).
"""

from frozenllm.vision2d.robustness.models import Candidate, load_candidate
from frozenllm.vision2d.robustness.run import evaluate_robustness, main
from frozenllm.vision2d.robustness.scores import Counts, corruption_scores

__all__ = ["Candidate", "Counts", "corruption_scores", "evaluate_robustness", "load_candidate", "main"]
