# Two commands need nothing prepared: `make demo` and `make test`. Each makes its own .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint types walls pytest up down clean

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3,11) <= sys.version_info[:2] <= (3,13) else "longshot needs Python 3.11 to 3.13; %s is %d.%d: make PYTHON=/path/to/python3.12" % (sys.executable, *sys.version_info[:2]))'
	@if command -v uv >/dev/null 2>&1; then \
	  [ -x $(BIN)/python ] || uv venv --quiet --python "$$(command -v $(PYTHON))" $(VENV); \
	  uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	else \
	  [ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
	fi
	@touch $@

demo: $(STAMP) ## build the example application with the scripted model: no keys, no account, no server to install
	@$(BIN)/longshot demo

up: $(STAMP) ## start the Dagster UI, daemon and code server and keep them running
	@$(BIN)/longshot up

down: $(STAMP) ## stop them
	@$(BIN)/longshot down

test: lint types walls pytest ## lint, types, import walls and all tests

lint: $(STAMP) ## ruff
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP) ## mypy, strict
	@$(BIN)/mypy

walls: $(STAMP) ## which room may import which
	@$(BIN)/lint-imports

pytest: $(STAMP) ## the tests alone
	@$(BIN)/pytest -n auto --dist loadgroup

clean: ## remove the virtual environment and caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
