# Two commands need nothing prepared: `make demo` and `make test`. Each makes its own .venv first.
# The first of these that is Python 3.11 to 3.13 is taken.
PYTHON ?= python3 python3.13 python3.12 python3.11
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo demo-modal test test-harnesses test-docker lint types walls pytest up down docs clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A .venv that cannot install (half made, moved, of the other tool) is made again.
$(STAMP): pyproject.toml
	@set -e; python=; \
	for p in $(PYTHON); do if $$p -c '$(FITS)' 2>/dev/null; then python=$$(command -v $$p); break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "longshot needs Python 3.11 to 3.13 and finds none as $(PYTHON); make PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	by_uv() { \
	  { $(BIN)/python -V >/dev/null 2>&1 || uv venv --quiet --clear --python "$$python" $(VENV); } && \
	  uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	}; \
	by_pip() { \
	  $(BIN)/python -m pip --version >/dev/null 2>&1 || $$python -m venv --clear $(VENV); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
	}; \
	echo "installing into $(VENV), once; this takes minutes without uv ..." >&2; \
	if ! command -v uv >/dev/null 2>&1; then by_pip; \
	elif ! by_uv; then echo "uv cannot install it; trying pip ..." >&2; by_pip; fi; \
	touch $@

demo: $(STAMP) ## build the example application with the scripted model: no keys, no account, no server to install
	@$(BIN)/longshot demo

demo-modal: $(STAMP) ## the same through Modal's own SDK, against a server on this machine: twenty sandboxes at once
	@$(BIN)/longshot demo --provider modal-loopback

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

# File by file: what a file's tests share, such as a whole running stack, is made once.
pytest: $(STAMP) ## the tests alone; TESTS='tests/core -k name' some of them
	@$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder $(TESTS)

test-harnesses: $(STAMP) ## Pi, OpenCode, Codex and Claude Code for real, against the scripted model; npm installs 1.5 GB once
	@LONGSHOT_HARNESSES=$${LONGSHOT_HARNESSES:-$(CURDIR)/.harnesses} $(BIN)/pytest -n 2 --timeout=500 tests/harnesses

test-docker: $(STAMP) ## the sandboxes' contract on a container engine of its own (root)
	@CONTRACT_SANDBOXES=docker tests/contract/with_engine $(BIN)/pytest tests/contract/test_sandboxes.py

docs: $(STAMP) ## write docs/settings.md and .env.example anew, after a setting has changed
	@$(BIN)/python -c 'from pathlib import Path; from longshot_dagster.adapters import settings_pages as p; \
	Path("docs/settings.md").write_text(p.settings_table(), "utf-8"); Path(".env.example").write_text(p.env_example(), "utf-8")'

clean: ## remove the virtual environment and caches
	@rm -rf $(VENV) .venv-3.* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
