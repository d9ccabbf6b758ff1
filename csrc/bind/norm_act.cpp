#include "ganscale/norm_act.h"

#include "bind.h"

namespace ganscale::bind {

void bind_norm_act(py::module_& module) {
  module.def("norm_workspace_bytes", &norm_workspace_bytes, py::arg("outer"), py::arg("channels"), py::arg("inner"));
  module.def("channel_moments", [](const py::tuple& x, const py::tuple& totals, const py::tuple& exec) {
    const View a = view_from(x), t = view_from(totals);
    checked([&, e = exec_from(exec)] { return channel_moments(a, t, e); });
  });
  module.def("affine_act", [](const py::tuple& x, const py::tuple& scale, const py::tuple& shift, const py::tuple& y,
                              int activation, double slope, const py::tuple& exec) {
    const View a = view_from(x), s = view_from(scale), h = view_from(shift), o = view_from(y);
    checked([&, e = exec_from(exec)] { return affine_act(a, s, h, o, activation, slope, e); });
  });
  module.def("affine_act_backward_sums", [](const py::tuple& gy, const py::tuple& x, const py::tuple& scale,
                                            const py::tuple& shift, const py::tuple& mean, const py::tuple& totals,
                                            int activation, double slope, const py::tuple& exec) {
    const View g = view_from(gy), a = view_from(x), s = view_from(scale), h = view_from(shift), m = view_from(mean);
    const View t = view_from(totals);
    checked([&, e = exec_from(exec)] { return affine_act_backward_sums(g, a, s, h, m, t, activation, slope, e); });
  });
  module.def("affine_act_backward", [](const py::tuple& gy, const py::tuple& x, const py::tuple& scale,
                                       const py::tuple& shift, const py::tuple& mean, const py::tuple& a,
                                       const py::tuple& b, const py::tuple& k, const py::tuple& gx, int activation,
                                       double slope, const py::tuple& exec) {
    const View g = view_from(gy), v = view_from(x), s = view_from(scale), h = view_from(shift), m = view_from(mean);
    const View ca = view_from(a), cb = view_from(b), ck = view_from(k), o = view_from(gx);
    checked([&, e = exec_from(exec)] {
      return affine_act_backward(g, v, s, h, m, ca, cb, ck, o, activation, slope, e);
    });
  });
}

}  // namespace ganscale::bind
