# hamgan: everything sets itself up. `make help` lists the targets.

PYTHON ?= python3
PRESET ?= configs/emoji32.toml
GPUS ?= 1
# Further arguments of the command, such as ARGS="--duration '8000 steps'".
ARGS ?=
# What CI ran; empty takes the newest releases that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
# The run that `sample` and `eval` look at: the newest.
RUN ?= $(lastword $(sort $(wildcard runs/[0-9]*-*)))
OUT ?= samples.png

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup train sample eval test test-slow lint bench notebooks clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(INSTALLED) ## make .venv and install everything into it

$(INSTALLED): pyproject.toml setup.py $(wildcard hamgan/*/_*.c hamgan/*/_*.h) $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit("hamgan needs Python 3.11 or newer; set PYTHON=" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[dev]'
	@touch $@

train: $(INSTALLED) ## train PRESET on GPUS processes, or go on where it stopped
ifeq ($(GPUS),1)
	$(BIN)/hamgan train $(PRESET) $(ARGS)
else
	$(BIN)/torchrun --standalone --nproc-per-node $(GPUS) -m hamgan train $(PRESET) $(ARGS)
endif

sample: $(INSTALLED) ## draw samples of the newest run (or RUN) into OUT
	$(if $(RUN),,$(error there is no run yet: make train))
	$(BIN)/hamgan sample $(RUN) --out $(OUT) $(ARGS)

eval: $(INSTALLED) ## measure the newest run (or RUN) against its training file
	$(if $(RUN),,$(error there is no run yet: make train))
	$(BIN)/hamgan eval $(RUN) $(ARGS)

test: $(INSTALLED) ## run the fast tests
	$(BIN)/pytest -m "not slow" $(ARGS)

test-slow: $(INSTALLED) ## run the tests that take minutes
	$(BIN)/pytest -m slow $(ARGS)

lint: $(INSTALLED) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED) ## run every benchmark with short settings and write benchmarks/results.md
	$(BIN)/python benchmarks/run_all.py $(ARGS)

notebooks: $(INSTALLED) ## run the notebooks (or those in ARGS) and keep their outputs
	$(BIN)/python scripts/notebooks.py $(ARGS)

clean: ## remove what setup and tests made; runs and data stay
	rm -rf $(VENV) build *.egg-info hamgan/*/_*.so .pytest_cache .ruff_cache .mypy_cache
