# Two commands do all the set-up: `make demo` and `make test`. Each makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq
# A file's tests stay in one process: they share exported files and servers, which would be made once for each process.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -rs

.PHONY: demo test test-realdata test-targets lint format types wheel clean

demo: $(STAMP)
	$(BIN)/edgekit demo

test: $(STAMP)
	$(PYTEST) --durations 25 -m "not realdata and not targets"

# Needs the real models and data sets: EDGEKIT_REALDATA, or ../shared/data.
test-realdata: $(STAMP)
	$(PYTEST) -m realdata

# Needs apt-get and the network the first time: what is fetched stays in EDGEKIT_CACHE, or ~/.cache/edgekit.
test-targets: $(STAMP)
	$(PYTEST) -m targets

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The packages lie in several folders, so types are checked as they are installed: from the wheel, outside of the root.
types wheel: $(STAMP)
	bash .ci/wheel $@

$(STAMP): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "edgekit needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version`. Try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing edgekit and its libraries into $(VENV): about 2 GB, a few minutes."
# torch first and alone: whatever admits another version of it draws in gigabytes for GPUs.
	$(PIP) --constraint .ci/constraints.txt torch
	$(PIP) --constraint .ci/constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info edgekit-demo
