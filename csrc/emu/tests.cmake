# The CUDA kernels compiled for the CPU by the emulator, and one test a family. See simt.h.
#
# ganscale_emulated is the core once more, with the emulated kernels where those of the GPU would be. A .cu file is
# compiled through a .cpp that includes it, since nvcc may own the file itself in the same build.
set(emulated_sources csrc/emu/simt.cpp)
foreach(kernel ${cuda_sources})
  get_filename_component(name "${kernel}" NAME_WE)
  set(wrapper "${CMAKE_CURRENT_BINARY_DIR}/emulated/${name}.cpp")
  file(CONFIGURE OUTPUT "${wrapper}" CONTENT "#include \"${CMAKE_CURRENT_SOURCE_DIR}/${kernel}\"\n" @ONLY)
  list(APPEND emulated_sources "${wrapper}")
endforeach()

get_target_property(core_cpu ganscale_core SOURCES)
list(FILTER core_cpu EXCLUDE REGEX "[.]cu$")
add_library(ganscale_emulated STATIC ${core_cpu} ${emulated_sources})
target_include_directories(ganscale_emulated PUBLIC csrc/include csrc/emu PRIVATE csrc/cpu csrc/cuda)
target_compile_definitions(ganscale_emulated PRIVATE GS_VERSION="${GANSCALE_VERSION}" GS_CUDA=1 GS_EMULATED=1
                           GS_CUDA_ARCHS="emulated" $<$<BOOL:${x86_isas}>:GS_X86=1>)
target_compile_options(ganscale_emulated PRIVATE -Wno-unknown-pragmas)
if(OpenMP_CXX_FOUND)
  target_link_libraries(ganscale_emulated PRIVATE OpenMP::OpenMP_CXX)
else()
  target_link_libraries(ganscale_emulated PRIVATE Threads::Threads)
endif()

file(GLOB emulated_tests CONFIGURE_DEPENDS csrc/tests/emulated_*.cpp)
foreach(source ${emulated_tests})
  get_filename_component(name "${source}" NAME_WE)
  add_executable(test_${name} ${source})
  target_link_libraries(test_${name} PRIVATE ganscale_emulated)
  target_include_directories(test_${name} PRIVATE csrc/cpu csrc/cuda)
  target_compile_definitions(test_${name} PRIVATE GS_EMULATED=1)
  add_test(NAME ${name} COMMAND test_${name})
endforeach()
