# make demo   train a small vision transformer with and without a frozen block, on a CPU, in minutes
# make test   install everything and run the test suite
# make lint   formatting, lint and types
# make docs   these pages as a site, in site/
# make bench  the benchmarks (an hour on two cores; figures are ratios, so let nothing else run)
# make wheels-test   each package built, and installed and used alone in a fresh environment (minutes, downloads)
#
# Nothing has to be installed before: uv is fetched into .uv/ where it is missing. Variables:
#   PYTHON            the interpreter to use, 3.10 to 3.12 (default: what uv finds)
#   UV_TORCH_BACKEND  for example "cpu": take that build of torch instead of the registry's default (CUDA) one
#   PYTEST            more arguments for pytest: make test PYTEST="-k frozen -x"

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench wheels-test clean

VENV := .venv
RUN := $(VENV)/bin/python
UV_MINIMUM := 0.9.26
# The uv on the path if it is new enough, else one of our own. An older one would only warn that it cannot read the settings.
UV = $(shell printf '%s\n' $(UV_MINIMUM) "$$(uv --version 2>/dev/null | cut -d' ' -f2)" | sort -VC && command -v uv || echo .uv/bin/uv)
CHOOSE := $(if $(PYTHON),--python $(PYTHON))
SOURCES := $(wildcard packages/*/pyproject.toml) pyproject.toml

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

.uv/bin/uv:
	$(or $(PYTHON),python3) -m venv .uv
	.uv/bin/pip install --quiet --upgrade "uv>=$(UV_MINIMUM)"

# Where a torch build is asked for, packages are installed one by one: uv knows backends for `uv pip` only.
define install
	@test -x $(UV) || $(MAKE) --no-print-directory .uv/bin/uv
	$(if $(UV_TORCH_BACKEND),\
		test -x $(RUN) || $(UV) venv $(CHOOSE) $(VENV); $(UV) pip install --python $(RUN) $(2),\
		$(UV) sync $(CHOOSE) --inexact $(1))
endef

$(VENV)/.demo: $(SOURCES)
	$(call install,--package frozenllm-vision2d --no-default-groups,-e packages/core -e packages/vision2d)
	@touch $@

$(VENV)/.test: $(SOURCES)
	$(call install,--all-packages,$(patsubst %/pyproject.toml,-e %,$(wildcard packages/*/pyproject.toml)) --group dev --group extras --group docs --group release)
	@touch $@

demo: $(VENV)/.demo
	$(RUN) -m frozenllm.vision2d.demo

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n logical --maxprocesses 4 --dist loadfile $(PYTEST)

lint: $(VENV)/.test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build

wheels-test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m wheels tests/integration/test_wheels_alone.py $(PYTEST)

bench: $(VENV)/.test
	$(RUN) benchmarks/domains.py --json runs/bench/domains.json --markdown runs/bench/domains.md
	$(RUN) benchmarks/frozen_layer.py --json runs/bench/frozen_layer.json
	$(RUN) benchmarks/load_block.py --json runs/bench/load_block.json
	$(RUN) benchmarks/storage.py --json runs/bench/storage.json
	$(RUN) benchmarks/vision2d.py --json runs/bench/vision2d.json
	$(RUN) benchmarks/video.py --json runs/bench/video.json
	$(RUN) benchmarks/video_data.py --json runs/bench/video_data.json
	$(RUN) benchmarks/pointcloud.py --json runs/bench/pointcloud.json
	$(RUN) benchmarks/motion.py --json runs/bench/motion.json
	$(RUN) benchmarks/motion_data.py --json runs/bench/motion_data.json
	$(RUN) benchmarks/vqa.py --json runs/bench/vqa.json

clean:
	rm -rf $(VENV) .uv runs site
