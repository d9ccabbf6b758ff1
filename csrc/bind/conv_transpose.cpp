#include "ganscale/conv_transpose.h"

#include "bind.h"

namespace ganscale::bind {
namespace {

// (stride of H, of W, padding of H, of W), and whether float32 may be rounded to tf32
ConvShape conv_shape_from(const py::tuple& tuple) {
  if (tuple.size() != 4 && tuple.size() != 5) {
    throw py::value_error("a convolution's shape must be (stride, stride, padding, padding) and perhaps (tf32)");
  }
  return ConvShape{{tuple[0].cast<int>(), tuple[1].cast<int>()},
                   {tuple[2].cast<int>(), tuple[3].cast<int>()},
                   tuple.size() == 5 && tuple[4].cast<bool>()};
}

}  // namespace

void bind_conv_transpose(py::module_& module) {
  module.attr("FEW_CHANNELS") = kFewChannels;
  module.def("conv_transpose_few_workspace_bytes",
             [](const py::tuple& x, const py::tuple& weight, const py::tuple& y, const py::tuple& shape,
                const py::tuple& exec) {
               return conv_transpose_few_workspace_bytes(view_from(x), view_from(weight), view_from(y),
                                                         conv_shape_from(shape), exec_from(exec));
             });
  module.def("conv_transpose_few", [](const py::tuple& x, const py::tuple& weight, const py::object& bias,
                                      const py::tuple& y, const py::tuple& shape, int activation, double slope,
                                      const py::tuple& exec) {
    const View a = view_from(x), w = view_from(weight), b = optional_view(bias), o = view_from(y);
    checked([&, s = conv_shape_from(shape), e = exec_from(exec)] {
      return conv_transpose_few(a, w, b, o, s, activation, slope, e);
    });
  });
  module.def("conv_transpose_workspace_bytes",
             [](const py::tuple& x, const py::tuple& weight, const py::tuple& y, const py::tuple& shape,
                const py::tuple& exec) {
               return conv_transpose_workspace_bytes(view_from(x), view_from(weight), view_from(y),
                                                     conv_shape_from(shape), exec_from(exec));
             });
  module.def("conv_transpose", [](const py::tuple& x, const py::tuple& weight, const py::object& scale,
                                  const py::object& shift, const py::tuple& y, const py::object& totals,
                                  const py::tuple& shape, int activation, double slope, bool tf32,
                                  const py::tuple& exec) {
    const View a = view_from(x), w = view_from(weight), c = optional_view(scale), h = optional_view(shift);
    const View o = view_from(y), t = optional_view(totals);
    checked([&, s = conv_shape_from(shape), e = exec_from(exec)] {
      return conv_transpose(a, w, c, h, o, t, s, activation, slope, tf32, e);
    });
  });
}

}  // namespace ganscale::bind
