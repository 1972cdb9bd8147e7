# On a machine with a GPU; included by the Makefile. GPU_PYTHON may name an environment whose PyTorch
# has CUDA and which this package is installed in.
GPU_PYTHON ?= $(PYTHON)
GPU_ARGS ?=
SANITIZER := $(shell command -v compute-sanitizer 2>/dev/null)
SANITIZED := tests/test_cuda_epilogue.py tests/test_cuda_gan_loss.py

.PHONY: gpu gpu-test gpu-sanitize
gpu: gpu-test gpu-sanitize  ## On a GPU: the tests there, compute-sanitizer, then the measurements (benchmarks/gpu.py).
	$(GPU_PYTHON) -m benchmarks.gpu $(GPU_ARGS)

gpu-test: $(if $(filter $(GPU_PYTHON),$(PYTHON)),$(VENV)/installed.stamp)
	$(GPU_PYTHON) -c 'import crossmedia_fast as cmf; row = cmf.backends()[1]; exit(row.reason or 0)'
	$(GPU_PYTHON) -m pytest -m gpu $(ARGS)

# Out-of-bounds and misaligned accesses, then races in shared memory. Where the tool is missing or
# may not attach, that is said and the measurements go on.
gpu-sanitize: gpu-test
ifeq ($(SANITIZER),)
	@echo "compute-sanitizer: not found"
else
	@$(SANITIZER) --tool memcheck true > /dev/null 2>&1 || { echo "compute-sanitizer does not run here"; exit 0; }; \
	for tool in memcheck racecheck; do \
	  $(SANITIZER) --tool $$tool --error-exitcode 1 $(GPU_PYTHON) -m pytest -q -m gpu \
	    -k 'relu or hinge or bits' $(SANITIZED) || exit 1; done
endif
