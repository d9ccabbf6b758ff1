#include "ganscale/mask.h"

#include "bind.h"

namespace ganscale::bind {

void bind_mask(py::module_& module) {
  module.def("mask_bytes", &mask_bytes, py::arg("elements"));
  module.def("act_mask", [](const py::tuple& x, const py::object& bias, const py::tuple& mask, double slope,
                            const py::tuple& exec) {
    const View a = view_from(x), b = optional_view(bias), m = view_from(mask);
    checked([&, e = exec_from(exec)] { return act_mask(a, b, m, slope, e); });
  });
  module.def("mask_scale", [](const py::tuple& x, const py::tuple& mask, double slope, const py::tuple& exec) {
    const View a = view_from(x), m = view_from(mask);
    checked([&, e = exec_from(exec)] { return mask_scale(a, m, slope, e); });
  });
}

}  // namespace ganscale::bind
