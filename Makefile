# Two commands: `make cookbook` runs the book, `make test` tests it.
# Each sets itself up first (once, in .venv); a machine needs make, Python 3.11 or newer with venv, and the network once.
PYTHON ?= $(or $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3),python)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN := $(BIN)/groot-cookbook run
DATASET ?=
# Threads that wait sleep sooner: on a busy machine that is ten times as fast (groot_cookbook/runner.py).
export GOMP_SPINCOUNT ?= 30000

.DEFAULT_GOAL := cookbook
.PHONY: help cookbook test smoke bench lab docs workshop offline sbom clean setup
.DELETE_ON_ERROR:

help:                    ## this list
	@sed -nE "s/^([a-z]+):[^#]*## (.*)/  make \1\t\2/p" $(firstword $(MAKEFILE_LIST)) | expand -t 20

cookbook: $(READY)       ## the whole data engine, laptop profile: 11 to 18 minutes on two cores
	$(RUN) --profile laptop $(if $(DATASET),--dataset $(DATASET))

smoke: $(READY)          ## the same, as small as it goes: minutes
	$(RUN) --profile smoke

# A core to each worker of the tests, in which all it starts has one thread: two threads each would wait for one another nine times as long as they work.
test: $(READY)           ## chapters by papermill, the notebooks between them and the solutions cell by cell, then everything in tests/
	$(RUN) --profile smoke
	$(BIN)/nbdev-test nbs --n-workers 0 --file-re '^[0-9]+[a-z]_'
	$(BIN)/ruff check groot_cookbook tests benchmarks workshop docs
	$(BIN)/ruff check --isolated --select F401 --exclude nbs/05_policy.ipynb nbs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

bench: $(READY)          ## measure speed and memory on this machine into data/results/
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/gpu_policy.py
	$(BIN)/python benchmarks/gpu_dreams.py

docs: $(READY)           ## the book, its library and a gallery as a site: _docs/site/index.html
	$(BIN)/python docs/assemble.py _docs/pages
	$(BIN)/sphinx-build -q -W --keep-going -b html -c docs _docs/pages _docs/site
	@echo 'The site is _docs/site/index.html'

workshop: smoke          ## for a teacher: learners' copies of the chapters, slides, a run to work in: _workshop
	$(BIN)/python workshop/make.py

offline: $(READY)        ## the project and all wheels, for a room without network: _offline
	$(BIN)/python workshop/offline.py

sbom: $(READY)           ## everything that is installed, as a CycloneDX bill of materials: _docs/sbom.json
	mkdir -p _docs
	$(BIN)/cyclonedx-py environment --output-reproducible -o _docs/sbom.json

lab: $(READY)            ## read and edit the chapters
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs

setup: $(READY)          ## .venv, and no more

# torch first and by itself, so that whichever build of it this machine has (CPU or CUDA) is settled before anything asks for it.
$(READY): settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is %s. Name another with: make PYTHON=python3.12 ..." % sys.version.split()[0])'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)      # there, or whole again
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all]'
	@touch $@

clean:                   ## remove runs, caches, the site, packs, and workshops with what learners wrote; the environment and the checkpoints stay
	rm -rf runs build dist _docs _workshop* _offline .pytest_cache .hypothesis .ruff_cache .mypy_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
