# `make serve` runs the service and `make test` checks everything. Both create .venv and install what they need.
PYTHON ?= python3
PORT ?= 8000
DURATION ?= 30
# Not ?=, because some shells export HOST as the name of the machine, and that would open the service to its network.
HOST = 127.0.0.1

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

# pytest-xdist: a worker a core, four at most; the tests of a file stay together, for they share servers and browsers.
WORKERS := -n logical --maxprocesses 4 --dist loadgroup
FAST := tests/models $(filter-out %_interpreted.py,$(wildcard tests/kernels/test_*.py)) tests/service/engine \
    $(patsubst %,tests/service/test_%.py,dialects generate images negotiation openai settings)

# What a search for secrets must not take for one: SHA-256 of files, and keys that are said to be examples.
HASHES := ^(docker/locks/.*|checkpoints/.*\.(json|xml)|docs/comparison\.html|docs/gpu\.jsonl|docs/evaluations\.jsonl|docs/comparison/runs\.jsonl)$$
EXAMPLES := .weights_sha256.: |"image/png": "iVBOR|api_key="none"|^TRACE, PARENT|one-key-of-16-characters-or-more|"secretKeyRef": "Secret"|a-key-that-probes-lack|secretName: "?stepwise-tls

.PHONY: help serve test test-fast test-gpu load check lint security format clean

help:
	@echo 'make serve     run the service on http://$(HOST):$(PORT) (HOST=, PORT=)'
	@echo 'make test      check, then run the tests'
	@echo 'make test-fast in a minute: the tests of engine, models, kernel references and HTTP'
	@echo 'make test-gpu  the tests that need a CUDA device, then the kernels timed on it'
	@echo 'make load      mixed requests to URL=http://127.0.0.1:8000 at RATE= a second: build/load.html'
	@echo 'make check     lint and security'
	@echo 'make lint      ruff, pyright, import-linter'
	@echo 'make security  bandit, a search for secrets, and what the images consist of (build/sbom-*.json)'
	@echo 'make format    rewrite the code the way the linter wants it'
	@echo 'make clean     remove .venv, build leftovers and caches; runs/ and data/ stay'

serve: $(VENV)/.runtime
	$(BIN)/python run.py serve --host $(HOST) --port $(PORT)

test: check
	$(BIN)/python -m pytest $(WORKERS)

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest $(WORKERS) $(FAST)

# Where there is no GPU, both say so and nothing fails.
test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m benchmarks.kernels

# A key is read from STEPWISE_KEY.
load: $(VENV)/.dev
	@test -n '$(URL)' || { echo 'Say which server: make load URL=http://127.0.0.1:8000' >&2; exit 1; }
	$(BIN)/python -m benchmarks.serving.page '$(URL)' $(if $(RATE),--rate '$(RATE)') --seconds '$(DURATION)'

check: lint security

# Severity medium and up. A list of vulnerabilities is not asked: it needs the internet, see docker/audit.sh.
security: $(VENV)/.dev
	$(BIN)/bandit -q -ll -r kernels models service training benchmarks docker run.py stepwise.py
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --exclude-files '$(HASHES)' --exclude-lines '$(EXAMPLES)'
	@mkdir -p build
	$(BIN)/cyclonedx-py requirements docker/locks/cpu.txt -o build/sbom-cpu.json
	$(BIN)/cyclonedx-py requirements docker/locks/cuda.txt -o build/sbom-cuda.json

# The variable stops pyright from asking the network for a newer release of itself.
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps, so that a second call installs nothing: they age with the files that say what to install.
$(VENV)/.runtime: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) -e '.[cpu]'
	@touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.runtime

$(VENV)/.created:
	@command -v '$(PYTHON)' >/dev/null || { \
	    echo 'There is no $(PYTHON) here: install Python 3.11 or newer, or name one with PYTHON=.' >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is $$('$(PYTHON)' -V 2>&1): Python 3.11 or newer is needed, name one with PYTHON=." >&2; \
	    exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' || { \
	    echo '$(PYTHON) cannot create virtual environments: install its venv package (python3-venv on Debian).' >&2; \
	    exit 1; }
	'$(PYTHON)' -m venv $(VENV)
	@touch $@
