# Decides whether the CUDA backend is built. Sets FASA_HAS_CUDA and FASA_CUDA_REASON.
#
# AUTO asks for a toolkit with cuBLAS and for a GPU that can be seen now; it never fails the build.

set(FASA_HAS_CUDA OFF)

if(NOT FASA_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "FASA_CUDA=${FASA_CUDA}: expected AUTO, ON or OFF")
endif()

if(FASA_CUDA STREQUAL "OFF")
  set(FASA_CUDA_REASON "off: FASA_CUDA=OFF")
  return()
endif()

find_package(CUDAToolkit 12 QUIET)
if(NOT CUDAToolkit_FOUND)
  set(FASA_CUDA_REASON "off: no CUDA toolkit (12 or newer) found")
elseif(NOT TARGET CUDA::cublas)
  set(FASA_CUDA_REASON "off: CUDA ${CUDAToolkit_VERSION} found, but without cuBLAS")
else()
  find_program(FASA_NVIDIA_SMI nvidia-smi)
  set(gpu_visible 1)
  if(FASA_NVIDIA_SMI)
    execute_process(COMMAND ${FASA_NVIDIA_SMI} -L RESULT_VARIABLE gpu_visible OUTPUT_QUIET ERROR_QUIET)
  endif()
  if(NOT gpu_visible EQUAL 0)
    set(FASA_CUDA_REASON "off: CUDA ${CUDAToolkit_VERSION} found, but no GPU is visible")
  else()
    set(FASA_CUDA_REASON "off: CUDA ${CUDAToolkit_VERSION} and a GPU found, but this version has the CPU backend only")
  endif()
endif()

if(FASA_CUDA STREQUAL "ON")
  message(FATAL_ERROR "FASA_CUDA=ON: this version of fasa has the CPU backend only; build with FASA_CUDA=AUTO or OFF")
endif()
