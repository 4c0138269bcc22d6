# Build options and the flags that every floor shares.
include(CheckCXXCompilerFlag)

option(AGOQ_TESTS "Build the test binaries" ON)
option(AGOQ_BENCH "Build the benchmarks" OFF)
option(AGOQ_FUZZ "Build the libFuzzer targets (needs clang)" OFF)
option(AGOQ_NATIVE "Use every instruction of this machine's CPU (-march=native)" ON)
option(AGOQ_WERROR "Treat warnings as errors" ON)
set(AGOQ_SANITIZE "" CACHE STRING "Sanitizers, e.g. address,undefined")

get_property(multi_config GLOBAL PROPERTY GENERATOR_IS_MULTI_CONFIG)
if(NOT CMAKE_BUILD_TYPE AND NOT multi_config)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)  # so that the library can be part of a shared object

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()

# -ffp-contract=off: codes are defined bit for bit (docs/formats.md), so a*b+c must not silently become an fma.
add_library(agoq_flags INTERFACE)
target_include_directories(agoq_flags INTERFACE ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/include)
function(agoq_cxx_flags)
  foreach(flag ${ARGN})
    target_compile_options(agoq_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${flag}>)
  endforeach()
endfunction()
function(agoq_cuda_flags)
  foreach(flag ${ARGN})
    target_compile_options(agoq_flags INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:${flag}>)
  endforeach()
endfunction()

# -fno-semantic-interposition: position-independent code is inlined as any other.
agoq_cxx_flags(-Wall -Wextra -ffp-contract=off -fno-math-errno -fno-trapping-math -fno-semantic-interposition)
# std::bit_cast and std::array are constexpr, not __device__. fmt 9 checks formats at compile time, but forgets constexpr under nvcc.
agoq_cuda_flags(-DFMT_USE_CONSTEXPR=1 --fmad=false --expt-relaxed-constexpr --extended-lambda -Xcompiler=-Wall,-Wextra)
if(AGOQ_WERROR)
  agoq_cxx_flags(-Werror)
  agoq_cuda_flags(-Werror=all-warnings -Xcompiler=-Werror)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC 12 sees overlapping copies in std::string's operator+ that are not there (GCC bug 105329).
  agoq_cxx_flags(-Wno-restrict)
endif()
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  # `omp simd` is permission, not a promise: clang warns of each loop that it does not vectorise.
  agoq_cxx_flags(-Wno-pass-failed)
endif()

if(AGOQ_NATIVE)
  check_cxx_compiler_flag(-march=native AGOQ_HAS_MARCH_NATIVE)
  check_cxx_compiler_flag(-mprefer-vector-width=512 AGOQ_HAS_PREFER_VECTOR_WIDTH)
  if(AGOQ_HAS_MARCH_NATIVE)
    # "native" is one word on every machine: a hash of what it means here keeps objects made for another CPU, in a
    # ccache that moved or is shared, from being taken for ours.
    execute_process(COMMAND ${CMAKE_CXX_COMPILER} -march=native -E -dM -x c++ /dev/null OUTPUT_VARIABLE native_macros)
    string(MD5 native_hash "${native_macros}")
    agoq_cxx_flags(-march=native)
    target_compile_definitions(agoq_flags INTERFACE AGOQ_NATIVE_CPU="${native_hash}")
  endif()
  if(AGOQ_HAS_PREFER_VECTOR_WIDTH)
    agoq_cxx_flags(-mprefer-vector-width=512)
  endif()
endif()

# By the hash that the linker takes of a program its processes know that they run the same one (base/build_id.h).
target_link_options(agoq_flags INTERFACE -Wl,--build-id=sha1)

if(AGOQ_SANITIZE)
  set(CMAKE_CXX_FLAGS_RELEASE "-O1")  # asserts stay on
  target_compile_options(agoq_flags INTERFACE -fsanitize=${AGOQ_SANITIZE} -fno-sanitize-recover=all
                                              -fno-omit-frame-pointer -g1)
  target_link_options(agoq_flags INTERFACE -fsanitize=${AGOQ_SANITIZE})
endif()
