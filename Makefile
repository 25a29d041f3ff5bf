# Every target makes the environment that it needs; `make` alone lists them.
# make setup PYTHON=python3.13 VENV=.venv-3.13 takes another interpreter, another folder.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: help setup demo test parity kills slurm composition families systems bench aot lint clean

VENV := .venv
PARITY := .venv-parity
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2
QUICK := not slow and not parity

help: ## list the targets (this)
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.installed ## the environment in .venv: the newest Python of 3.11 or later, or PYTHON=...

demo: setup ## train on real text, be killed, resume, sample: 5 minutes on two cores
	$(BIN)/python -m experiments.demo

test: setup ## the quick tests
	$(PYTEST) -m "$(QUICK)"

parity: $(PARITY)/.installed ## logits against transformers, in an environment with torch
	$(PARITY)/bin/python -m pytest -n 2 -m parity

kills: setup ## 40 kills at random moments, each resumed bit for bit, and 20 of one process of many
	LM_KILLS=40 $(PYTEST) -m kills -rP -o faulthandler_timeout=1800

slurm: setup ## a real Slurm of one node, as root: requeue, time limit, an array; installs slurm-wlm
	@if [ "$$(id -u)" != 0 ]; then echo "make slurm needs root" >&2; exit 1; fi; \
	which slurmctld munged > /dev/null || { apt-get update -qq; apt-get install -qq -y slurm-wlm munge; }; \
	$(BIN)/python -m pytest -m slurm $(SLURM) tests/experiments/test_slurm.py

composition: setup ## every row of the composition matrix: at most 45 minutes
	LM_COMPOSITION_ROWS=200 $(PYTEST) tests/composition

families: setup ## the tiny preset of every family: it learns real text, resumes, generates
	$(PYTEST) -m "not parity" tests/experiments/test_tiny_presets.py --junitxml=build/families.xml

systems: families $(PARITY)/.installed ## write README's table of systems from the tests' results
	$(PARITY)/bin/python -m pytest -n 2 -m parity --junitxml=build/parity.xml
	$(BIN)/python -m pytest tests/test_param_counts.py --junitxml=build/counts.xml
	$(BIN)/python -m tests.systems build/families.xml build/parity.xml build/counts.xml

bench: setup $(PARITY)/.installed ## step time beside PyTorch, start-up, loader, saves, installed size
	$(BIN)/python -m experiments.benchmarks

aot: $(PARITY)/.installed ## memory of Llama 3 8B on TPUs and GPUs that are not here, beside MaxText's
	$(PARITY)/bin/python -m experiments.benchmarks.aot

lint: setup ## style, format, types, import direction
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/ty check --python $(VENV)
	$(BIN)/lint-imports --no-logo

clean: ## remove environments and caches; runs stay
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.installed: PREFER := python3.13 python3.12 python3.11 python3
$(VENV)/.installed: EXTRAS := dev
# The CPU build of this torch release is not made everywhere for newer Pythons.
$(PARITY)/.installed: PREFER := python3.11 python3.12 python3.13 python3
$(PARITY)/.installed: EXTRAS := dev,parity,aot

# A command of that name may exist and not run (pyenv), so each candidate is tried. The environment
# is made anew: pip takes a package whose installation was interrupted for installed. -qq drops pip's
# warnings and keeps its errors.
$(VENV)/.installed $(PARITY)/.installed: pyproject.toml constraints.txt
	@for candidate in $(or $(PYTHON),$(PREFER)); do \
	    if $$candidate -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; \
	    then python=$$candidate; break; fi; done; \
	if [ -z "$${python:-}" ]; then \
	    echo "None of these is a Python of 3.11 or later with venv: $(or $(PYTHON),$(PREFER))." \
	        "Name one: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python" >&2; exit 1; fi; \
	echo "Installing lm[$(EXTRAS)] in $(@D) with $$($$python --version); this takes a minute or two."; \
	$$python -m venv --clear $(@D); \
	$(@D)/bin/python -m pip install -qq -e '.[$(EXTRAS)]' -c constraints.txt; \
	touch $@
