# Verbs for the native part alone; included by the Makefile.
NATIVE_PYTHON ?= $(PYTHON)

.PHONY: native
native:  ## Build the native module into the source tree, for development.
	cmake -S . -B build/native -G Ninja -DCMAKE_BUILD_TYPE=Release \
	  -DPython_EXECUTABLE=$$($(NATIVE_PYTHON) -c 'import sys; print(sys.executable)') \
	  -DSKBUILD_PROJECT_VERSION=development \
	  -Dpybind11_DIR=$$($(NATIVE_PYTHON) -m pybind11 --cmakedir) > /dev/null
	cmake --build build/native
	cp --remove-destination build/native/_native*.so crossmedia_fast/  # a running process keeps the old file
	for shim in build/native/csrc/cuda/shim/_cuda_shim*.so; do \
	  test ! -e $$shim || cp --remove-destination $$shim crossmedia_fast/; done

# The native tests need neither Python nor PyTorch.
NATIVE_TESTS := cmake -S . -G Ninja -DCROSSMEDIA_FAST_PYTHON=OFF -DCROSSMEDIA_FAST_TESTS=ON

.PHONY: native-test ulp sanitize sanitize-address sanitize-thread aarch64
native-test:  ## Build and run the C++ tests of every instruction set that this CPU has.
	$(NATIVE_TESTS) -B build/native-test -DCMAKE_BUILD_TYPE=Release > /dev/null
	cmake --build build/native-test --target cmf_tests
	build/native-test/cmf_tests $(ARGS)
	@# an inline function outside an instruction set's namespace could be linked into all of them
	@for isa in avx2 avx512; do \
	  nm -C --defined-only build/native-test/CMakeFiles/cmf_$$isa.dir/csrc/cpu/*.o | grep ' [Wu] ' | \
	    grep -v "cmf::$$isa::" && { echo "shared by instruction sets: $$isa"; exit 1; }; done; true

ulp:  ## Measure the vector functions on every float32 (minutes; ARGS=97 takes every 97th).
	$(NATIVE_TESTS) -B build/native-test -DCMAKE_BUILD_TYPE=Release > /dev/null
	cmake --build build/native-test --target cmf_ulp
	build/native-test/cmf_ulp $(ARGS)

sanitize: sanitize-address sanitize-thread  ## Run the C++ tests under the sanitizers of addresses, undefined behaviour and threads.

# -O1: with a sanitizer -O3 compiles for minutes and finds nothing more
sanitize-address:
	$(NATIVE_TESTS) -B build/sanitize-address -DCMAKE_BUILD_TYPE=Release \
	  -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DCROSSMEDIA_FAST_SANITIZE=address,undefined > /dev/null
	cmake --build build/sanitize-address --target cmf_tests
	UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 build/sanitize-address/cmf_tests $(ARGS)

sanitize-thread:
	$(NATIVE_TESTS) -B build/sanitize-thread -DCMAKE_BUILD_TYPE=Release \
	  -DCMAKE_CXX_COMPILER=g++ -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DCROSSMEDIA_FAST_SANITIZE=thread > /dev/null
	cmake --build build/sanitize-thread --target cmf_tests
	TSAN_OPTIONS=halt_on_error=1 build/sanitize-thread/cmf_tests $(ARGS)

aarch64:  ## Cross-build the C++ tests for 64-bit Arm and run them under qemu.
	$(NATIVE_TESTS) -B build/aarch64 -DCMAKE_BUILD_TYPE=Release \
	  -DCMAKE_TOOLCHAIN_FILE=csrc/cmake/aarch64-linux-gnu.cmake > /dev/null
	cmake --build build/aarch64 --target cmf_tests
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/cmf_tests $(ARGS)
