# The CUDA kernels of libdinoreg.
if(NOT CMAKE_CUDA_COMPILER)
  unset(CMAKE_CUDA_COMPILER CACHE)  # looked for again where a build folder is used again
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  find_program(nvcc nvcc NO_CACHE)
  set(problem "no nvcc was found")
  if(nvcc)
    set(problem "${nvcc} compiled nothing, perhaps because of the host compiler")
  endif()
  message(FATAL_ERROR "DINOREG_CUDA=ON, but ${problem}; set CUDACXX, and CUDAHOSTCXX where nvcc does "
    "not support the host compiler")
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 20)
find_package(CUDAToolkit REQUIRED)

set(architectures ${DINOREG_CUDA_ARCHITECTURES})
if(architectures STREQUAL "AUTO")
  file(GLOB gpus /proc/driver/nvidia/gpus/*)
  set(architectures ALL)
  if(gpus)
    set(architectures native)
  endif()
endif()
if(architectures STREQUAL "ALL")
  set(architectures 75-real 80-real 86-real 89-real)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
    list(APPEND architectures 90)
  else()
    list(APPEND architectures 90-real 100-real 120)
  endif()
endif()

add_library(dinoreg_cuda OBJECT ${kernels}/cuda/backend.cu)
target_include_directories(dinoreg_cuda PRIVATE ${includes} ${kernels}/cuda)
target_compile_definitions(dinoreg_cuda PRIVATE DR_ISA=cuda)
# Two architectures at a time: one file holds every kernel, and would be built on one core.
target_compile_options(dinoreg_cuda PRIVATE -O3 --threads=2 -Xcompiler=-Wall,-Wextra)
set_target_properties(dinoreg_cuda PROPERTIES
  CUDA_VISIBILITY_PRESET hidden
  POSITION_INDEPENDENT_CODE ON)
# CMake wants them for every target once the language is there.
set_target_properties(dinoreg dinoreg_cuda PROPERTIES CUDA_ARCHITECTURES "${architectures}")
target_sources(dinoreg PRIVATE $<TARGET_OBJECTS:dinoreg_cuda>)
target_compile_definitions(dinoreg PRIVATE DR_HAVE_CUDA)
# The static runtime finds the driver itself: the library loads on machines without one.
target_link_libraries(dinoreg PRIVATE CUDA::cudart_static)
