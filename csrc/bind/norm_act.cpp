#include "ganscale/norm_act.h"

#include <cmath>
#include <vector>

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

// On the CPU the totals (whose count is set here) and the workspace are the calling thread's own: two tensors made for
// each call take longer than small kernels do. Elsewhere both are given. Returns where the totals are.
uintptr_t make_room(const Call& c, uintptr_t totals, Exec& exec) {
  if (exec.device >= 0) return totals;
  thread_local std::vector<double> room;
  const int64_t sums = (2 * c.channels + 8) / 8 * 8, bytes = norm_workspace_bytes(c.outer, c.channels, c.inner);
  const auto size = static_cast<size_t>(sums + (bytes + 7) / 8);
  if (room.size() < size) room.resize(size);
  room[static_cast<size_t>(2 * c.channels)] = static_cast<double>(c.outer * c.inner);
  exec.workspace = room.data() + sums;
  exec.workspace_bytes = bytes;
  return reinterpret_cast<uintptr_t>(room.data());
}

// Running statistics in the memory of the CPU; pointers that are 0 are left alone.
struct Running {
  uintptr_t mean, variance;
  double momentum;
};

// Moves them towards those of the batch, as torch's lerp_ does.
template <class A>
void move_running(const Call& c, const Running& running, uintptr_t stats) {
  const auto weight = static_cast<A>(running.momentum);
  const auto move = [&](uintptr_t to, int row) {
    auto* held = reinterpret_cast<A*>(to);
    auto* found = reinterpret_cast<const A*>(stats) + row * c.channels;
    for (int64_t i = 0; i < c.channels; ++i) {
      const A way = found[i] - held[i];
      held[i] = std::abs(weight) < A(0.5) ? held[i] + weight * way : found[i] - way * (1 - weight);
    }
  };
  if (running.mean) move(running.mean, kMean);
  if (running.variance) move(running.variance, kUnbiased);
}

void norm_forward(const py::tuple& shape, int dtype, uintptr_t x, uintptr_t totals, uintptr_t gamma, uintptr_t beta,
                  uintptr_t stats, uintptr_t y, double eps, int activation, double slope, uintptr_t running_mean,
                  uintptr_t running_var, double momentum, const py::tuple& exec) {
  const Call c = call_from(shape, dtype);
  checked([&, e = exec_from(exec)]() mutable {
    const uintptr_t sums = make_room(c, totals, e);
    Status status = channel_moments(c.image(x), c.rows(sums, kF64, 2), e);
    if (status.code != kOk) return status;
    status = batch_norm_act(c.image(x), c.totals(sums), c.row(gamma, c.number(), c.channels),
                            c.row(beta, c.number(), c.channels), eps, c.rows(stats, c.number(), kStatRows), c.image(y),
                            activation, slope, e);
    if (status.code != kOk) return status;
    const Running running = {running_mean, running_var, momentum};
    if (dtype == kF64) move_running<double>(c, running, stats);
    else move_running<float>(c, running, stats);
    return status;
  });
}

void norm_backward(const py::tuple& shape, int dtype, uintptr_t gy, uintptr_t x, uintptr_t stats, uintptr_t totals,
                   uintptr_t gradients, uintptr_t gx, int activation, double slope, const py::tuple& exec) {
  const Call c = call_from(shape, dtype);
  checked([&, e = exec_from(exec)]() mutable {
    const uintptr_t sums = make_room(c, totals, e);
    const View mean = c.stat(stats, kMean), scale = c.stat(stats, kScale), shift = c.stat(stats, kShift);
    const View rstd = c.stat(stats, kRstd);
    const Status status =
        affine_act_backward_sums(c.image(gy), c.image(x), mean, scale, shift, rstd, c.rows(sums, kF64, 2),
                                 c.rows(gradients, c.number(), 2), activation, slope, e);
    if (status.code != kOk) return status;
    return affine_act_backward(c.image(gy), c.image(x), mean, scale, shift, rstd, c.totals(sums), c.image(gx),
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
