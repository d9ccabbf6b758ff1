# make demo | test | again | lint | bench | gpu-check | clean. Each begins by setting up .venv where that is not done yet.
# Needed beforehand: Python >= 3.11 with venv, a C++17 compiler, make. With nvcc on PATH the CUDA kernels are built too.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
GANSCALE := $(VENV)/bin/ganscale
STAMP := $(VENV)/.set-up
FAILED := .pytest_cache/v/cache/lastfailed
BY_FILE := --dist loadfile --no-loadscope-reorder
CORE := setup.py pyproject.toml constraints.txt CMakeLists.txt $(shell find csrc -type f)

.PHONY: setup demo test again lint bench gpu-check clean

setup: $(STAMP)

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: PYTHON must be 3.11 or newer, got $$($(PYTHON) --version 2>&1); run make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and pinned: a looser requirement would be met by the newest build, gigabytes of CUDA with it.
$(STAMP): $(CORE) | $(PY)
	@echo "installing torch and the packages of the tests, then building the core: minutes, the most of them without a word"
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,demo]'
	@# Peers of the tests whose own requirements (torchvision, an old requests, an OpenCV that needs a display) do not fit.
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torchattacks quantus
	@touch $@

# Replaces runs/demo.
demo: setup
	rm -rf runs/demo
	$(GANSCALE) launch --preset dcgan-fashion --name demo --kimg 128
	$(GANSCALE) evaluate runs/demo --untrained
	$(GANSCALE) explain runs/demo --method integrated-gradients
	$(GANSCALE) explain runs/demo --method kernel-shap
	$(GANSCALE) explain runs/demo --method directions
	$(GANSCALE) report runs/demo
	@echo "TensorBoard: $(GANSCALE) dashboard runs/demo"

# Tests that measure time have the machine to themselves. Those that start clusters mostly wait: two at a time, whatever
# the number of cores. All others share the cores.
test: setup
	@rm -f $(FAILED); status=0; \
	try() { $(PY) -m pytest "$$@" || { code=$$?; [ $$code -le $$status ] || status=$$code; }; }; \
	try -q -n auto $(BY_FILE) --durations=20 -m "not (ray or alone)"; \
	try -q -n 2 $(BY_FILE) --durations=20 -m "ray and not alone"; \
	try -m alone; \
	[ $$status -le 1 ] || rm -f $(FAILED); \
	exit $$status

# What failed in `make test`, once more and one by one: a few tests of processes, ports and signals can fail on a machine
# that is busy with others. More than three failures are no accident, and a run that broke off is none either: they stay.
again: setup
	@test -f $(FAILED) || { echo "error: the last make test has no failures that could be run again" >&2; exit 2; }
	@$(PY) -c 'import json; failed = json.load(open("$(FAILED)")); \
	  print("failed beside others, run again alone:", *failed, sep="\n  "); raise SystemExit(len(failed) > 3)'
	$(PY) -m pytest -v --last-failed --last-failed-no-failures none

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

bench: setup
	$(GANSCALE) bench ops

# On a machine with a GPU; uses that machine's own Python (what it has to hold: benchmarks/gpu_check.sh). Installs nothing.
gpu-check:
	bash benchmarks/gpu_check.sh

clean:
	rm -rf build dist *.egg-info ganscale/_C.*.so
	rm -f $(STAMP)
