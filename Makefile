# `make demo` and `make test` are all that a fresh machine needs (Python >= 3.11). PYTHON chooses another interpreter.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: help setup docs demo test test-slow test-torch test-oldest test-newest test-faults check clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: .venv/installed  ## the environment in .venv: about 6 GB, a few minutes the first time

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	@echo "Setting up .venv (PyTorch and what it needs: about 6 GB)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -q -e '.[dev]' -c constraints.txt
	@touch $@

demo: setup  ## three networks trained on the built-in data, their table and a picture of attention: a few minutes on two cores
	$(BIN)/bam-train +experiment=demo trainer.threads=1 hydra/launcher=joblib hydra.launcher.n_jobs=2
	$(BIN)/bam-maps shapes_small/resnet20-widen0.5/bam-reduction8/demo/seed0 --output results/plots/demo-maps.png
	$(BIN)/bam-tables report demo

test: setup  ## the tests
	$(BIN)/pytest -n auto --dist worksteal

test-slow: setup  ## the tests that take minutes each: overfitting, every network of torchvision and timm
	$(BIN)/pytest -n auto --dist worksteal -m slow

test-torch: test-oldest test-newest  ## the library and training with the oldest and the newest PyTorch, each in an environment of its own

test-oldest: TORCH := 'torch==2.11.*' 'torchvision==0.26.*'
test-newest: TORCH := --upgrade torch torchvision
test-oldest test-newest:
	$(PYTHON) -m venv build/$@
	build/$@/bin/python -m pip install --disable-pip-version-check -q -e '.[dev]' $(TORCH)
	build/$@/bin/pytest -n auto --dist worksteal tests/attention tests/backbones tests/training tests/weights

test-faults: setup  ## kills, cuts, floods: the long tests of docs/reliability.md
	$(BIN)/pytest -n auto --dist loadgroup -m faults

check: setup  ## lint, format, types, tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest -n auto --dist worksteal

docs: setup  ## the documentation as pages, in build/docs; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

clean:  ## remove the environment and caches; runs/ and results/ stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info
