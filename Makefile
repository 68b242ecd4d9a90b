# Each target sets up what it needs, so `make demo` works on a fresh machine with Python 3.11 and pip.

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

# Pinned where there is no NVIDIA GPU only, and installed first: left to itself, pip takes the newest torch, which brings
# gigabytes of CUDA packages. It is the version that the CPU figures in the README were measured with; pyproject.toml
# admits newer ones.
CPU_TORCH ?= torch==2.13.0
HAS_GPU := $(shell command -v nvidia-smi)

DEMO := outputs/demo

help:  ## Print this list.
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10
	@echo
	@echo "Set-up goes to $(VENV) once; it is repeated when pyproject.toml changes."
	@echo "VENV=FOLDER and PYTHON=PROGRAM choose another folder and interpreter."
	@echo "No NVIDIA GPU: $(CPU_TORCH) is installed first. Where pip finds no CPU build of it by itself, name a place:"
	@echo "    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo"

demo: $(VENV)/.installed  ## Draw three pictures from prompts and ask a question about one of them.
	$(BIN)/python generate.py --output $(DEMO) --seed 0 \
		--prompt "two frogs on a pink background, in 3D style" \
		--prompt "a rocket above a house, in flat style" \
		--prompt "a cat and a sign that says \"HELLO\""
	@echo "How many frogs are there in $$(ls $(DEMO)/001-*.png)?"
	@$(BIN)/python chat.py --image $(DEMO)/001-*.png --task vqa --prompt "How many frogs are there?"

test: $(VENV)/.installed-dev  ## Run the tests.
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev  ## Check the format (ruff), the rules (ruff) and the types (pyright).
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.installed-dev  ## Run every benchmark in bench/: each prints its ratios.
	@ls bench/*.py >/dev/null 2>&1 || echo "bench/ holds no benchmark yet."
	@for file in $(sort $(wildcard bench/*.py)); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit("Rebus needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(if $(HAS_GPU),,$(BIN)/python -m pip install $(CPU_TORCH))
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install -e ".[dev]"
	@touch $@ $(VENV)/.installed
