# The kernels, unchanged, as C++ against the emulation's headers. Apart from the engine's other files, which thereby are
# compiled as they are without them: a folder in which both have been built in turn holds those once.
add_library(emulated OBJECT ${kernels} tests/emulation/emulation.cpp)
set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS
  "-x;c++;-fno-strict-aliasing;-Wno-unknown-pragmas;-Wno-maybe-uninitialized")
target_include_directories(emulated PRIVATE tests/emulation/include csrc csrc/include)
target_compile_definitions(emulated PRIVATE "HASH3D_CUDA_ARCHITECTURES=\"emulated\"")
target_sources(engine PRIVATE $<TARGET_OBJECTS:emulated>)
if(HASH3D_SANITIZE MATCHES "thread")
  set_source_files_properties(tests/emulation/emulation.cpp PROPERTIES COMPILE_OPTIONS
    "-fno-sanitize=thread;-DEMULATION_TSAN")
endif()
