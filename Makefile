# Needs Python 3.11 or newer and make; everything else is set up in .venv.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test quick bench-guard clean

# The main job on the embedded data: about a quarter of an hour on two cores, no question asked, no hub.
demo: $(VENV)/installed
	$(BIN)/kd-gym train --env KnowledgeSelect-SST2 --agent ppo --data embedded --steps 600

# Everything that has to hold: style, types, layers, and all tests, slow ones included.
test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "" -n 2 --dist worksteal --durations=10

# The fast tests alone.
quick: $(VENV)/installed
	$(BIN)/python -m pytest

# Counts of operators, bytes and the like, within fixed bounds.
bench-guard: $(VENV)/installed
	$(BIN)/python benchmarks/speed/guard.py

$(VENV)/installed: pyproject.toml constraints.txt requirements-offline.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --no-deps --require-hashes -r requirements-offline.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
