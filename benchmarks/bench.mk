# The benchmark verbs; included by the Makefile. BENCH_PYTHON may name another environment's Python.
BENCH_PYTHON ?= $(PYTHON)
BENCH_ARGS ?=

.PHONY: bench bench-full
bench: $(if $(filter $(BENCH_PYTHON),$(PYTHON)),$(VENV)/installed.stamp)  ## Compare with the peers, a few shapes of each suite (about 5 minutes).
	$(BENCH_PYTHON) -m benchmarks.compare --suite all --shapes quick --rounds 3 --processes 1 --out build/bench $(BENCH_ARGS)

bench-full: $(if $(filter $(BENCH_PYTHON),$(PYTHON)),$(VENV)/installed.stamp)  ## Compare on every shape; writes benchmarks/results/<machine>/.
	$(BENCH_PYTHON) -m benchmarks.compare --suite all --shapes all --rounds 3 --processes 3 $(BENCH_ARGS)
