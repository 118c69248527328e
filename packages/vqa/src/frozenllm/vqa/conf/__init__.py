"""Hydra configs of vision and language: ``python -m frozenllm.vqa.train --cfg job`` shows them composed."""
