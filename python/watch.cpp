#include "watch.h"

namespace py = pybind11;

namespace hash3d_python {
namespace {

constexpr std::uintptr_t kLine = 64;  // bytes
constexpr int kTableLines = 3;        // of a small dictionary's items

void fetch_line(std::uintptr_t address) {
#if defined(__GNUC__)
  __builtin_prefetch(reinterpret_cast<const void*>(address));
#else
  (void)address;
#endif
}

void fetch_objects(const py::list& objects) {
  const auto size = static_cast<py::ssize_t>(objects.size());
  for (py::ssize_t place = 0; place < size; ++place) {
    fetch_line(reinterpret_cast<std::uintptr_t>(PyList_GET_ITEM(objects.ptr(), place)));
  }
}

PyObject* dict_at(const py::list& dicts, py::ssize_t place) {
  PyObject* found = PyList_GET_ITEM(dicts.ptr(), place);
  if (!PyDict_Check(found)) throw py::type_error("dicts: expected a list of dictionaries");
  return found;
}

void fetch_tables(const py::list& dicts) {
  fetch_objects(dicts);
  const auto size = static_cast<py::ssize_t>(dicts.size());
  for (py::ssize_t place = 0; place < size; ++place) {
    const auto* dict = reinterpret_cast<PyDictObject*>(dict_at(dicts, place));
    const auto table = reinterpret_cast<std::uintptr_t>(dict->ma_keys);
    for (int line = 0; line < kTableLines; ++line) fetch_line(table + line * kLine);
  }
}

}  // namespace

py::list items_of(const py::list& dicts) {
  py::list items;
  const auto size = static_cast<py::ssize_t>(dicts.size());
  for (py::ssize_t place = 0; place < size; ++place) {
    PyObject *dict = dict_at(dicts, place), *key = nullptr, *value = nullptr;
    for (py::ssize_t position = 0; PyDict_Next(dict, &position, &key, &value);) {
      items.append(py::handle(key));
      items.append(py::handle(value));
    }
    items.append(py::handle(dict));
  }
  return items;
}

bool are_items_of(const py::list& dicts, const py::list& items) {
  fetch_tables(dicts);
  const auto size = static_cast<py::ssize_t>(dicts.size()), count = static_cast<py::ssize_t>(items.size());
  py::ssize_t next = 0;
  const auto is_next = [&](PyObject* object) { return next < count && PyList_GET_ITEM(items.ptr(), next++) == object; };
  for (py::ssize_t place = 0; place < size; ++place) {
    PyObject *dict = dict_at(dicts, place), *key = nullptr, *value = nullptr;
    for (py::ssize_t position = 0; PyDict_Next(dict, &position, &key, &value);) {
      if (!is_next(key) || !is_next(value)) return false;
    }
    if (!is_next(dict)) return false;
  }
  return next == count;
}

py::list sizes_of(const py::list& dicts) {
  py::list sizes;
  const auto size = static_cast<py::ssize_t>(dicts.size());
  for (py::ssize_t place = 0; place < size; ++place) sizes.append(PyDict_Size(dict_at(dicts, place)));
  return sizes;
}

bool are_sizes_of(const py::list& dicts, const py::list& sizes) {
  fetch_objects(dicts);
  const auto size = static_cast<py::ssize_t>(dicts.size());
  if (static_cast<py::ssize_t>(sizes.size()) != size) return false;
  for (py::ssize_t place = 0; place < size; ++place) {
    if (PyDict_Size(dict_at(dicts, place)) != PyLong_AsSsize_t(PyList_GET_ITEM(sizes.ptr(), place))) return false;
  }
  return true;
}

int64_t sum_attributes(const py::list& objects, const py::str& name, std::uintptr_t addresses, int64_t count) {
  fetch_objects(objects);
  for (int64_t place = 0; place < count; ++place) fetch_line(reinterpret_cast<const std::uintptr_t*>(addresses)[place]);
  int64_t sum = 0;
  for (py::ssize_t place = 0; place < static_cast<py::ssize_t>(objects.size()); ++place) {
    PyObject* value = PyObject_GetAttr(PyList_GET_ITEM(objects.ptr(), place), name.ptr());
    if (value == nullptr) throw py::error_already_set();
    sum += PyLong_AsLongLong(value);
    Py_DECREF(value);
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  }
  return sum;
}

}  // namespace hash3d_python
