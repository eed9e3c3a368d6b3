# Decides whether the CUDA backend is built, and readies the compiler. Sets FASA_HAS_CUDA, FASA_CUDA_REASON and, when it
# is built, fasa_compile_cuda(target) and fasa_link_cuda(target).
#
# AUTO asks for a toolkit whose nvcc works and for a GPU that can be seen now; it never fails the build. ON compiles
# without a GPU too. CMAKE_CUDA_ARCHITECTURES chooses the GPUs; by default those in this machine, or a list when none is.

set(FASA_HAS_CUDA OFF)

if(NOT FASA_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "FASA_CUDA=${FASA_CUDA}: expected AUTO, ON or OFF")
endif()

# The compute capabilities of the GPUs in this machine that the kernels can run on, as 90;75; empty when there are none.
function(fasa_visible_gpus result)
  set(${result} "" PARENT_SCOPE)
  find_program(FASA_NVIDIA_SMI nvidia-smi)
  mark_as_advanced(FASA_NVIDIA_SMI)
  if(NOT FASA_NVIDIA_SMI)
    return()
  endif()
  execute_process(COMMAND ${FASA_NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
                  RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_QUIET)
  if(status EQUAL 0)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${output}")
    string(REPLACE "." "" capabilities "${capabilities}")
    list(FILTER capabilities INCLUDE REGEX "^(7[5-9]|[89].|...)$")
    list(REMOVE_DUPLICATES capabilities)
    set(${result} "${capabilities}" PARENT_SCOPE)
  endif()
endfunction()

# Machine code for the wanted architectures that this nvcc knows, and for later GPUs code to translate when loaded.
function(fasa_cuda_architectures result wanted)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE known ERROR_QUIET)
  set(chosen "")
  foreach(architecture IN LISTS wanted)
    if(known MATCHES "compute_${architecture}\n")
      list(APPEND chosen ${architecture})
    endif()
  endforeach()
  if(chosen STREQUAL "")
    string(REGEX MATCHALL "[0-9]+" chosen "${known}")
    list(SORT chosen COMPARE NATURAL)
    list(GET chosen -1 chosen)
  endif()
  list(POP_BACK chosen newest)
  list(TRANSFORM chosen APPEND "-real")
  set(${result} ${chosen} ${newest} PARENT_SCOPE)
endfunction()

# Empty, or why a file of C++20 for the host and the device cannot be compiled.
function(fasa_try_nvcc result)
  set(source ${CMAKE_BINARY_DIR}/CMakeFiles/fasa_nvcc.cu)
  file(WRITE ${source} "#include <cublasLt.h>\n#include <cuda_fp16.h>\n#include <concepts>\n#include <functional>\n"
                       "__global__ void kernel(std::integral auto x, float* y) { *y = __half2float(__half(x)); }\n"
                       "template __global__ void kernel<int>(int, float*);\n")
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} -std=c++20 -ccbin ${CMAKE_CUDA_HOST_COMPILER} -c ${source} -o ${source}.o
                  RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(status EQUAL 0)
    set(${result} "" PARENT_SCOPE)
  else()
    string(REGEX REPLACE "[\"\\;]" "" output "${output}")
    string(REGEX MATCH "[^\n]*[Ee]rror[^\n]*" line "${output}")
    set(${result} "its nvcc cannot compile: ${line}" PARENT_SCOPE)
  endif()
endfunction()

# Sets FASA_CUDA_REASON, and FASA_HAS_CUDA if all is there. A macro: find_package leaves targets and variables behind.
macro(fasa_find_cuda)
  find_package(CUDAToolkit 12 QUIET)
  fasa_visible_gpus(fasa_gpus)
  if(NOT CUDAToolkit_FOUND OR NOT CUDAToolkit_NVCC_EXECUTABLE)
    set(FASA_CUDA_REASON "off: no CUDA toolkit (12 or newer) found")
  elseif(NOT TARGET CUDA::cudart_static)
    set(FASA_CUDA_REASON "off: CUDA ${CUDAToolkit_VERSION} found, but without the static runtime library")
  elseif(FASA_CUDA STREQUAL "AUTO" AND fasa_gpus STREQUAL "")
    set(FASA_CUDA_REASON "off: CUDA ${CUDAToolkit_VERSION} found, but no GPU of compute capability 7.5 or higher is visible")
  else()
    if(NOT CMAKE_CUDA_COMPILER)
      set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
    endif()
    if(NOT CMAKE_CUDA_HOST_COMPILER)
      set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
    endif()
    fasa_try_nvcc(fasa_nvcc_problem)
    if(fasa_nvcc_problem STREQUAL "")
      set(FASA_HAS_CUDA ON)
    else()
      set(FASA_CUDA_REASON "off: CUDA ${CUDAToolkit_VERSION} found, but ${fasa_nvcc_problem}")
    endif()
  endif()
endmacro()

if(FASA_CUDA STREQUAL "OFF")
  set(FASA_CUDA_REASON "off: FASA_CUDA=OFF")
  return()
endif()

fasa_find_cuda()

if(NOT FASA_HAS_CUDA)
  if(FASA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FASA_CUDA=ON, but CUDA is ${FASA_CUDA_REASON}")
  endif()
  return()
endif()

if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  if(fasa_gpus STREQUAL "")
    set(fasa_gpus 75 80 86 89 90 100 120)
  endif()
  fasa_cuda_architectures(CMAKE_CUDA_ARCHITECTURES "${fasa_gpus}")
endif()
enable_language(CUDA)
# The standard is given by hand: CMake before 3.26 does not know that nvcc has C++20. This keeps it from giving its own.
set(CMAKE_CUDA_STANDARD_DEFAULT "")
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
string(REPLACE ";" " " fasa_architectures "${CMAKE_CUDA_ARCHITECTURES}")
set(FASA_CUDA_REASON "on: CUDA ${CUDAToolkit_VERSION}, architectures ${fasa_architectures}")

# A target with .cu files. Of the warnings only those of -Wall: the code that nvcc writes raises others.
function(fasa_compile_cuda target)
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;-Xcompiler=-Wall>")
  if(FASA_WERROR)
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>")
  endif()
  target_link_libraries(${target} PRIVATE CUDA::cudart_static)
endfunction()

# A library or program with the CUDA backend in it. cuBLAS is not linked, but loaded by backend/cuda/cublas.cpp when first
# used: from the nvidia-cublas wheel beside fasa_py in site-packages, else from this toolkit. As a RUNPATH, so that
# LD_LIBRARY_PATH goes first.
function(fasa_link_cuda target)
  if(CUDAToolkit_VERSION_MAJOR GREATER_EQUAL 13)
    set(wheel nvidia/cu${CUDAToolkit_VERSION_MAJOR}/lib)
  else()
    set(wheel nvidia/cublas/lib)
  endif()
  set(rpath "$ORIGIN/../${wheel}" ${CUDAToolkit_LIBRARY_DIR})
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE CXX INSTALL_RPATH "${rpath}" BUILD_RPATH "${rpath}")
  target_link_options(${target} PRIVATE -Wl,--enable-new-dtags)
  target_link_libraries(${target} PRIVATE CUDA::cudart_static)
endfunction()
