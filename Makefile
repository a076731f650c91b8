# make demo   train four real tasks in one network, with dense controls  -> runs/demo/
# make test   lint, then all tests, those of the C++ code included
# make lint   ruff and mypy
# make bench  single calls under pytest-benchmark; `rsn2 bench` measures all with its bounds (docs/benchmarks.md)
# make gpu-check [OUT=file.json] [DATA=folder of MNIST]
#                                  on a machine with a GPU: build, its tests, compute-sanitizer, its benchmarks
#                                  -> results/gpu-check.json, in under ten minutes, without a network
#
# Each uses the active Python when it has torch (it needs the packages of requirements-dev.txt then), and otherwise
# makes .venv with them. A C++ compiler is wanted; without one the package runs on torch's own operators.

ACTIVE := $(shell python3 -c "import torch, sys; print(sys.executable)" 2>/dev/null)
PYTHON := $(or $(ACTIVE),$(CURDIR)/.venv/bin/python)
# One stamp per interpreter, so that changing environments installs again.
READY := .build/installed$(subst /,-,$(PYTHON))
SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f -not -path 'csrc/tests/*')
EMULATED := .build/emulated

OUT := results/gpu-check.json

# Tests that wait for compilers most of the time.
COMPILING := $(foreach what,build native emulator cpu_aarch64 cuda_compile triton_compile,tests/kernels/test_$(what).py)

.PHONY: demo test test-compiled test-kernels test-networks test-on-the-cpu test-interpreted test-emulated lint bench gpu-check clean

demo: $(READY)
	$(PYTHON) -m rsn2 train examples/demo.toml --out runs/demo

# The Triton kernels are interpreted and the CUDA kernels emulated in processes of their own, beside the other tests.
# Three at once on two cores: they take different times, and none is left to run alone.
test: lint
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target test-on-the-cpu test-compiled test-kernels test-networks

test-on-the-cpu: test-interpreted test-emulated

test-compiled: $(READY)
	$(PYTHON) -m pytest $(COMPILING) -p no:cacheprovider

test-kernels: $(READY)
	$(PYTHON) -m pytest tests/kernels $(addprefix --ignore=,$(COMPILING)) -p no:cacheprovider

test-networks: $(READY)
	$(PYTHON) -m pytest --ignore=tests/kernels -p no:cacheprovider

test-interpreted: $(READY)
	TRITON_INTERPRET=1 $(PYTHON) -m pytest tests/kernels -k triton -p no:cacheprovider

# Without a C++ compiler there is nothing to emulate with.
test-emulated: $(READY)
	if command -v $(or $(CXX),g++) >/dev/null && PATH="$(dir $(PYTHON)):$$PATH" command -v cmake >/dev/null; then \
	  export PATH="$(dir $(PYTHON)):$$PATH" && \
	  cmake -S . -B $(EMULATED) -DRSN2_BUILD_EMULATED=ON -DPYTHON_EXECUTABLE=$(PYTHON) \
	    -DRSN2_OUTPUT_DIR=$(CURDIR)/$(EMULATED) >/dev/null && \
	  cmake --build $(EMULATED) --target rsn2_cuda_emulated && \
	  RSN2_CUDA_EMULATED=$(EMULATED)/librsn2_cuda_emulated.so \
	    $(PYTHON) -m pytest tests/kernels -k "(cuda or bits) and not native and not compile" -p no:cacheprovider; \
	fi

lint: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench: $(READY)
	$(PYTHON) -m pytest benchmarks/test_operators.py --benchmark-columns=min,median,iqr,rounds --benchmark-max-time=0.1 \
	  --benchmark-min-rounds=7 --benchmark-group-by=group --benchmark-sort=fullname -q

# It builds by itself: nothing may be fetched, and without a GPU nothing is done.
gpu-check:
	@$(or $(ACTIVE),python3) benchmarks/gpu_check.py --out $(OUT) $(if $(DATA),--data-dir $(DATA))

$(READY): $(SOURCES) $(if $(ACTIVE),,.venv/installed)
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable .
	mkdir -p $(@D) && touch $@

.venv/installed: requirements-dev.txt requirements-triton.txt
	rm -rf .venv
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --requirement requirements-dev.txt
	.venv/bin/python -m pip install --quiet --no-deps --requirement requirements-triton.txt
	touch $@

clean:
	rm -rf .venv .build build *.egg-info rsn2_kernels/lib
