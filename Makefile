# Two commands are all that a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench gpu-check clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## create .venv with everything; again only when pyproject.toml or constraints.txt changed

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: setup  ## fine-tune, quantize, prove, time and bundle a model on real digits, into demo/
	$(BIN)/edgetl init demo --example digits
	$(BIN)/edgetl build demo/edgetl.toml

test: setup  ## the whole suite, in two processes of one thread each: more threads wait for each other
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: setup  ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## speed and memory claims, measured on this machine
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/scenarios.py
	$(BIN)/python benchmarks/calibration_memory.py
	$(BIN)/python benchmarks/sketches.py

gpu-check: setup  ## what needs an NVIDIA GPU; a part that fails does not keep the others from running
	@failed=; \
	part() { echo "$$@"; "$$@" || failed="$$failed; $$*"; }; \
	part $(BIN)/edgetl doctor; \
	part $(BIN)/python benchmarks/gpu.py; \
	part $(BIN)/python benchmarks/training.py; \
	part $(BIN)/python -m pytest -m gpu; \
	test -z "$$failed" || { echo "failed$$failed" >&2; exit 1; }

clean:  ## remove .venv and what builds left
	rm -rf $(VENV) demo dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
