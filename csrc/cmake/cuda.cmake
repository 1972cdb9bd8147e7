# The CUDA kernels: on the device by nvcc (cmf_cuda, linked into _native), and on the emulator by the
# host's compiler (_cuda_shim, for tests). Both have the same sources.
set(CROSSMEDIA_FAST_CUDA "auto" CACHE STRING "Build the CUDA kernels: 0, 1, or auto (where nvcc is found)")
if(DEFINED ENV{CROSSMEDIA_FAST_CUDA} AND NOT "$ENV{CROSSMEDIA_FAST_CUDA}" STREQUAL "")
  set(CROSSMEDIA_FAST_CUDA "$ENV{CROSSMEDIA_FAST_CUDA}")
endif()
if(NOT CROSSMEDIA_FAST_CUDA MATCHES "^(0|1|auto)$")
  message(FATAL_ERROR "CROSSMEDIA_FAST_CUDA must be 0, 1 or auto, got '${CROSSMEDIA_FAST_CUDA}'")
endif()

# An editable installation is somebody's who runs the tests; a wheel is not.
set(cmf_shim_default ON)
if((DEFINED SKBUILD AND NOT "${SKBUILD_STATE}" STREQUAL "editable") OR NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
  set(cmf_shim_default OFF)
endif()
option(CROSSMEDIA_FAST_CUDA_SHIM "Build the CUDA kernels for the emulator, for tests" ${cmf_shim_default})

set(CMF_CUDA_SOURCES
  csrc/cuda/act_pool2d_backward.cu
  csrc/cuda/act_pool2d_forward.cu
  csrc/cuda/conv_forward.cu
  csrc/cuda/conv_host.cu
  csrc/cuda/conv_input_gradient.cu
  csrc/cuda/conv_pooled_gradient.cu
  csrc/cuda/conv_sums.cu
  csrc/cuda/conv_weight_gradient.cu
  csrc/cuda/gan_loss.cu
  csrc/cuda/launch.cu
  csrc/cuda/tiling.cu
)
set(CMF_CUDA_BINDINGS
  csrc/bindings/bind_cuda.cpp
  csrc/bindings/bind_cuda_act_pool2d.cpp
  csrc/bindings/bind_cuda_conv.cpp
  csrc/bindings/bind_cuda_gan_loss.cpp
)

# -- the device --------------------------------------------------------------------------------------
set(CMF_CUDA_REASON "built without CUDA (CROSSMEDIA_FAST_CUDA=0)")
set(CMF_CUDA_BUILT OFF)
if(NOT CROSSMEDIA_FAST_CUDA STREQUAL "0")
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND EXISTS /usr/local/cuda/bin/nvcc)
    set(ENV{CUDACXX} /usr/local/cuda/bin/nvcc)
  endif()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real)  # what the check below compiles for
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  set(cmf_missing "no nvcc that works was found")
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit)
    if(TARGET CUDA::cudart_static)
      set(CMF_CUDA_BUILT ON)
    else()
      set(cmf_missing "nvcc was found without its static runtime library")
    endif()
  endif()
  if(NOT CMF_CUDA_BUILT)
    if(CROSSMEDIA_FAST_CUDA STREQUAL "1")
      message(FATAL_ERROR "CROSSMEDIA_FAST_CUDA=1, but ${cmf_missing}: set CUDACXX to the compiler of a "
                          "CUDA toolkit, or CROSSMEDIA_FAST_CUDA=0")
    endif()
    set(CMF_CUDA_REASON "built where ${cmf_missing}")
  endif()
endif()

if(CMF_CUDA_BUILT)
  add_library(cmf_cuda OBJECT ${CMF_CUDA_SOURCES})
  target_include_directories(cmf_cuda PRIVATE csrc)
  target_compile_definitions(cmf_cuda PRIVATE CMF_ISA=cuda CMF_CUDA)
  # Intermediate code once, machine code for each of these GPUs from it: half the time to build. The
  # driver compiles the intermediate code for whatever comes after them.
  set(cmf_gpu_code compute_80,sm_80)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 11.8)
    string(APPEND cmf_gpu_code ",sm_90")
  endif()
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    string(APPEND cmf_gpu_code ",sm_100")
  endif()
  set_target_properties(cmf_cuda PROPERTIES
    CUDA_ARCHITECTURES OFF
    CUDA_STANDARD 17 CUDA_VISIBILITY_PRESET hidden POSITION_INDEPENDENT_CODE ON)
  # Never --use_fast_math: it would flush subnormals and round divisions.
  target_compile_options(cmf_cuda PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:-gencode=arch=compute_80,code=[${cmf_gpu_code}];-Xcompiler=-Wall,-Wextra;--expt-relaxed-constexpr>")
endif()

# Adds the kernels to the Python module.
function(cmf_link_cuda module)
  if(NOT CMF_CUDA_BUILT)
    target_compile_definitions(${module} PRIVATE CMF_CUDA_REASON="${CMF_CUDA_REASON}")
    return()
  endif()
  target_sources(${module} PRIVATE $<TARGET_OBJECTS:cmf_cuda> ${CMF_CUDA_BINDINGS})
  set_source_files_properties(${CMF_CUDA_BINDINGS} PROPERTIES COMPILE_DEFINITIONS "CMF_ISA=cuda;CMF_CUDA")
  target_compile_definitions(${module} PRIVATE CMF_CUDA_BUILT)
  # static: the module loads where there is neither a driver nor a toolkit
  target_link_libraries(${module} PRIVATE CUDA::cudart_static)
  set_target_properties(${module} PROPERTIES LINKER_LANGUAGE CXX)
endfunction()

# -- the emulator -------------------------------------------------------------------------------------
if(CROSSMEDIA_FAST_CUDA_SHIM AND CROSSMEDIA_FAST_PYTHON)
  add_subdirectory(csrc/cuda/shim)
endif()
