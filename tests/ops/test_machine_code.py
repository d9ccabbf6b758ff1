"""What the machine code of the CUDA kernels must be: for every architecture asked for, without spills, within their
registers, moving 16 bytes at a time, on tensor cores where planned, and without atomics. Read, not run: no GPU needed.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest
from machine_code import CUOBJDUMP, CXXFILT, NVDISASM, listed, read_code, read_resources

from ganscale import ops
from ganscale.ops import _extension

INFO = ops.build_info()

pytestmark = [
    pytest.mark.skipif(not INFO["cuda"], reason="the core was built without CUDA"),
    pytest.mark.skipif(
        not (CUOBJDUMP and NVDISASM and CXXFILT),
        reason="needs cuobjdump and nvdisasm (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm) and c++filt",
    ),
]

# Most registers a thread of each kernel may use. A multiprocessor has 65536: 32 a thread fill it with threads, 64 half,
# 128 a quarter, which suffices where a thread has several independent loads of 16 bytes under way.
MOST_REGISTERS = {
    "interpolate_kernel": 32,
    "sum_squares_kernel": 32,
    "finish_kernel": 32,
    "bias_act_kernel": 48,
    "act_backward_kernel": 48,
    "run_sums_kernel": 128,
    "column_sums_kernel": 128,
    "join_kernel": 40,
    "act_mask_kernel": 48,
    "mask_scale_kernel": 32,
    "join_moments_kernel": 32,
    "join_gradients_kernel": 32,
    "stats_kernel": 32,
    "backward_terms_kernel": 32,
    "affine_act_kernel": 128,
    "backward_kernel": 128,
    "few_kernel": 128,
    "picture_kernel": 128,
    "pack_picture_kernel": 32,
    "gemm_kernel": 255,  # accumulators of a tile of 128 x 128 live in registers
    "pack_kernel": 40,
    "pad_kernel": 32,
}
# Bandwidth is all they need: tensors are read and written 16 bytes at a time wherever the addresses allow.
READ_WIDE = {"interpolate_kernel", "sum_squares_kernel", "bias_act_kernel", "act_backward_kernel", "act_mask_kernel"}
READ_WIDE |= {"mask_scale_kernel", "affine_act_kernel", "backward_kernel", "column_sums_kernel", "run_sums_kernel"}
WRITE_WIDE = READ_WIDE - {"sum_squares_kernel", "column_sums_kernel", "run_sums_kernel"}
# The multiply-accumulate of each element type on tensor cores, for sm_80 and sm_90a alike.
TENSOR = {"bf16": r"HMMA\.16816\.F32\.BF16", "f16": r"HMMA\.16816\.F32", "float": r"HMMA\.1688\.F32\.TF32"}
BYTES = {"float": 4, "double": 8, "f16": 2, "bf16": 2}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Every kernel of the built module, once an architecture, with its instructions."""
    module = _extension.core().__file__
    found = read_resources(module)
    read_code(module, tmp_path_factory.mktemp("cubins"), found)
    return list(found.values())


def _archs(kind):
    return [arch.removesuffix(f"-{kind}") for arch in INFO["cuda_archs"] if arch.endswith(f"-{kind}")]


def _wide(kernel, names):
    """Kernels of the set in the form for aligned tensors: a template argument says elements x size = 16 bytes."""
    return kernel.name in names and kernel.arguments[1:2] == (str(16 // BYTES.get(kernel.element, 16)),)


def test_every_kernel_is_there_for_every_architecture(kernels):
    by_arch = Counter(kernel.arch for kernel in kernels)
    assert set(by_arch) == {f"sm_{arch}" for arch in _archs("real")}
    assert len(set(by_arch.values())) == 1
    assert all(kernel.code for kernel in kernels)


def test_newer_gpus_find_code_they_can_translate():
    """PTX for the newest architecture: what a driver compiles for a GPU that came after the build."""
    module = _extension.core().__file__
    assert set(listed(module, "ptx")) == {f"sm_{arch}" for arch in _archs("virtual")}
    assert len(listed(module, "ptx")) * len(_archs("real")) == len(listed(module, "elf")) * len(_archs("virtual"))


def test_no_kernel_spills(kernels):
    assert not [str(kernel) for kernel in kernels if kernel.stack or kernel.count(r"(LDL|STL).*")]


def test_every_kernel_keeps_to_its_registers(kernels):
    assert {kernel.name for kernel in kernels} <= set(MOST_REGISTERS), "a new kernel needs its number of registers"
    assert not {str(k): k.registers for k in kernels if k.registers > MOST_REGISTERS[k.name]}


def test_aligned_tensors_move_in_16_bytes(kernels):
    reading = [kernel for kernel in kernels if _wide(kernel, READ_WIDE)]
    writing = [kernel for kernel in kernels if _wide(kernel, WRITE_WIDE)]
    assert {kernel.name for kernel in reading} == READ_WIDE
    assert {kernel.element for kernel in reading} == set(BYTES)
    assert not [str(kernel) for kernel in reading if not kernel.count(r"LDG\.E\.128.*")]
    assert not [str(kernel) for kernel in writing if not kernel.count(r"STG\.E\.128.*")]
    narrow = r"STG\.E(\.U16|\.64)?"
    assert not [str(kernel) for kernel in writing if kernel.name != "act_mask_kernel" and kernel.count(narrow)]


def test_transposed_convolutions_run_on_tensor_cores(kernels):
    gemms = [kernel for kernel in kernels if kernel.name == "gemm_kernel" and "TensorProduct" in str(kernel)]
    pictures = [kernel for kernel in kernels if kernel.name == "picture_kernel"]
    assert {kernel.element for kernel in gemms} == set(TENSOR)
    assert {kernel.element for kernel in pictures} == set(TENSOR)
    for kernel in gemms + pictures:
        assert kernel.count(TENSOR[kernel.element]), str(kernel)
        assert kernel.count(r"HMMA.*") == kernel.count(TENSOR[kernel.element]), str(kernel)
        assert kernel.count(r"LDGSTS.*\.128"), f"{kernel} copies to shared memory asynchronously"
        assert kernel.count(r"LDSM\.16\.M88\.4"), f"{kernel} loads its fragments four matrices at a time"


def test_ieee_products_stay_off_tensor_cores(kernels):
    """float32 under precision "ieee": tensor cores would round its inputs to 10 bits."""
    plain = [kernel for kernel in kernels if "PlainProduct" in str(kernel)]
    assert plain
    assert not [str(kernel) for kernel in plain if kernel.count("HMMA.*") or not kernel.count("FFMA.*")]


def test_nothing_is_added_atomically(kernels):
    """Atomic sums come in any order; results must not."""
    assert not [str(kernel) for kernel in kernels if kernel.count(r"(ATOM|RED\.|REDG).*")]


def test_no_elementwise_kernel_computes_in_double_by_accident(kernels):
    """A literal without its suffix makes float32 arithmetic double, at a small fraction of the speed."""
    names = READ_WIDE - {"column_sums_kernel", "run_sums_kernel"}
    narrow = [kernel for kernel in kernels if kernel.name in names and kernel.element != "double"]
    assert len(narrow) > len(names)
    double = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)|F2F\.F(64\.F32|32\.F64)")
    assert not [str(kernel) for kernel in narrow if any(double.match(each) for each in kernel.code)]
