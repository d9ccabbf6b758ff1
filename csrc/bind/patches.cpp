#include "ganscale/patches.h"

#include "bind.h"

namespace ganscale::bind {
namespace {

// (kernel height, width, stride of H, of W, padding of H, of W)
PatchShape patch_shape_from(const py::tuple& tuple) {
  if (tuple.size() != 6) throw py::value_error("a patch's shape must be (kernel, kernel, stride, stride, pad, pad)");
  int numbers[6];
  for (int i = 0; i < 6; ++i) numbers[i] = tuple[i].cast<int>();
  return PatchShape{{numbers[0], numbers[1]}, {numbers[2], numbers[3]}, {numbers[4], numbers[5]}};
}

}  // namespace

void bind_patches(py::module_& module) {
  module.def("unfold", [](const py::tuple& x, const py::tuple& patches, const py::tuple& shape, const py::tuple& exec) {
    const View a = view_from(x), p = view_from(patches);
    checked([&, s = patch_shape_from(shape), e = exec_from(exec)] { return unfold(a, p, s, e); });
  });
  module.def("fold_workspace_bytes", [](const py::tuple& x, const py::tuple& exec) {
    return fold_workspace_bytes(view_from(x), exec_from(exec));
  });
  module.def("fold", [](const py::tuple& patches, const py::tuple& x, const py::tuple& shape, const py::tuple& exec) {
    const View p = view_from(patches), a = view_from(x);
    checked([&, s = patch_shape_from(shape), e = exec_from(exec)] { return fold(p, a, s, e); });
  });
}

}  // namespace ganscale::bind
