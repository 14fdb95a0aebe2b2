// A hint to the system about memory that is about to be touched for the first time.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace hash3d::cpu {

// Wants huge pages for a large buffer: a fault for every 2 MiB and not for every 4 KiB, and fewer misses of the TLB.
// Only a hint: nothing happens where the system has none to give, or the memory is in use already.
inline void prefer_huge_pages(void* begin, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = std::uintptr_t{1} << 21;
  constexpr int64_t kWorthwhile = 4 * static_cast<int64_t>(kPage);
  if (bytes < kWorthwhile) return;
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(begin);
  const std::uintptr_t first = (address + kPage - 1) / kPage * kPage, last = (address + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), static_cast<std::size_t>(last - first), MADV_HUGEPAGE);
#else
  static_cast<void>(begin), static_cast<void>(bytes);
#endif
}

}  // namespace hash3d::cpu
