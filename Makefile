# make demo   train four real tasks in one network, with dense controls  -> runs/demo/
# make test   lint, then all tests, those of the C++ code included
# make lint   ruff and mypy
# make bench  operators against the dense library, in one run
#
# Each uses the active Python when it has torch (it needs the packages of requirements-dev.txt then), and otherwise
# makes .venv with them. A C++ compiler is wanted; without one the package runs on torch's own operators.

ACTIVE := $(shell python3 -c "import torch, sys; print(sys.executable)" 2>/dev/null)
PYTHON := $(or $(ACTIVE),$(CURDIR)/.venv/bin/python)
# One stamp per interpreter, so that changing environments installs again.
READY := .build/installed$(subst /,-,$(PYTHON))
SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -name '*.h' -o -name '*.cpp')

.PHONY: demo test lint bench clean

demo: $(READY)
	$(PYTHON) -m rsn2 train examples/demo.toml --out runs/demo

test: lint
	$(PYTHON) -m pytest

lint: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench: $(READY)
	$(PYTHON) benchmarks/operators.py

$(READY): $(SOURCES) $(if $(ACTIVE),,.venv/installed)
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable .
	mkdir -p $(@D) && touch $@

.venv/installed: requirements-dev.txt
	rm -rf .venv
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --requirement requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .build build *.egg-info rsn2_kernels/lib
