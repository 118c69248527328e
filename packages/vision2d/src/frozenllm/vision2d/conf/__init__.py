"""Hydra configs of 2D vision: ``python -m frozenllm.vision2d.train --cfg job`` shows them composed."""
