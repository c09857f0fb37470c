# Every target sets up what it needs. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STORE ?= models
PORT ?= 8000
SAMPLES := $(wildcard samples/*/config.json)

.DEFAULT_GOAL := help
.PHONY: help setup demo models serve test lint bench clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@echo "==> creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.setup: $(BIN)/python pyproject.toml constraints.txt
	@echo "==> installing gpt2serve with the exporter and the development tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[export,dev]'
	@touch $@

$(VENV)/.setup-bench: $(VENV)/.setup
	@echo "==> installing the systems to compare with into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[export,dev,bench]'
	@touch $@

setup: $(VENV)/.setup  ## Install everything into .venv

models: $(VENV)/.setup  ## Export the sample models to ./models
	@echo "==> exporting the sample models to $(STORE)/"
	@$(BIN)/gpt2export $(dir $(SAMPLES)) --store $(STORE)

demo: models  ## Export the sample models, serve them, generate five texts from each
	@$(BIN)/python examples/demo.py --store $(STORE)

serve: models  ## Serve the sample models on http://127.0.0.1:8000 (PORT=, STORE=)
	@$(BIN)/gpt2serve --store $(STORE) --port $(PORT)

test: $(VENV)/.setup  ## Run all tests
	@echo "==> running the tests"
	@$(BIN)/python -m pytest

lint: $(VENV)/.setup  ## Check style (ruff) and types (mypy --strict)
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> mypy --strict"
	@$(BIN)/mypy

bench: $(VENV)/.setup-bench  ## Compare with transformers and CTranslate2 (some minutes)
	@$(BIN)/python -m benchmarks.decode --quick

clean:  ## Remove what these targets made
	rm -rf $(VENV) $(STORE) build benchmarks/.cache benchmarks/results
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
