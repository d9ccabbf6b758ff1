#include "ganscale/norm_act.h"

#include "bind.h"

namespace ganscale::bind {

void bind_norm_act(py::module_& module) {
  module.attr("STAT_ROWS") = kStatRows;
  module.def("norm_workspace_bytes", &norm_workspace_bytes, py::arg("outer"), py::arg("channels"), py::arg("inner"));
  module.def("channel_moments", [](const py::tuple& x, const py::tuple& totals, const py::tuple& exec) {
    const View a = view_from(x), t = view_from(totals);
    checked([&, e = exec_from(exec)] { return channel_moments(a, t, e); });
  });
  module.def("batch_norm_act", [](const py::tuple& x, const py::tuple& totals, const py::object& gamma,
                                  const py::object& beta, double eps, const py::tuple& stats, const py::tuple& y,
                                  int activation, double slope, const py::tuple& exec) {
    const View a = view_from(x), t = view_from(totals), g = optional_view(gamma), b = optional_view(beta);
    const View s = view_from(stats), o = view_from(y);
    checked([&, e = exec_from(exec)] { return batch_norm_act(a, t, g, b, eps, s, o, activation, slope, e); });
  });
  module.def("affine_act", [](const py::tuple& x, const py::object& mean, const py::tuple& scale, const py::tuple& shift,
                              const py::tuple& y, int activation, double slope, const py::tuple& exec) {
    const View a = view_from(x), m = optional_view(mean), s = view_from(scale), h = view_from(shift), o = view_from(y);
    checked([&, e = exec_from(exec)] { return affine_act(a, m, s, h, o, activation, slope, e); });
  });
  module.def("affine_act_backward_sums", [](const py::tuple& gy, const py::tuple& x, const py::object& mean,
                                            const py::tuple& scale, const py::tuple& shift, const py::object& rstd,
                                            const py::tuple& totals, const py::tuple& gradients, int activation,
                                            double slope, const py::tuple& exec) {
    const View g = view_from(gy), a = view_from(x), m = optional_view(mean), s = view_from(scale);
    const View h = view_from(shift), r = optional_view(rstd), t = view_from(totals), o = view_from(gradients);
    checked([&, e = exec_from(exec)] {
      return affine_act_backward_sums(g, a, m, s, h, r, t, o, activation, slope, e);
    });
  });
  module.def("affine_act_backward", [](const py::tuple& gy, const py::tuple& x, const py::object& mean,
                                       const py::tuple& scale, const py::tuple& shift, const py::object& rstd,
                                       const py::object& totals, const py::tuple& gx, int activation, double slope,
                                       const py::tuple& exec) {
    const View g = view_from(gy), a = view_from(x), m = optional_view(mean), s = view_from(scale);
    const View h = view_from(shift), r = optional_view(rstd), t = optional_view(totals), o = view_from(gx);
    checked([&, e = exec_from(exec)] {
      return affine_act_backward(g, a, m, s, h, r, t, o, activation, slope, e);
    });
  });
}

}  // namespace ganscale::bind
