# `make demo` and `make test` set everything up by themselves, in .venv.
VENV := .venv
PY := $(VENV)/bin/python
# Two processes, one thread pool each: no more threads than cores.
PYTEST := TF_CPP_MIN_LOG_LEVEL=3 $(PY) -m pytest

.PHONY: demo test test-slow web-setup lint format clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	TF_CPP_MIN_LOG_LEVEL=3 $(VENV)/bin/kdopt demo --output out

test: lint
	$(PYTEST) -n 2 -m "not slow"

test-slow: $(VENV)/.dev
	$(PYTEST) -m slow

# Chromium, Node, LiteRT.js, Netron and Model Explorer's reader, for the slow tests in tests/tflite_export/web.
web-setup: | $(PY)
	sh tests/tflite_export/web/setup.sh "$(abspath $(PY))"

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) .venv-viewers tests/tflite_export/web/node_modules build dist out *.egg-info

# The first Python of 3.11 - 3.13 on the machine; PYTHON=... chooses another one.
$(PY):
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	  for name in python3.13 python3.12 python3.11 python3 python; do \
	    if "$$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	    then python="$$name"; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then echo "kdopt needs Python 3.11, 3.12 or 3.13 with venv; none was found (PYTHON=/path/to/python names one)." >&2; exit 1; fi; \
	echo "Setting up $(VENV) with $$python"; "$$python" -m venv $(VENV)

$(VENV)/.dev $(VENV)/.demo: $(VENV)/.%: setup.cfg pyproject.toml | $(PY)
	@echo "Installing kdopt[$*] (about a minute the first time)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@
