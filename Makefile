# `make quickstart` and `make test` set up what they need in .venv; nothing has to be installed first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup quickstart quickstart-reid quickstart-multimodal test test-slow slow-readme slow-deployment \
	slow-training slow-others test-fuzz gpu lint type imports notebook docs check dist dense clean
.DEFAULT_GOAL := setup

setup: $(READY)

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# TORCH_INDEX: where to take torch from instead, such as the index of its CPU builds
$(READY): setup.py
	@echo "Setting up .venv (once; two to six minutes, up to 7 GB) ..."
	@[ -n "$(TORCH_INDEX)" ] || [ "$$(uname)" != Linux ] || command -v nvidia-smi >/dev/null || echo "There is no \
	NVIDIA GPU here, and most of that is CUDA. For a third of it stop and run: make setup TORCH_INDEX=ADDRESS, with the \
	--index-url that pytorch.org (Get started, Compute Platform: CPU) shows."
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) torch torchvision)
	$(PIP) --editable ".[dev]"
	@touch $(READY)

# what a release is made of, in dist/
dist: $(READY)
	$(BIN)/python -m build

quickstart: $(READY)
	$(BIN)/python tools/train.py --config configs/quickstart/classify.yaml --resume
	$(BIN)/python tools/evaluate.py checkpoints/quickstart
	$(BIN)/python tools/export.py checkpoints/quickstart

quickstart-reid: $(READY)
	$(BIN)/python tools/train.py --config configs/quickstart/reid.yaml --resume
	$(BIN)/python tools/evaluate.py checkpoints/quickstart-reid --keep-ratios 1.0,0.7,0.6,0.5
	$(BIN)/python tools/export.py checkpoints/quickstart-reid

quickstart-multimodal: $(READY)
	$(BIN)/python tools/train.py --config configs/quickstart/multimodal.yaml --resume
	$(BIN)/python tools/evaluate.py checkpoints/quickstart-multimodal --keep-ratios 1.0,0.7,0.5
	$(BIN)/python tools/export.py checkpoints/quickstart-multimodal

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

# with --jobs 2 two at a time, the longest first
test-slow: slow-others slow-deployment slow-readme slow-training

SLOW := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu"

slow-readme: $(READY)
	$(SLOW) tests/test_readme.py

slow-deployment: $(READY)
	$(SLOW) tests/deployment

slow-training: $(READY)
	$(SLOW) tests/training tests/studies

slow-others: $(READY)
	$(SLOW) --ignore tests/test_readme.py --ignore tests/deployment --ignore tests/training --ignore tests/studies

# two minutes at most; FUZZ_SEED=NUMBER draws others
test-fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m fuzz tests/fuzz

# on a machine with a GPU: its tests, and what pruning gives there, into benchmarks/
gpu: $(READY)
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python tools/benchmark.py --suite benchmarks/gpu.yaml --minutes 8

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports --no-logo

# with its outputs
notebook: $(READY)
	rm -rf results/first-steps
	OMP_NUM_THREADS=1 $(BIN)/jupyter execute --inplace notebooks/first_steps.ipynb

# the site, in build/site; a broken link or an unknown name in a docstring is an error
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

check: lint type imports docs

dense: $(READY)
	$(BIN)/python tools/train.py --config configs/quickstart/dense.yaml --resume

clean:
	rm -rf .venv build dist *.egg-info checkpoints/quickstart checkpoints/quickstart-reid checkpoints/quickstart-multimodal* checkpoints/dense checkpoints/reid-dense
