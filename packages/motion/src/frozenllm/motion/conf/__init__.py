"""Hydra configs of motion forecasting: ``python -m frozenllm.motion.train --cfg job`` shows them composed."""
