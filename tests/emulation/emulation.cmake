# The kernels, unchanged, as C++ against the emulation's headers.
target_sources(engine PRIVATE ${kernels} tests/emulation/emulation.cpp)
set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS
  "-x;c++;-fno-strict-aliasing;-Wno-unknown-pragmas;-Wno-maybe-uninitialized")
target_include_directories(engine BEFORE PRIVATE tests/emulation/include csrc)
target_compile_definitions(engine PRIVATE "HASH3D_CUDA_ARCHITECTURES=\"emulated\"")
if(HASH3D_SANITIZE MATCHES "thread")
  set_source_files_properties(tests/emulation/emulation.cpp PROPERTIES COMPILE_OPTIONS
    "-fno-sanitize=thread;-DEMULATION_TSAN")
endif()
