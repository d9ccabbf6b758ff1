#include "ganscale/shared_sum.h"

#include <string>

#include "bind.h"

namespace ganscale::bind {

void bind_shared_sum(py::module_& module) {
  py::class_<SharedSum>(module, "SharedSum")
      .def(py::init([](const std::string& path, int rank, int size, double timeout_s) {
             std::unique_ptr<SharedSum> opened;
             raise_unless_ok(SharedSum::open(path.c_str(), rank, size, timeout_s, &opened));
             return opened;
           }),
           py::arg("path"), py::arg("rank"), py::arg("size"), py::arg("timeout_s"))
      .def("sum", [](SharedSum& self, const py::tuple& data) {
        const View view = view_from(data);
        checked([&] { return self.sum(view); });
      });
}

}  // namespace ganscale::bind
