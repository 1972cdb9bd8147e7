# The native test program and the program that measures the vector functions; no Python.
find_package(Threads REQUIRED)

# Compiled once per instruction set, with the very flags that its kernels have.
set(CMF_ISA_TEST_SOURCES
  csrc/tests/isa_tests.cpp
  csrc/tests/test_activation.cpp
  csrc/tests/test_half.cpp
  csrc/tests/test_simd.cpp
  csrc/tests/test_vector_math.cpp
)
add_library(cmf_test_parts STATIC csrc/tests/check.cpp csrc/tests/ulp.cpp)
target_compile_options(cmf_test_parts PRIVATE ${CMF_COMPILE_OPTIONS})
target_link_libraries(cmf_test_parts PUBLIC cmf_kernels Threads::Threads)
foreach(isa IN ITEMS baseline avx2 avx512)
  if(TARGET cmf_${isa})
    add_library(cmf_tests_${isa} OBJECT ${CMF_ISA_TEST_SOURCES})
    get_target_property(options cmf_${isa} COMPILE_OPTIONS)
    target_compile_options(cmf_tests_${isa} PRIVATE ${options})
    target_compile_definitions(cmf_tests_${isa} PRIVATE CMF_ISA=${isa})
    target_include_directories(cmf_tests_${isa} PRIVATE csrc)
    target_sources(cmf_test_parts PRIVATE $<TARGET_OBJECTS:cmf_tests_${isa}>)
  endif()
endforeach()
# which instruction sets there are
get_target_property(definitions cmf_kernels COMPILE_DEFINITIONS)

add_executable(cmf_tests
  csrc/tests/conv_case.cpp
  csrc/tests/main.cpp
  csrc/tests/test_act_pool2d.cpp
  csrc/tests/test_few_channels.cpp
  csrc/tests/test_depthwise.cpp
  csrc/tests/test_conv_backward.cpp
  csrc/tests/test_conv_transposed.cpp
  csrc/tests/test_gan_loss.cpp
  csrc/tests/test_implicit_gemm.cpp
  csrc/tests/test_pointwise.cpp
  csrc/tests/test_winograd.cpp
)
add_executable(cmf_ulp csrc/tests/ulp_main.cpp)
foreach(program IN ITEMS cmf_tests cmf_ulp)
  target_compile_options(${program} PRIVATE ${CMF_COMPILE_OPTIONS})
  target_compile_definitions(${program} PRIVATE ${definitions})
  target_link_libraries(${program} PRIVATE cmf_test_parts)
endforeach()

if(CROSSMEDIA_FAST_SANITIZE MATCHES "thread")
  # The compilers' OpenMP runtimes are not instrumented, so ThreadSanitizer would not see their forks,
  # joins and barriers. Ours is: it stands before libgomp in the search for symbols.
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    message(FATAL_ERROR "CROSSMEDIA_FAST_SANITIZE=thread needs GCC: csrc/tests/openmp_threads.cpp has the "
                        "entry points of GCC's OpenMP alone")
  endif()
  target_sources(cmf_tests PRIVATE csrc/tests/openmp_threads.cpp)
endif()
