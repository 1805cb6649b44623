# Needs Python 3.11 or newer and nothing else: the virtual environment is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
SOURCES := tet_data_service.py simulated_binance.py tests

.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

dev-setup: $(READY) ## Make the virtual environment with all that development needs

test: $(READY) ## Run the tests
	$(BIN)/python -m pytest --numprocesses=auto

check: $(READY) ## Lint, check the format and the types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

soak: $(READY) ## Run 1,000 cycles with time passing quickly (CYCLES=n), print what the process holds
	PYTHONPATH=.:tests $(BIN)/python tests/soak.py $(or $(CYCLES),1000)

run: $(READY) ## Run the service with config.txt
	$(BIN)/python tet_data_service.py --config=config.txt

clean: ## Remove what was made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help dev-setup test check soak run clean
