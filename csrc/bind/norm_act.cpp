#include "ganscale/norm_act.h"

#include "bind.h"

namespace ganscale::bind {
namespace {

// What the two calls of a direction share, as plain numbers: building views in Python would cost more than small
// kernels do. Pointers that are 0 stand for views that are absent.
struct Call {
  int dtype;
  int64_t outer, channels, inner;

  int number() const { return dtype == kF64 ? kF64 : kF32; }
  View image(uintptr_t data) const {
    return View{reinterpret_cast<void*>(data), dtype, 3, {outer, channels, inner}, {channels * inner, inner, 1}};
  }
  View row(uintptr_t data, int type, int64_t size) const {
    return View{reinterpret_cast<void*>(data), type, 1, {size}, {1}};
  }
  View rows(uintptr_t data, int type, int64_t count) const {
    return View{reinterpret_cast<void*>(data), type, 2, {count, channels}, {channels, 1}};
  }
  View totals(uintptr_t data) const { return row(data, kF64, 2 * channels + 1); }
  View stat(uintptr_t stats, int index) const {
    return row(stats + static_cast<uintptr_t>(index) * channels * (dtype == kF64 ? 8 : 4), number(), channels);
  }
};

Call call_from(const py::tuple& shape, int dtype) {
  return {dtype, shape[0].cast<int64_t>(), shape[1].cast<int64_t>(), shape[2].cast<int64_t>()};
}

void norm_forward(const py::tuple& shape, int dtype, uintptr_t x, uintptr_t totals, uintptr_t gamma, uintptr_t beta,
                  uintptr_t stats, uintptr_t y, double eps, int activation, double slope, const py::tuple& exec) {
  const Call c = call_from(shape, dtype);
  checked([&, e = exec_from(exec)] {
    const Status status = channel_moments(c.image(x), c.rows(totals, kF64, 2), e);
    if (status.code != kOk) return status;
    return batch_norm_act(c.image(x), c.totals(totals), c.row(gamma, c.number(), c.channels),
                          c.row(beta, c.number(), c.channels), eps, c.rows(stats, c.number(), kStatRows), c.image(y),
                          activation, slope, e);
  });
}

void norm_backward(const py::tuple& shape, int dtype, uintptr_t gy, uintptr_t x, uintptr_t stats, uintptr_t totals,
                   uintptr_t gradients, uintptr_t gx, int activation, double slope, const py::tuple& exec) {
  const Call c = call_from(shape, dtype);
  checked([&, e = exec_from(exec)] {
    const View mean = c.stat(stats, kMean), scale = c.stat(stats, kScale), shift = c.stat(stats, kShift);
    const View rstd = c.stat(stats, kRstd);
    const Status status =
        affine_act_backward_sums(c.image(gy), c.image(x), mean, scale, shift, rstd, c.rows(totals, kF64, 2),
                                 c.rows(gradients, c.number(), 2), activation, slope, e);
    if (status.code != kOk) return status;
    return affine_act_backward(c.image(gy), c.image(x), mean, scale, shift, rstd, c.totals(totals), c.image(gx),
                               activation, slope, e);
  });
}

}  // namespace

void bind_norm_act(py::module_& module) {
  module.attr("STAT_ROWS") = kStatRows;
  module.def("norm_workspace_bytes", &norm_workspace_bytes, py::arg("outer"), py::arg("channels"), py::arg("inner"));
  module.def("norm_forward", &norm_forward);
  module.def("norm_backward", &norm_backward);
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
