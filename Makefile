# make demo | check | test | fuzz | coverage | bench | gpu-check | screenshots | oracle | docs | dist: each sets up what it needs first.

PYTHON ?= python3
VENV := .venv
ORACLE_VENV := .oracle-venv
ifeq ($(OS),Windows_NT)
BIN := Scripts
else
BIN := bin
endif
RUN := $(VENV)/$(BIN)
ORACLE := $(ORACLE_VENV)/$(BIN)
# Processes that run tests: as many as there are processors, or one more, or twice as many, where tests wait for other processes.
WORKERS ?= 2
FAST_WORKERS ?= $(shell expr $(WORKERS) + 1)
SLOW_WORKERS ?= $(shell expr $(WORKERS) \* 2)

# Without the machine's own instructions the wheel also runs on an older or newer one; NATIVE=1 uses them. Tests want the RPC backend.
NATIVE ?= 0
ifeq ($(NATIVE),1)
export CMAKE_ARGS ?= -DGGML_NATIVE=ON -DGGML_RPC=ON
PROCESSOR := -$(shell (grep -m1 '^flags' /proc/cpuinfo || sysctl machdep.cpu hw.optional || $(PYTHON) -m platform) 2>/dev/null | cksum | cut -d' ' -f1)
else
export CMAKE_ARGS ?= -DGGML_NATIVE=OFF -DGGML_RPC=ON
PROCESSOR :=
endif
LLAMA := $(shell grep '^llama_cpp_python==' requirements/dev.txt)
# The wheel is kept beside pip's: pip itself takes a wheel whatever it was built with, so these have a folder for each list of options and,
# where they are for this processor, for each kind of processor: a wheel of another one's would die.
define install_llama
	@wheels="$$($(1)/python -m pip cache dir 2>/dev/null || echo $(VENV))/quantailor-$$(echo '$(CMAKE_ARGS)' | cksum | cut -d' ' -f1)$(PROCESSOR)"; \
	ls "$$wheels"/$(subst ==,-,$(LLAMA))-*.whl >/dev/null 2>&1 || \
	$(1)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-cache-dir --wheel-dir "$$wheels" $(LLAMA) && \
	$(1)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$$wheels"/$(subst ==,-,$(LLAMA))-*.whl
endef

# Without compiling all that is installed: Python compiles what is imported, once.
PIP_OPTIONS := --quiet --disable-pip-version-check --no-compile

READY := $(VENV)/.ready$(PROCESSOR)

# The tests start hundreds of processes: modules are compiled once, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo check test fuzz coverage bench gpu-check screenshots oracle oracle-setup docs dist lock clean

help:
	@echo "make demo    set up, then run the main job on the model that ships with the project"
	@echo "make check   ruff, mypy, import-linter and the fast tests"
	@echo "make test    make check and every test that needs no torch"
	@echo "make fuzz    every case of the fuzzers and a kill at every moment: hours"
	@echo "make coverage   which lines make test runs, processes that it starts included"
	@echo "make oracle  the tests against llama.cpp's own converter (installs torch and transformers)"
	@echo "make docs    the documentation as a site, with strict links, into site/"
	@echo "make dist    the wheel and the sdist, checked, into dist/"
	@echo "make bench   speed and memory, as ratios measured in one run"
	@echo "make gpu-check   build llama-cpp-python with CUDA and compare an NVIDIA GPU with the CPU (CARRIED=FOLDER without a network)"
	@echo "make screenshots   pictures of every screen into docs/images (needs chromium and chromedriver)"

setup: $(READY)

$(READY): Makefile pyproject.toml requirements/dev.txt
	@echo "== Setting up $(VENV). The first build of llama-cpp-python takes some minutes; the wheel is kept."
	$(PYTHON) -m venv $(VENV)
	$(call install_llama,$(RUN))
	$(RUN)/python -m pip install $(PIP_OPTIONS) -r requirements/dev.txt
	$(RUN)/python -m pip install $(PIP_OPTIONS) --no-deps -e .
	@rm -f $(VENV)/.ready* && touch $@

$(ORACLE_VENV)/.ready: Makefile pyproject.toml requirements/dev.txt requirements/oracle.txt
	@echo "== Setting up $(ORACLE_VENV) with torch and transformers."
	$(PYTHON) -m venv $(ORACLE_VENV)
	$(call install_llama,$(ORACLE))
	$(ORACLE)/python -m pip install $(PIP_OPTIONS) -r requirements/dev.txt
	$(ORACLE)/python -m pip install $(PIP_OPTIONS) -r requirements/oracle.txt
	$(ORACLE)/python -m pip install $(PIP_OPTIONS) --no-deps -e .
	@touch $@

demo: setup
	@echo "== The main job on demo/books-llama: a file as large as Q3_K_M's, verified on held-out text. Takes some minutes."
	$(RUN)/quantailor make demo/books-llama --like Q3_K_M -o demo/out --home demo/out/home --imatrix-chunks 100 \
		--against Q8_0,Q6_K,Q4_K_M,Q3_K_M --chunks 200
	@echo "== The verdict is in demo/out; the graph is demo/out/verdict.png."

check: setup
	@echo "== ruff"
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	@echo "== mypy --strict, import-linter, deptry (every import declared, every dependency used) and the rules of the house that can be counted;"
	@echo "   beside them, loops and tests are compiled once for all processes that run them"
	@$(RUN)/python -m tools.compile_ahead & ahead=$$!; \
	$(RUN)/mypy && $(RUN)/lint-imports && $(RUN)/deptry src && \
	$(RUN)/deptry tests tools benchmarks examples --ignore DEP001,DEP002,DEP004 && $(RUN)/python -m tools.house && wait $$ahead
	@echo "== fast tests; numpy's own threads, which spin while they wait, are on in the slow ones alone"
	OPENBLAS_NUM_THREADS=1 $(RUN)/pytest -q -n $(FAST_WORKERS) -m "not slow and not oracle" --durations=10

test: check
	@echo "== slow tests: kills, fuzzing, every type against llama.cpp; numpy's threads sleep once they have nothing to do"
	OPENBLAS_THREAD_TIMEOUT=4 $(RUN)/pytest -q -n $(SLOW_WORKERS) -m "slow and not oracle" --durations=40

fuzz: setup
	@echo "== every case of the fuzzers, and a kill at every moment"
	QUANTAILOR_FUZZ_LONG=1 $(RUN)/pytest -q -n $(WORKERS) -m "not oracle" --timeout=7200 -k "fuzz or kill or hypothesis or honest"

coverage: setup
	rm -f .coverage .coverage.*
	$(RUN)/pytest -q -n $(WORKERS) -m "not oracle" --cov --cov-report=term:skip-covered

oracle-setup: $(ORACLE_VENV)/.ready

oracle: oracle-setup
	@echo "== against llama.cpp's own converter"
	$(ORACLE)/pytest -q -n $(WORKERS) --dist=loadfile -m oracle

docs: $(VENV)/.docs-ready
	@echo "== the documentation, into site/"
	NO_MKDOCS_2_WARNING=1 $(RUN)/python -m mkdocs build --strict --quiet

$(VENV)/.docs-ready: $(READY) requirements/docs.txt
	$(RUN)/python -m pip install $(PIP_OPTIONS) -r requirements/docs.txt
	@touch $@

dist: setup
	@echo "== sdist and wheel, into dist/"
	rm -rf dist
	$(RUN)/python -m build
	$(RUN)/python -m tools.check_dist

bench: setup
	$(RUN)/python -m benchmarks

gpu-check:
	$(PYTHON) -m tools.gpu_check check $(if $(CARRIED),--carried $(CARRIED)) $(GPU_OPTIONS)

screenshots: setup
	$(RUN)/python -m tools.screenshots

lock: setup
	$(RUN)/python -m pip install --quiet --upgrade -e ".[dev]"
	@echo "# Locked versions for development and CI: make lock writes this file." > requirements/dev.txt
	$(RUN)/python -m pip freeze --exclude-editable | sed '/^uvloop==/s/$$/ ; sys_platform != "win32"/' >> requirements/dev.txt

clean:
	rm -rf $(VENV) $(ORACLE_VENV) demo/out benchmarks/out site dist .gpu-check
