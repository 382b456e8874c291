# Every target makes .venv from requirements.lock if it is missing; a second run costs nothing.
SHELL := /bin/bash
PY := .venv/bin/python
DEMO_OUT ?= outputs/demo
# A finished or interrupted demo is gone on with, so that a second run costs little and writes nothing over.
DEMO_ARGS ?= configs/tiny.py --output $(DEMO_OUT) $(if $(wildcard $(DEMO_OUT)/job.json),--resume)
# Programs compiled by one test run are read back by the next. Most are small and run once, so that XLA had better not
# spend time on making them fast: without its optimisation tests/models/test_transformer.py took 43 % less CPU time.
TEST_ENV := JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/jax \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.3 PYTHONPATH=$(CURDIR)/.venv/aot \
	XLA_FLAGS=--xla_backend_optimization_level=0

.PHONY: help setup demo test test-all lint clean

help:      ## list the targets
	@grep -hE '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup:     ## make .venv and install the locked packages
	@scripts/setup.sh

demo: setup ## photo + camera path -> a video that leaves a place and comes back
	@$(PY) sample.py $(DEMO_ARGS)

test:      ## the tests, without the slow ones and the comparisons with other packages
	@scripts/setup.sh aot
	@$(TEST_ENV) $(PY) -m pytest -q -n 2 --dist worksteal tests $(TEST_ARGS)

test-all:  ## every test, with torch, diffusers and transformers as peers
	@scripts/setup.sh parity
	@$(TEST_ENV) $(PY) -m pytest -q -n 2 --dist loadfile -m '' tests $(TEST_ARGS)

lint: setup ## ruff and mypy
	@.venv/bin/ruff check .
	@.venv/bin/mypy

clean:     ## remove what the targets made, except outputs/ and runs/
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache
