// Looks at many Python objects at once, for code that asks before every forward whether a model is still the same. They
// lie all over the memory, and a forward has thrown them out of the processor's caches: what takes the time is waiting
// for one line after another, so all lines are asked for before the first is read.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace hash3d_python {

// The keys and values of every dictionary in turn, each followed by the dictionary itself.
// Throws TypeError when one is none.
pybind11::list items_of(const pybind11::list& dicts);

// Whether `items_of(dicts)` would be the very same objects as `items`. No object is asked whether it is equal.
bool are_items_of(const pybind11::list& dicts, const pybind11::list& items);

// How many items every dictionary has.
pybind11::list sizes_of(const pybind11::list& dicts);

// Whether `sizes_of(dicts)` would be `sizes`.
bool are_sizes_of(const pybind11::list& dicts, const pybind11::list& sizes);

// The sum of an integer attribute of all objects. `addresses` points to `count` places that reading it will lead to,
// as far as they are known; none is read here, so one that is no longer valid does no harm.
int64_t sum_attributes(const pybind11::list& objects, const pybind11::str& name, std::uintptr_t addresses,
                       int64_t count);

}  // namespace hash3d_python
