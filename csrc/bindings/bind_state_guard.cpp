// Whether the Python objects that a call relies on are still what they were: many look-ups in
// dictionaries, which cost several times as much when Python makes them.
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "bindings/bind.h"

namespace py = pybind11;

namespace cmf {
namespace {

// An object that must have its type and its attribute dictionary still. It is known by its address
// alone, so that a guard keeps no object alive; its dictionary is held, and can't be another's.
struct Owner {
  const void* address;
  PyObject* type;
  PyObject* attributes;

  bool holds(PyObject* object) const {
    if (object != address || reinterpret_cast<PyObject*>(Py_TYPE(object)) != type) return false;
    PyObject* own = PyObject_GenericGetDict(object, nullptr);
    if (!own) {
      PyErr_Clear();
      return false;
    }
    Py_DECREF(own);  // the object holds it too
    return own == attributes;
  }
};

// What must hold of dictionary[key].
struct Record {
  enum Kind { kIs, kEmpty, kAbsent, kKeys };

  PyObject* dictionary;
  PyObject* key;
  Kind kind;
  PyObject* value;  // of kIs; of kKeys all the keys, in order

  bool holds() const {
    if (kind == kKeys) return has_keys();
    PyObject* found = PyDict_GetItemWithError(dictionary, key);
    if (!found && PyErr_Occurred()) {
      PyErr_Clear();
      return false;
    }
    if (kind == kIs) return found == value;
    if (kind == kEmpty) return found && PyDict_Check(found) && PyDict_Size(found) == 0;
    return !found;
  }

 private:
  bool has_keys() const {
    if (PyDict_Size(dictionary) != PyTuple_GET_SIZE(value)) return false;
    Py_ssize_t at = 0;
    PyObject* found = nullptr;
    for (Py_ssize_t i = 0; PyDict_Next(dictionary, &at, &found, nullptr); ++i) {
      PyObject* known = PyTuple_GET_ITEM(value, i);
      if (found == known) continue;
      if (!PyUnicode_Check(found) || PyUnicode_Compare(found, known) != 0) return false;
    }
    return true;
  }
};

class StateGuard {
 public:
  StateGuard(const py::tuple& owners, const py::tuple& records)
      : kept_(py::make_tuple(owners, records)) {
    for (py::handle row : owners) {
      const auto fields = py::cast<py::tuple>(row);
      const auto address = py::cast<uintptr_t>(fields[0]);
      const py::object type = fields[1], attributes = fields[2];
      if (!PyType_Check(type.ptr()) || !PyDict_Check(attributes.ptr())) {
        throw py::type_error("an owner must be (address, type, dict)");
      }
      owners_.push_back({reinterpret_cast<const void*>(address), type.ptr(), attributes.ptr()});
    }
    for (py::handle row : records) {
      const auto fields = py::cast<py::tuple>(row);
      const py::object dictionary = fields[0], key = fields[1], value = fields[3];
      if (!PyDict_Check(dictionary.ptr()) || !PyUnicode_Check(key.ptr())) {
        throw py::type_error("a record must be (dict, str, kind, value)");
      }
      const Record::Kind what = kind(py::cast<std::string>(fields[2]));
      if (what == Record::kKeys) check_keys(value);
      records_.push_back({dictionary.ptr(), key.ptr(), what, value.ptr()});
    }
  }

  bool holds(const py::tuple& objects) const {
    if (objects.size() != owners_.size()) return false;
    for (size_t i = 0; i < owners_.size(); ++i) {
      if (!owners_[i].holds(PyTuple_GET_ITEM(objects.ptr(), static_cast<Py_ssize_t>(i)))) {
        return false;
      }
    }
    for (const Record& record : records_) {
      if (!record.holds()) return false;
    }
    return true;
  }

  // What it was made of.
  py::tuple owners() const { return kept_.empty() ? py::tuple() : py::tuple(kept_[0]); }
  py::tuple records() const { return kept_.empty() ? py::tuple() : py::tuple(kept_[1]); }

  int visit(visitproc visit, void* arg) const {
    Py_VISIT(kept_.ptr());
    return 0;
  }

  void clear() {
    owners_.clear();
    records_.clear();
    kept_ = py::tuple();
  }

 private:
  static Record::Kind kind(const std::string& name) {
    if (name == "is") return Record::kIs;
    if (name == "empty") return Record::kEmpty;
    if (name == "absent") return Record::kAbsent;
    if (name == "keys") return Record::kKeys;
    throw py::value_error("kind must be 'is', 'empty', 'absent' or 'keys', got '" + name + "'");
  }

  static void check_keys(const py::object& value) {
    bool right = PyTuple_Check(value.ptr());
    for (Py_ssize_t i = 0; right && i < PyTuple_GET_SIZE(value.ptr()); ++i) {
      right = PyUnicode_Check(PyTuple_GET_ITEM(value.ptr(), i));
    }
    if (!right) throw py::type_error("the value of 'keys' must be a tuple of str");
  }

  py::tuple kept_;  // what the pointers below borrow from
  std::vector<Owner> owners_;
  std::vector<Record> records_;
};

StateGuard* instance(PyObject* self) {
  if (!py::detail::is_holder_constructed(self)) return nullptr;
  return &py::cast<StateGuard&>(py::handle(self));
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const StateGuard* guard = instance(self);
  return guard ? guard->visit(visit, arg) : 0;
}

int clear(PyObject* self) {
  if (StateGuard* guard = instance(self)) guard->clear();
  return 0;
}

// The garbage collector must see through a guard: a module that it looks at may hold its caller.
void collect(PyHeapTypeObject* heap_type) {
  PyTypeObject* type = &heap_type->ht_type;
  type->tp_flags |= Py_TPFLAGS_HAVE_GC;
  type->tp_traverse = traverse;
  type->tp_clear = clear;
}

}  // namespace

void bind_state_guard(py::module_& module) {
  py::class_<StateGuard>(module, "StateGuard", py::custom_type_setup(collect))
      .def(py::init<const py::tuple&, const py::tuple&>(), py::arg("owners"), py::arg("records"))
      .def_property_readonly("owners", &StateGuard::owners)
      .def_property_readonly("records", &StateGuard::records)
      .def("holds", &StateGuard::holds, py::arg("objects"));
}

}  // namespace cmf
