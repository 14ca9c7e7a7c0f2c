# Two commands do everything on a machine with Python 3.11 or newer, pip and make:
#   make demo    the main job, on a real model
#   make test    the tests
# Both create .venv on their first run.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo-output

.PHONY: demo test test-architectures check directions benchmarks clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.ready
	$(BIN)/wsmerge demo --out $(OUT)

test: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 -q

# Every architecture of transformers against mergekit, half an hour; writes docs/architectures.md. ARCH=Llama limits it,
# RESUME=1 goes on where the last run ended. Then directions over every architecture as PEFT loads them.
test-architectures: $(VENV)/.ready
	ARCH='$(ARCH)' RESUME='$(RESUME)' $(BIN)/pytest -q tests/architectures/sweep.py tests/architectures/artifacts.py

# Train the bundled directions again, from the pairs beside them.
directions: $(VENV)/.ready
	$(BIN)/python experiments/smollm2/build_directions.py

clean:
	rm -rf $(OUT) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
