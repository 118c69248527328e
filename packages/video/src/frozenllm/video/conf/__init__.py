"""Hydra configs of video: ``python -m frozenllm.video.train --cfg job`` shows them composed."""
