// What the binding files share: how tuples become views, and statuses exceptions.
#pragma once

#include <pybind11/pybind11.h>

#include "ganscale/api.h"

namespace ganscale::bind {

namespace py = pybind11;

View view_from(const py::tuple& tuple);
View optional_view(const py::object& object);  // None is a view without data
Exec exec_from(const py::tuple& tuple);
void raise_unless_ok(const Status& status);  // needs the GIL

// Runs `call`, which returns a Status, without the GIL.
template <class F>
void checked(F call) {
  Status status;
  {
    py::gil_scoped_release release;
    status = call();
  }
  raise_unless_ok(status);
}

void bind_mask(py::module_& module);
void bind_norm_act(py::module_& module);
void bind_conv_transpose(py::module_& module);
void bind_patches(py::module_& module);
void bind_shared_sum(py::module_& module);

}  // namespace ganscale::bind
