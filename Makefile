# Two commands do everything: `make demo` and `make test`. Each makes the environment when it is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-portable lint proto benchmark clean

# Installed again whenever the dependencies change.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fedrec needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all]"
	touch $(STAMP)

demo: $(STAMP)  ## train, compare and recommend on the bundled data (about a minute)
	$(BIN)/fedrec demo

test: $(STAMP) lint  ## style, types, import rules, and every test
	$(BIN)/python -m pytest -n 2

# The plainest kernels that the libraries have, as on an old processor. A library that knows no such kernel ignores the
# word, and the run is still a valid one.
OTHER_KERNELS := MKL_ENABLE_INSTRUCTIONS=SSE4_2 ATEN_CPU_CAPABILITY=default OPENBLAS_CORETYPE=Sandybridge NUMBA_CPU_NAME=generic

test-portable: $(STAMP)  ## the tests that train, as if on another processor: what they assert must hold on every one
	$(OTHER_KERNELS) $(BIN)/python -m pytest -n 2 -m "numeric and not deployment"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

proto: $(STAMP)  ## write the messages of the services again
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. fedrec/wire/proto/model_service.proto fedrec/wire/proto/device_service.proto

benchmark: $(STAMP)  ## speed beside Flower's engine with one node per user, same run
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist
