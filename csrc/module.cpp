// The Python module of the library. Importing it loads the library, and loading registers the
// kernels.
#include <Python.h>

extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C",
                                      "Compiled kernels of mask2former_ops.", -1, nullptr};
  return PyModule_Create(&module);
}
