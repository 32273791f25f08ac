# Two commands do all the set-up: `make demo` and `make test`. Both make an environment of their own in .venv.
PYTHON ?= python3
BIN = .venv/bin
DEMO = runs/demo
# a process of the tests for each processor, at most four; each takes up to 2 GB and one thread. Bytecode is written, also
# where the environment switches it off: otherwise every process that a test starts compiles the package again
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist worksteal
SPHINX = $(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build
FAST = tests/audit tests/config tests/data tests/io tests/metrics tests/test_golden.py

.PHONY: demo test test-fast test-slow lint docs clean

demo: .venv/installed  ## train on the bundled synthetic radiographs, offline, and name the report
	rm -rf $(DEMO)
	$(BIN)/fastcxr train resnet10t --data data/sample --weights none --strategy full --image-size 96 --epochs 28 --batch-size 16 --learning-rate 5e-3 --out $(DEMO)
	@echo "open $(DEMO)/report.html"

test: .venv/installed-dev  ## run every test but the slow ones
	$(PYTEST) -m "not slow"

test-fast: .venv/installed-dev  ## data, metrics, audit, configuration: under a minute
	$(PYTEST) -m "not slow" $(FAST)

test-slow: .venv/installed-dev  ## networks above 100 million parameters and the like
	$(PYTEST) -m slow

lint: .venv/installed-dev  ## style, docstrings, spelling, types, and a build of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(SPHINX)

docs: .venv/installed-docs  ## build the documentation, offline; a warning is an error
	$(SPHINX)
	@echo "open docs/_build/index.html"

.venv/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || (echo "fastcxr needs Python 3.11 or newer: make PYTHON=python3.12" && exit 1)
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

clean:
	rm -rf docs/_build .venv build dist *.egg-info
