# make demo      environment, model and data, then the main job
# make test      environment, then the checks and the quick tests
# make test-all  the same, and the slow tests
# make test-integrations  MLflow, W&B, lm-eval and workflow tools, each in an environment of its own
# make fetch     every model and text into .cache/
# make clean     remove the environment and the tools' caches; .cache/ and runs/ stay
#
# Each does its own set-up and may be run twice.

# The first of these that starts and is new enough; `make PYTHON=...` overrides it.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-all test-integrations check fetch clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/python eval/fetch.py minilm movies
	$(BIN)/compressor run pipelines/minilm-sentiment.yaml --out runs/minilm-sentiment

test: check
	$(BIN)/pytest -m "not slow" -n auto --dist loadscope

test-all: check
	$(BIN)/pytest -n auto --dist loadscope

test-integrations: $(INSTALLED)
	$(BIN)/python eval/integrations/check.py

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fetch: $(INSTALLED)
	$(BIN)/python eval/fetch.py all

clean:
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find compressor tests eval -name __pycache__ -type d -prune -exec rm -rf {} +

# constraints.txt names every package, so that pip has nothing to search.
$(INSTALLED): $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -c constraints.txt -e '.[torch,gguf,dev]'
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found: install one, or run make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv
