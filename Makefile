# make demo | test | test-oldest | slow | native | sanitize | bench | docs | lint | clean
# A fresh machine needs python3, a C++17 compiler and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Newer than all that the native module and the requirements come from: the install is up to date.
STAMP := $(VENV)/.installed
# The oldest versions that pyproject.toml allows, of what it names.
OLDEST := build/oldest
EMULATOR := $(CURDIR)/build/cuda-emulator.so
C_FILES := $(shell find csrc tests -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test test-oldest slow native sanitize bench docs lint format clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/robustft demo $(ARGS)

# Then the Triton kernels alone, in Triton's interpreter, and the CUDA kernels alone, in the emulator.
test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)
	$(if $(ARGS),,TRITON_INTERPRET=1 $(BIN)/python -m pytest -W ignore tests/ops tests/kernels)
	$(if $(ARGS),,$(BIN)/python tests/cuda/emulator/build.py $(EMULATOR))
	$(if $(ARGS),,ROBUSTFT_CUDA_EMULATOR=$(EMULATOR) $(BIN)/python -m pytest tests/ops tests/cuda)

# The suite with the lower bounds of pyproject.toml: torch's alone is some GB to fetch.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest $(ARGS)

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

# The native code on its own: g++, clang++, aarch64 under qemu; and under sanitizers.
native: $(STAMP)
	$(BIN)/python -m pytest -m slow tests/native $(ARGS)

sanitize: $(STAMP)
	$(BIN)/python -m pytest -m sanitize tests/native tests/cuda $(ARGS)

# Every op beside its peers, then plots and tables: about 50 minutes. ARGS='dive --quick' for less.
bench: $(STAMP)
	$(BIN)/python -m benchmarks $(or $(ARGS),all)
	$(if $(ARGS),,$(BIN)/python -m benchmarks report)

# The site, in build/docs; a warning is an error.
docs: $(STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

clean:
	rm -rf build dist $(VENV)

$(OLDEST)/.installed: pyproject.toml CMakeLists.txt $(shell find csrc -type f)
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/uv pip install --python $(OLDEST)/bin/python --resolution lowest-direct \
	    --editable '.[dev]'
	touch $@

$(STAMP): pyproject.toml CMakeLists.txt $(shell find csrc -type f)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "make: $(PYTHON) must be Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "make: $(PYTHON) cannot create virtual environments (no ensurepip):" \
	           "install your system's python3-venv package, or make PYTHON=..."; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || \
	    command -v clang++ >/dev/null || \
	    { echo "make: no C++ compiler found: install g++ or clang, or set CXX"; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@
