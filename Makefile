# Needed on the machine: Python >= 3.10 with venv, and make. Everything else goes into .venv.
#
#   make PYTHON=python3.12 tutorial     chooses the Python that .venv is made from
#   SOBOOK_MODE=full make tutorial      the GPU version of the course instead of the laptop's
#   make tutorial RETRAIN=1             train the runs that are shipped with the course anew
#   make CPU=1 tutorial                 PyTorch without CUDA: a third of the size, for machines without a GPU

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
OUT := build/tutorial
NOTEBOOKS = $(wildcard notebooks/*.ipynb notebooks/solutions/*.ipynb)

# What an installation depends on. The stamp that holds this is written last, so an interrupted
# or outdated installation has no stamp that fits, and the next run resumes it.
FINGERPRINT = $(PY) -c 'import hashlib, os, sys; print(hashlib.sha256((open("pyproject.toml").read() + sys.version + os.getcwd()).encode()).hexdigest())'

.DEFAULT_GOAL := help
.PHONY: help student tutorial test test-here test-slow test-graders lab notebooks book book-test decks bench lint clean venv install
.NOTPARALLEL:

help: ## print this list
	@echo "sobook: deep metric learning with soft orthogonal proxies"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-20s%s\n", $$1, $$2 }'

tutorial: install ## run the whole course; executed notebooks and pages land in build/tutorial
	@SOBOOK_MODE=$${SOBOOK_MODE:-quick} SOBOOK_RETRAIN=$(RETRAIN) $(PY) notebooks/build.py execute --out $(OUT)
	@$(PY) notebooks/build.py pages --out $(OUT)

# One process per core, each with one torch thread, since more threads would compete for the cores.
AT_ONCE := --numprocesses=logical --maxprocesses=4
BOOKS := --nbmake --nbmake-timeout=900 --timeout=0
test: install test-here ## run unit tests (without the slow ones), doctests and every notebook

test-here: export SOBOOK_MODE = quick
test-here: # with what is in .venv, whatever the versions
	@tests=0; books=0; \
	OMP_NUM_THREADS=1 $(PY) -m pytest $(AT_ONCE) || tests=$$?; \
	OMP_NUM_THREADS=1 $(PY) -m pytest $(BOOKS) $(AT_ONCE) $(NOTEBOOKS) || books=$$?; \
	exit $$(( tests > books ? tests : books ))

test-slow: install ## run the tests that depend on timing or take long
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m slow

test-graders: ## grade every solution with nbgrader and Otter-Grader, in an environment of their own
	@$(MAKE) --no-print-directory install VENV=build/graders EXTRAS='.[notebooks,dev,graders]'
	@OMP_NUM_THREADS=1 build/graders/bin/python -m pytest -m slow tests/notebooks/test_graders.py

lab: install ## open the notebooks in JupyterLab
	@$(PY) -m jupyterlab --notebook-dir=notebooks

student: install ## the notebooks without their results, to hand out: build/student/*.ipynb
	@$(PY) -m nbconvert --log-level=WARN --to notebook --ClearOutputPreprocessor.enabled=True \
	  --output-dir=build/student notebooks/[0-9][0-9]_*.ipynb

notebooks: install ## regenerate the committed notebooks from notebooks/source and execute them
	@$(PY) notebooks/build.py generate
	@SOBOOK_MODE=quick $(PY) notebooks/build.py execute
	@$(PY) notebooks/build.py check

# Extras of pip that `make install` leaves out are added when first needed.
book: install ## build the site from the executed notebooks: build/book/_build/html/index.html
	@$(PY) -c 'import jupyter_book' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@$(PY) docs/build.py

book-test: install ## open every page of the built site in headless Chromium
	@$(PY) -c 'import playwright' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@$(PY) -m pytest --timeout=600 tests/site

decks: install ## slides of the executed notebooks, which need no network: build/decks/*.html
	@$(PY) notebooks/decks.py

bench: install ## hold speed against its goals, and write the numbers of the page Performance anew
	@missed=0; $(PY) -m pytest -o addopts= --timeout=0 tests/benchmarks || missed=$$?; \
	for part in step cost several_processes installation "peers aviary"; do \
	$(PY) -m tests.benchmarks.$$part || exit 1; done; exit $$missed

PROSE := README.md CONTRIBUTING.md CHANGELOG.md CITATION.cff paper docs notebooks sobook tests \
	data/README.md data/benchmarks.toml data/recipes.toml data/studies

lint: install ## check style, types, spelling, the import contract, and that notebooks fit their sources
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/codespell $(PROSE)
	@$(PY) -m pytest -q tests/test_contract.py
	@$(PY) notebooks/build.py check
	@if npm run --silent biome -- --version >/dev/null 2>&1; then npm run --silent lint; \
	else echo "lint: the pages' JavaScript is left out: that needs node, and the network once"; fi

clean: ## remove what was built (keeps .venv and data/)
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .benchmarks .hypothesis
	find sobook tests notebooks -name __pycache__ -type d -prune -exec rm -rf {} +

venv: ## create .venv and install nothing: for choosing your own torch first
	@{ test -s $(STAMP) && $(PY) -c '' || $(PY) -m pip --version; } >/dev/null 2>&1 || { \
	$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "sobook needs Python 3.10 or newer with its venv module (on Debian or Ubuntu: package python3-venv), but '$(PYTHON) --version' says '$$($(PYTHON) --version 2>&1)': name another with make PYTHON=python3.12 ..." >&2; exit 1; }; \
	echo "Creating $(VENV) ..."; \
	$(PYTHON) -m venv --clear $(VENV); }

# Much of UMAP's numerical code is compiled once, here, and not in the middle of a lesson.
COMPILE := from sobook.figures import embeddings; import numpy; embeddings.project(numpy.eye(20), n_neighbors=5)

# uv takes a quarter of pip's time. Where it does not get through (it does not read pip's settings, such
# as a registry of one's own), pip does.
# PyTorch without CUDA is found by uv alone, so there pip does not take over.
EXTRAS := .[notebooks,dev]
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
INSTALL = { uv=$$(command -v uv || { $(PIP) uv && echo $(VENV)/bin/uv; }) && \
	$$uv pip install --quiet --python $(PY) $(if $(CPU),--torch-backend cpu) -e '$(EXTRAS)' || \
	$(if $(CPU),false,$(PIP) -e '$(EXTRAS)'); }

# pip writes a package's INSTALLER file last: a package without one was interrupted half-way, and
# removing its record makes pip install it again.
install: venv
	@test -s $(STAMP) && test "$$(cat $(STAMP))" = "$$($(FINGERPRINT))" || { \
	rm -f $(STAMP); \
	for info in $(VENV)/lib/python*/site-packages/*.dist-info; do \
		test -f "$$info/INSTALLER" || rm -rf "$$info"; \
	done; \
	echo "Installing sobook and what it needs into $(VENV): a few minutes$(if $(CPU),,; on Linux up to 6 GB (README: 'CPU only'))."; \
	{ $(INSTALL) && $(PY) -c '$(COMPILE)'; } || { \
	echo "sobook: the installation failed, the reason is above; once it is fixed (often the network), the same command resumes here." >&2; exit 1; }; \
	$(FINGERPRINT) > $(STAMP).new && mv $(STAMP).new $(STAMP); }
