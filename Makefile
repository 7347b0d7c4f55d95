# make smoke   train a tiny model with REINFORCE++ in the real verl, then in TRL, on the CPU, and see its reward go up
# make smoke-gpu   four estimators in verl and TRL with a larger model on a GPU; without one, a rehearsal on the CPU
# make test    pass all tests
# make test-fast   those that start no Ray and build nothing
# make lint    ruff and mypy
# make upstream   which hooks fit which releases of verl, which releases of TRL our trainers; and what to do where not
# make upstream-tests   verl's own tests, without our package and with it (minutes); TRL's too: TRL_TESTS=trl/tests
# make trl-releases   which releases of TRL the trainers run on
# make against-upstream   our `compat` against the numbers of verl's and TRL's releases (minutes)
# make bench   our kernels against verl's functions and a memory copy (minutes)
# make bench-gpu   the same on a CUDA device, and what makes the host wait; without one, a self-test on the CPU
# make gpu-pack    the wheels that a GPU machine without a registry lacks, in .gpu-pack (examples/gpu)
# make fuzz    100,000 random batches through every estimator and loss (a quarter of an hour); CASES=1000 for fewer
# make audit   known vulnerabilities of what we depend on directly (needs a network)
# make load    10,000 estimates in one process: memory, threads (minutes)
# make setup   make .venv and install everything into it
# make clean   remove everything that these made
#
# Each sets up .venv first if need be. Another Python: make smoke PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Nothing of ours needs more threads than one, and both cores are busy as it is.
export OMP_NUM_THREADS ?= 1

.PHONY: smoke smoke-gpu test test-fast lint upstream upstream-tests trl-releases against-upstream
.PHONY: bench bench-gpu gpu-pack fuzz load audit clean setup

smoke: $(VENV)/.installed
	$(BIN)/python examples/digit_sort/smoke.py

smoke-gpu: $(VENV)/.installed
	$(BIN)/python examples/digit_sort/gpu_smoke.py $(SMOKE)

# What trains with Ray comes last, two runs side by side: each waits for its processes half of the time.
test: test-fast
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal

test-fast: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not slow" -n 2

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

upstream: $(VENV)/.installed
	$(BIN)/python .ci/upstream.py $(or $(RELEASES),0.8.0 0.9.0 0.9.1) --trl $(or $(TRL_RELEASES),1.12.0 1.13.0 1.14.0 1.16.0)

upstream-tests: $(VENV)/.installed
	$(BIN)/python .ci/upstream_tests.py $(if $(TRL_TESTS),--trl-tests $(TRL_TESTS)) $(PARTS)

trl-releases: $(VENV)/.installed
	$(BIN)/python .ci/trl_releases.py $(or $(RELEASES),1.12.0 1.13.0 1.14.0 1.16.0)

against-upstream: $(VENV)/.installed
	$(BIN)/python .ci/against_upstream.py $(RELEASES)

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/kernels.py $(BENCH)

bench-gpu: $(VENV)/.installed
	$(BIN)/python benchmarks/kernels_gpu.py $(BENCH)

gpu-pack: $(VENV)/.installed
	$(BIN)/python examples/gpu/pack.py

fuzz: $(VENV)/.installed
	RL_ESTIMATORS_FUZZ=$(or $(CASES),100000) $(BIN)/python -m pytest -q tests/fuzz

load: $(VENV)/.installed
	$(BIN)/python benchmarks/load.py

audit: $(VENV)/.installed
	$(BIN)/python .ci/audit.py $(AUDIT)

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt .ci/make_venv.py
	@command -v $(PYTHON) >/dev/null || { echo "setup: no '$(PYTHON)' here; install Python 3.10 to 3.12, or: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) .ci/make_venv.py $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) .smoke .smoke-gpu .gpu-pack .gpu-run build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
