# make quickstart   environment, synthetic speech, two encoders, three tasks: a table and a report
# make test         environment, all checks and tests
# make stress       200 kills, 10,000 harmed recordings, up to 2,000 of each other file, hours of audio: a quarter of an hour
# make bench        extraction, fusion, writing, the cache and training against plain references
# make results      tables of docs/performance.md that stand below their command, made again in place
# make docs         the documentation as a site in site/; a broken link or reference is an error
# All work alone on a fresh machine with Python 3.11 or newer; PYTHON=python3.12 chooses another.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export OMP_NUM_THREADS ?= $(shell getconf _NPROCESSORS_ONLN)

.PHONY: quickstart test stress bench results docs check clean

quickstart: $(VENV)/.installed
	$(BIN)/speechfuse quickstart

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q \
	  -m "not pretrained" --durations=5

stress: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m stress --stress

bench: $(VENV)/.installed
	$(BIN)/speechfuse bench extraction --repeats 3
	$(BIN)/speechfuse bench fusion
	$(BIN)/speechfuse bench harmonifuse --repeats 9
	$(BIN)/speechfuse bench cache --repeats 7 --seconds 120 --processor
	$(BIN)/speechfuse bench epoch --repeats 3
	$(BIN)/speechfuse bench scaling --seconds 720 --repeats 1

results: $(VENV)/.installed
	$(BIN)/python -m scripts.results docs/performance.md

docs: $(VENV)/.installed
	$(BIN)/python -m scripts.site.build

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[corpus,demo,docs,export,lm,lora,probe,dev]'
	touch $@

clean:
	rm -rf $(VENV) corpora stores runs site
