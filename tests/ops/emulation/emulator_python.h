#pragma once

#include <pybind11/pybind11.h>

#include "emulator.h"

// Adds the emulator's controls to a module.
inline void bind_emulator(pybind11::module_& module) {
  module.def("seed", &emulator::seed, pybind11::arg("seed"));
  module.def("statistics", [] {
    const emulator::Statistics& s = emulator::statistics;
    pybind11::dict counts;
    counts["launches"] = s.launches;
    counts["blocks"] = s.blocks;
    counts["threads"] = s.threads;
    counts["shuffles"] = s.shuffles;
    return counts;
  });
  module.def("reset_statistics", [] { emulator::statistics = {}; });
}
