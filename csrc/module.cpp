// The Python module of the library. Importing it loads the library, and loading registers the
// kernels.
#include <Python.h>

#include <string>

#include "cpu/isa/instruction_set.h"

namespace {

using mask2former::InstructionSet;

PyObject* instruction_sets(PyObject*, PyObject*) {
  const auto& sets = mask2former::instruction_sets();
  PyObject* names = PyTuple_New(static_cast<Py_ssize_t>(sets.size()));
  for (size_t i = 0; names && i < sets.size(); ++i) {
    PyTuple_SetItem(names, static_cast<Py_ssize_t>(i),
                    PyUnicode_FromString(mask2former::name_of(sets[i])));
  }
  return names;
}

PyObject* instruction_set(PyObject*, PyObject*) {
  return PyUnicode_FromString(mask2former::name_of(mask2former::instruction_set()));
}

PyObject* use_instruction_set(PyObject*, PyObject* name) {
  if (!PyUnicode_Check(name)) {
    return PyErr_Format(PyExc_TypeError, "the name of an instruction set must be a str");
  }
  const char* wanted = PyUnicode_AsUTF8AndSize(name, nullptr);
  if (!wanted) return nullptr;
  std::string known;
  for (const InstructionSet set : mask2former::instruction_sets()) {
    if (std::string(wanted) == mask2former::name_of(set)) {
      mask2former::use_instruction_set(set);
      Py_RETURN_NONE;
    }
    known += (known.empty() ? "" : ", ") + std::string(mask2former::name_of(set));
  }
  return PyErr_Format(PyExc_ValueError, "this machine can run the kernels for %s, but not for %s",
                      known.c_str(), wanted);
}

PyMethodDef methods[] = {
    {"instruction_sets", instruction_sets, METH_NOARGS,
     "Names of the instruction sets that this machine can run, the fastest first."},
    {"instruction_set", instruction_set, METH_NOARGS, "Name of the one that the kernels use."},
    {"use_instruction_set", use_instruction_set, METH_O, "Chooses one by its name."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

PyMODINIT_FUNC PyInit__C(void) {
  static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C",
                                      "Compiled kernels of mask2former_ops.", -1, methods};
  return PyModule_Create(&module);
}
