# Needs Python 3.11 or newer and nothing else: the virtual environment is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
SOURCES := tet_data_service.py tet_reader.py tet_core tet_extras tests bench examples deploy/build.py deploy/frozen.py deploy/linux_packages.py deploy/try_container.py deploy/windows/wine.py
COMPOSE := docker compose --file deploy/docker-compose.yml
COMMIT = $(shell git rev-parse --short=7 HEAD)
BUILT = $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%d --format=%cd)

# What Python has compiled is kept: the tests start hundreds of programs, and only what is used is compiled.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	touch $@

dev-setup: $(READY) ## Make the virtual environment with all that development needs

build: ## Make the binary for this platform and the zipapp, in dist/
	./build.sh

packages: ## Make a deb and an rpm of the binary in dist/
	$(PYTHON) deploy/linux_packages.py dist/tet-data-service-linux-*64

run: $(READY) ## Run the service with config.txt
	$(BIN)/tet-data-service --config=config.txt

run-dev: $(READY) ## Run it with log level debug and an interval of 60 s
	$(BIN)/tet-data-service --config=config.txt --log-level=debug --interval=60

demo: ## Try it: a simulated market, no keys, no network, no Redis
	./run.sh --demo

test: $(READY) ## Run the tests
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadgroup

test-again: $(READY) ## Run the tests again that failed, one after another
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures=none

test-cluster: $(READY) ## Run the long tests of several instances (6 minutes)
	$(BIN)/python -m pytest --numprocesses=2 --dist=load -m long tests/extras/test_cluster.py

windows: $(READY) ## Build the Windows binary under Wine and test it (ALL=1)
	$(BIN)/python deploy/windows/wine.py build
	$(MAKE) windows-test

windows-test: $(READY) ## Test the Windows binary that make windows has built
	$(BIN)/python -m pytest --numprocesses=2 -m 'windows$(if $(ALL),, and not long)' \
		-o cache_dir=.pytest_cache/windows tests/project/test_windows.py; \
		code=$$?; $(BIN)/python deploy/windows/wine.py stop; exit $$code

check: $(READY) ## Lint, check the format and the types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy --cache-dir=.mypy_cache/program & program=$$!; \
		$(BIN)/mypy --cache-dir=.mypy_cache/tests --config-file=tests/mypy.ini tests bench; code=$$?; \
		wait $$program && exit $$code

soak: $(READY) ## Run 1,000 cycles with faults, time sped up (CYCLES=n LIVE=1)
	PYTHONPATH=.:tests $(BIN)/python tests/soak.py $(or $(CYCLES),1000) $(if $(LIVE),--live)

soak-reader: $(READY) ## Read and follow while all goes wrong (SECONDS=n)
	PYTHONPATH=.:tests $(BIN)/python tests/soak_reader.py $(or $(SECONDS),300)

soak-bots: $(READY) ## Let twenty bots ask while all goes wrong (SECONDS=n)
	PYTHONPATH=.:tests $(BIN)/python -W ignore tests/soak_bots.py $(or $(SECONDS),1200)

bench: $(READY) ## Measure a refresh (QUICK=1: 25 pairs; PAIRS=n: no peers)
	$(BIN)/python bench/bench.py $(if $(QUICK),--quick) $(if $(PAIRS),--pairs $(PAIRS))

bench-freshness: $(READY) ## Measure from close to Redis for an hour (MINUTES=n)
	$(BIN)/python bench/freshness.py $(or $(MINUTES),60)

bench-live: $(READY) ## Measure closes by polling and with LIVE (PAIRS=n)
	$(BIN)/python bench/live.py $(if $(PAIRS),--pairs $(PAIRS)) $(if $(SECONDS),--steady $(SECONDS))

bench-closes: $(READY) ## Measure a close beside a whole write (QUICK=1 CLOSES=n)
	$(BIN)/python bench/closes.py $(if $(QUICK),--quick) $(if $(CLOSES),--closes $(CLOSES)) \
		$(if $(PAIRS),--pairs $(PAIRS))

bench-memory: $(READY) ## Measure memory an hour after the start (PAIRS=n MINUTES=n)
	$(BIN)/python bench/memory.py $(if $(PAIRS),--pairs $(PAIRS)) $(if $(MINUTES),--minutes $(MINUTES))

bench-patches: $(READY) ## Compare 200,000 patched values with whole ones (PATCHES=n)
	$(BIN)/python bench/patches.py $(or $(PATCHES),200000)

bench-page: $(READY) ## Measure a hundred clients of the page and /api (SECONDS=n)
	$(BIN)/python bench/page.py $(or $(SECONDS),20)

bench-browser: $(READY) ## Measure the page in Chromium with live pairs (PAIRS=n)
	$(BIN)/python bench/page_browser.py $(if $(PAIRS),--pairs $(PAIRS)) $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(SECONDS),--repeat 1)

bench-reader: $(READY) ## Measure what reading and following cost (PAIRS=n)
	$(BIN)/python bench/reading.py $(if $(PAIRS),--pairs $(PAIRS))

bench-proxy: $(READY) ## Measure 50 bots that take us for the exchange (SECONDS=n)
	$(BIN)/python bench/proxy.py $(or $(SECONDS),30)

bench-scaling: $(READY) ## Work out what 25 to 3,700 pairs need (QUICK=1)
	$(BIN)/python bench/scaling.py $(if $(QUICK),--quick)

health: $(READY) ## Check Redis, Binance, keys and data with config.txt
	$(BIN)/tet-data-service --config=config.txt --health-check

docker-build: ## Build the container image
	docker build --file deploy/Dockerfile --tag tet-data-service \
		--build-arg COMMIT=$(COMMIT) --build-arg BUILT=$(BUILT) .

container-test: ## Build and try the image (DEBIAN_BASE=1: without a registry)
	$(PYTHON) deploy/try_container.py $(if $(DEBIAN_BASE),--debian-base)

docker-run: ## Start the service, Redis and Redis Commander in containers
	$(COMPOSE) up --build --detach

docker-stop: ## Stop the containers
	$(COMPOSE) down

docker-logs: ## Follow the service's log
	$(COMPOSE) logs --follow tet-data-service

clean: ## Remove what was made
	rm -rf $(VENV) .venv-run build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help dev-setup build packages run run-dev demo test test-again test-cluster windows windows-test check
.PHONY: soak soak-reader soak-bots bench bench-freshness bench-live bench-browser bench-closes bench-memory
.PHONY: bench-page bench-proxy bench-patches bench-reader bench-scaling health
.PHONY: docker-build container-test docker-run docker-stop docker-logs clean
