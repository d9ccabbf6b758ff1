// ganscale._C: the core as a Python module that links no torch library. This folder alone knows Python.
//
// A view is (pointer, dtype code, shape, strides in elements); an exec is (device, threads, stream, workspace pointer,
// workspace bytes). Pointers come as integers: the caller keeps the tensors alive. A status that is not ok becomes an
// exception once the GIL is held again: ValueError for an argument, ConnectionError for a lost peer, else RuntimeError.
#include <string>

#include "bind.h"

namespace ganscale::bind {

View view_from(const py::tuple& tuple) {
  if (tuple.size() != 4) throw py::value_error("a view must be (pointer, dtype, shape, strides)");
  View view{};
  view.data = reinterpret_cast<void*>(tuple[0].cast<uintptr_t>());
  view.dtype = tuple[1].cast<int>();
  const auto shape = tuple[2].cast<py::tuple>(), strides = tuple[3].cast<py::tuple>();
  if (shape.size() > kMaxDims || shape.size() != strides.size()) {
    throw py::value_error("a view must have at most 5 axes and a stride for each");
  }
  view.ndim = static_cast<int>(shape.size());
  for (int axis = 0; axis < view.ndim; ++axis) {
    view.size[axis] = shape[axis].cast<int64_t>();
    view.stride[axis] = strides[axis].cast<int64_t>();
  }
  return view;
}

View optional_view(const py::object& object) { return object.is_none() ? View{} : view_from(object.cast<py::tuple>()); }

Exec exec_from(const py::tuple& tuple) {
  if (tuple.size() != 5) throw py::value_error("an exec must be (device, threads, stream, workspace, bytes)");
  return Exec{tuple[0].cast<int>(), tuple[1].cast<int>(), reinterpret_cast<void*>(tuple[2].cast<uintptr_t>()),
              reinterpret_cast<void*>(tuple[3].cast<uintptr_t>()), tuple[4].cast<int64_t>()};
}

void raise_unless_ok(const Status& status) {
  if (status.code == kBadArgument) throw py::value_error(status.message);
  if (status.code == kPeerLost) {
    PyErr_SetString(PyExc_ConnectionError, status.message);
    throw py::error_already_set();
  }
  if (status.code != kOk) throw std::runtime_error(status.message);
}

}  // namespace ganscale::bind

namespace {

using namespace ganscale;
using namespace ganscale::bind;

py::dict build_info() {
  py::dict info;
  info["version"] = version();
  info["cuda"] = built_with_cuda();
  info["cuda_archs"] = cuda_archs();
  info["openmp"] = built_with_openmp();
  info["compiler"] = __VERSION__;
  const char* names[8];
  py::list isas;
  const int count = supported_isas(names, 8);
  for (int i = 0; i < count && i < 8; ++i) isas.append(names[i]);
  info["cpu_features"] = isas;
  info["cpu_kernels"] = active_isa();
  Status why;
  info["cuda_devices"] = cuda_device_count(&why);
  info["cuda_problem"] = why.message;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The compiled core of ganscale; use it through ganscale.ops.";
  module.def("build_info", &build_info);
  module.def("sample_workspace_bytes", &sample_workspace_bytes, py::arg("samples"), py::arg("sample_size"));
  module.def("channel_sum_workspace_bytes", &channel_sum_workspace_bytes, py::arg("outer"), py::arg("channels"),
             py::arg("inner"));
  module.def("interpolate", [](const py::tuple& real, const py::tuple& fake, const py::tuple& eps, const py::tuple& out,
                               const py::tuple& exec) {
    const View r = view_from(real), f = view_from(fake), e = view_from(eps), o = view_from(out);
    checked([&, x = exec_from(exec)] { return interpolate(r, f, e, o, x); });
  });
  module.def("sample_norm2", [](const py::tuple& g, const py::tuple& squared, const py::tuple& exec) {
    const View a = view_from(g), s = view_from(squared);
    checked([&, x = exec_from(exec)] { return sample_norm2(a, s, x); });
  });
  module.def("gp_penalty", [](const py::tuple& g, const py::tuple& penalty, const py::tuple& norm, double center,
                              bool one_sided, const py::tuple& exec) {
    const View a = view_from(g), p = view_from(penalty), n = view_from(norm);
    checked([&, x = exec_from(exec)] { return gp_penalty(a, p, n, center, one_sided, x); });
  });
  module.def("bias_act", [](const py::tuple& x, const py::object& bias, const py::tuple& y, int activation,
                            double slope, const py::tuple& exec) {
    const View a = view_from(x), b = optional_view(bias), o = view_from(y);
    checked([&, e = exec_from(exec)] { return bias_act(a, b, o, activation, slope, e); });
  });
  module.def("act_backward", [](const py::tuple& gy, const py::tuple& y, const py::tuple& gx, int activation,
                                double slope, const py::tuple& exec) {
    const View a = view_from(gy), b = view_from(y), o = view_from(gx);
    checked([&, e = exec_from(exec)] { return act_backward(a, b, o, activation, slope, e); });
  });
  module.def("channel_sum", [](const py::tuple& x, const py::tuple& sum, const py::tuple& exec) {
    const View a = view_from(x), s = view_from(sum);
    checked([&, e = exec_from(exec)] { return channel_sum(a, s, e); });
  });
  bind_mask(module);
  bind_norm_act(module);
  bind_conv_transpose(module);
  bind_patches(module);
  bind_shared_sum(module);
}
