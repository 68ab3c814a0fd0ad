# Every verb sets up what it needs: an environment of the project's own in .venv, pinned by constraints.txt.
PYTHON ?= python3
TASK   ?= cartpole-swingup
ARGS   ?=
BIN    := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup train test lint format type bench gpu results clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  make train TASK=walker-walk ARGS="--seed 2"   any task, any setting (tdmpc-prune train --help)'

setup: .venv/ready ## install everything into .venv (the other verbs do it by themselves)

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11'; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@# W&B's own sweep schema and sampler, which tests compare ours with. It asks for numpy 1; what we use of
	@# it works with numpy 2, so it comes without its dependencies.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps sweeps==0.3.0
	@touch $@

train: .venv/ready ## train a controller (default: cartpole-swingup); again: resume it
	$(BIN)/tdmpc-prune train $(TASK) $(ARGS)

test: .venv/ready ## run the tests
	$(BIN)/python -m pytest -n auto $(ARGS)

lint: .venv/ready ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/ready ## mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: .venv/ready ## check types
	$(BIN)/mypy

bench: .venv/ready ## milliseconds: ours, the simple way, the roofline, trick by trick (ARGS="--upstream PATH")
	$(BIN)/python -m benchmarks.speed --tricks $(ARGS)

gpu: .venv/ready ## on a machine with a CUDA GPU: its tests and its benchmark (needs PyTorch for CUDA)
	$(BIN)/python -m pytest -m gpu tests $(ARGS)
	$(BIN)/python -m benchmarks.gpu

results: .venv/ready ## the experiments of results/README.md that are not recorded yet (ARGS="criteria --most 10")
	$(BIN)/python -m results $(ARGS)

clean: ## remove the environment and caches, keep runs/
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info
