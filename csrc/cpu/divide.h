// Remainders by a divisor that stays the same for many numbers.
#pragma once

#include <cstdint>

namespace hash3d::cpu {

// Multiplies by the divisor's inverse, several times as fast as the processor's 64-bit division, and exact.
class Divisor {
 public:
  // `divisor` is positive.
  explicit Divisor(int64_t divisor)
      : divisor_(static_cast<uint64_t>(divisor)), inverse_(~uint64_t{0} / divisor_), offset_(remainder_of(kSignBit)) {}

  // The remainder of a number that is not negative.
  int64_t remainder(int64_t number) const { return static_cast<int64_t>(remainder_of(static_cast<uint64_t>(number))); }

  // The floored remainder of any number: moved up by 2^63, and back by what that leaves.
  int64_t floored_remainder(int64_t number) const {
    const uint64_t moved = remainder_of(static_cast<uint64_t>(number) ^ kSignBit);
    return static_cast<int64_t>(moved >= offset_ ? moved - offset_ : moved + divisor_ - offset_);
  }

 private:
  static constexpr uint64_t kSignBit = uint64_t{1} << 63;

  // The inverse is rounded down, so the quotient is at most 2 too small.
  uint64_t remainder_of(uint64_t number) const {
    __extension__ using Wide = unsigned __int128;
    const uint64_t quotient = static_cast<uint64_t>((static_cast<Wide>(number) * inverse_) >> 64);
    uint64_t rest = number - quotient * divisor_;
    while (rest >= divisor_) rest -= divisor_;
    return rest;
  }

  uint64_t divisor_, inverse_, offset_;
};

}  // namespace hash3d::cpu
