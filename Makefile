# Every target makes .venv itself on first use; a second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
endif
STAMP := $(VENV)/.installed

# glibc otherwise gives large buffers back to the system after every operation, which costs up to half of the time.
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 17179869184

BENCHMARKS := demo quality samples learn views bench bench-training pareto
.PHONY: $(BENCHMARKS) learn-sefi test lint pictures examples locales toybox
$(BENCHMARKS): $(STAMP)
	$(BIN)/python -m benchmarks.$(subst -,_,$@)

# two processes of one thread each: small tensors gain nothing from threads
test: export OMP_NUM_THREADS = 1
test: $(STAMP)
	$(BIN)/python -m harness.browser
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 25

learn-sefi: $(STAMP)
	$(BIN)/python -m benchmarks.sefi

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m harness.node_types

# The pictures of the example workflows and of the help pages; needs a Chromium.
pictures: $(STAMP)
	$(BIN)/python -m harness.thumbnails

examples: $(STAMP)
	$(BIN)/python -m harness.examples
	$(BIN)/python -m harness.blueprint

# The English texts of the front end's translator, from the nodes.
locales: $(STAMP)
	$(BIN)/python -m harness.locales

# Trains everything of Toybox anew.
toybox: $(STAMP)
	$(BIN)/python -m toybox.making.render
	$(BIN)/python -m toybox.making.train
	$(BIN)/python -m toybox.making.train_judge

# torch first and exact: an open range would pull CUDA. The packaged host declares more than it needs.
$(STAMP): requirements-host.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps comfyui==0.0.1 torchvision==0.16.2
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-host.txt -r requirements-dev.txt
	$(PYTHON) -c "open('$(STAMP)', 'w').close()"
