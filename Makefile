# Targets to run, test and check Greenroom; README.md shows the plain commands for each.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
KERNELS := server/kernels/native
# One line of progress, and the rest in a log: pip and the compilers of the native kernels say hundreds of lines.
INSTALL = $(PYTHON) .ci/install.py $(VENV)/install.log $(BIN)/pip install $(INSTALL_OPTIONS) --verbose --editable '.$(EXTRA)'
SHELL := bash

.PHONY: run test nightly check ruff types layers bench fuzz soak clients cluster card lock clean

# One more than cores: tests also wait, for files and for processes that they start.
WORKERS ?= $(shell expr $$(nproc) + 1)
SECONDS ?= 300
SEED ?= 0
MINUTES ?= 60
CLIENTS_DIR ?= $(VENV)/clients

run: $(VENV)/.installed
	$(BIN)/greenroom serve $(MODEL)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not nightly" --numprocesses $(WORKERS) --dist loadfile

# The cases and trials that CI leaves out, and the kernels under sanitizers (tests/nightly.py).
nightly: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m nightly --numprocesses $(WORKERS) --dist loadfile

# With --jobs they run together.
check: ruff types layers

ruff: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

layers: $(VENV)/.installed-dev
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.policies
	$(BIN)/python -m benchmarks.store

# Random timed traces, the parsers, configs of every family and GGUF architecture with other numbers, then hostile
# descriptions for the native kernels, each for SECONDS; SEED=0 is a random one. A finding of the first three is kept for `make test`. Last, the tests of random values (hypothesis) with 2000 of each
# unless one names a number, and as much random use of the store; and twenty times as many requests by the description of the HTTP API.
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS) --seed $(SEED)
	$(BIN)/python -m tests.fuzz.parsers --seconds $(SECONDS) --seed $(SEED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.configs --seconds $(SECONDS) --seed $(SEED)
	$(BIN)/python -m tests.fuzz.kernels --seconds $(SECONDS) --seed $(SEED)
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile long --timeout 0 --deselect tests/server/live/test_described_answers.py
	SCHEMATHESIS_EXAMPLES=200 $(BIN)/python -m pytest tests/server/live/test_described_answers.py --timeout 0

soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --seed $(SEED)

# Installs each client of tests/clients from PyPI or npm into an environment of its own; CLIENT=name runs one.
clients: $(VENV)/.installed-dev
	CLIENTS_DIR=$(CLIENTS_DIR) $(BIN)/python -m pytest tests/clients -m clients -rA -k "$(CLIENT)"

# Replicas on Ray Serve that come and go under load: some minutes.
cluster: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/cluster -m cluster -n0 -rA

# Every family and format on a CUDA device that the CPU emulates, a JSON line each: with experts paged, of which CI
# takes some, and then families with all experts on the device, by Triton's interpreter: a quarter of an hour.
card: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.card.paging
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.card.families

# The versions that CI installs, for every architecture: the newest that pyproject.toml admits. `pip install --constraint
# .ci/constraints.txt --editable '.[dev]'` installs the same.
lock: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet uv
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile pyproject.toml --extra dev --universal \
		--python-version 3.11 --no-annotate --upgrade --quiet --output-file .ci/constraints.txt

# A new installation compiles the changed sources of the native kernels. What needs .installed-dev adds its extra here: a
# fresh environment is installed once.
$(VENV)/.installed: pyproject.toml setup.py $(wildcard $(KERNELS)/src/*.* $(KERNELS)/src/*/* $(foreach kind,cpp h inc,server/model/blocks/*/*.$(kind)))
	$(PYTHON) -m venv $(VENV)
	@$(INSTALL)
	touch $@ $(if $(EXTRA),$(VENV)/.installed-dev)

$(VENV)/.installed-dev: EXTRA := [dev]
$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.installed
	@[[ $@ -nt $< ]] || $(INSTALL)
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	rm -f $(KERNELS)/*.so $(KERNELS)/no_kernels.txt
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
