"""How many rows go through a network at once, and how they lie: a matter of speed that no map may show.

N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import product

import pytest
import torch
from torch import nn

from ganscale import ops
from ganscale.explain import (
    EXPLAINERS,
    Subject,
    build_explainer,
    explain,
    make_request,
    source_of_object,
    subject_of_run,
)
from ganscale.explain import base as explain_base
from ganscale.explain.passes import VECTORS, layout_of_rows, rows_a_pass

BARE = {"shakes": 0, "shuffled_network": False}
LAYOUTS = (torch.contiguous_format, torch.channels_last)
#: Of scale: a network may add in another order where rows lie otherwise or are more, which moves the last bits of a
#: float32 (6e-8 each) by a few.
LAST_BITS = 1e-6


def images(side: int, count: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def subject_of(network) -> Subject:
    return Subject(name="f", fn=network, module=network if isinstance(network, nn.Module) else None)


def critic() -> nn.Sequential:
    """A critic of colour images, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        parts = nn.Conv2d(3, 8, 4, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(8, 16, 3), nn.LeakyReLU(0.2)
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(16 * 25, 1), nn.Flatten(0)).eval()


class Viewing(nn.Module):
    """A convolution whose result is flattened as if it could only lie one way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4 * 10 * 10, 1)
        self.layouts: list[bool] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.layouts.append(x.is_contiguous())
        return self.last(self.conv(x).relu().view(len(x), -1))[:, 0]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """What sets the number of torch's threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("side", "rows"), [(28, 32), (32, 32), (64, 32), (128, 16), (224, 4), (1024, 1)])
def test_the_larger_the_images_the_fewer_go_through_at_once(side, rows):
    assert rows_a_pass(subject_of(critic()), torch.zeros(1, 3, side, side)) == rows


@pytest.mark.parametrize("shape", [(3, 16), (3, 2, 1, 1)])
def test_latents_and_points_go_many_at_once(shape):
    assert rows_a_pass(subject_of(lambda x: x.flatten(1).sum(1)), torch.zeros(shape)) == VECTORS


def test_the_size_that_counts_is_that_to_which_a_classifier_enlarges():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = images(28)
    small, large = (source_of_object(network, size=size).open(x) for size in (None, (224, 224)))
    parts = {"target": "class:1", "critic": None}
    assert rows_a_pass(subject_of_run(**parts, classifier=small), x) == 32
    assert rows_a_pass(subject_of_run(**parts, classifier=large), x) == 4
    judged = subject_of_run(target="critic", critic=critic(), classifier=large)
    assert rows_a_pass(judged, x) == 32  # it is not the classifier that is explained


def test_rows_lie_channels_last_where_the_network_takes_them_so():
    network, x = critic(), images(14)
    assert layout_of_rows(subject_of(network), x) is torch.channels_last
    assert layout_of_rows(subject_of(lambda rows: rows.sum(1)), torch.zeros(2, 8)) is torch.contiguous_format


def test_a_network_that_reads_memory_as_it_lies_is_given_ordinary_rows():
    def reads_memory(rows: torch.Tensor) -> torch.Tensor:
        flat = rows.permute(0, 2, 3, 1).reshape(len(rows), -1) if not rows.is_contiguous() else rows.flatten(1)
        return flat @ torch.arange(flat.shape[1], dtype=flat.dtype)

    assert layout_of_rows(subject_of(reads_memory), images(8)) is torch.contiguous_format


@pytest.mark.parametrize("method", ["kernel-shap", "occlusion"])
def test_a_network_that_flattens_by_view_falls_back_and_gives_the_same_map(method, monkeypatch):
    network, x = Viewing().eval(), images(12)
    with pytest.raises(RuntimeError, match="view"):
        network(x.contiguous(memory_format=torch.channels_last))
    network.layouts.clear()
    found = explain(network, x, method, cells=3, **BARE)
    assert sum(not layout for layout in network.layouts) == 1  # it was tried once
    monkeypatch.setattr(explain_base, "layout_of_rows", lambda subject, x: torch.contiguous_format)
    plain = explain(network, x, method, cells=3, **BARE)
    assert torch.equal(found.values["attribution"], plain.values["attribution"])


@pytest.mark.parametrize("method", ["kernel-shap", "lime", "occlusion"])
def test_maps_are_the_same_however_rows_lie_however_many_go_at_once_and_on_two_threads(method, monkeypatch, threads):
    network, x = critic(), images(14)
    assert layout_of_rows(subject_of(network), x) is torch.channels_last
    maps = []
    for layout, count in product(LAYOUTS, (1, 2)):
        monkeypatch.setattr(explain_base, "layout_of_rows", lambda subject, x, layout=layout: layout)
        threads(count)
        for rows in (7, 32):
            maps.append(explain(network, x, method, cells=3, micro_batch=rows, **BARE).values["attribution"])
    scale = max(maps[0].abs().max(), network(x).abs().max())  # a map is made of differences of what the network says
    assert max(float((one - maps[0]).abs().max() / scale) for one in maps[1:]) <= LAST_BITS


# --- networks made ready ---------------------------------------------------------------------------------------------


def occlusion_of(network) -> torch.Tensor:
    return explain(network, images(14), method="occlusion", **BARE).values["attribution"]


class Looking(nn.Module):
    """A critic that looks at its values, so that it cannot be traced; beside ``net`` itself it differs in nothing."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) if torch.isfinite(x).all() else self.net(x.nan_to_num())


def test_a_network_made_ready_explains_as_the_plain_one_and_leaves_the_activations_to_the_convolutions(monkeypatch):
    net, calls = critic(), []
    plain = torch.nn.functional.leaky_relu
    monkeypatch.setattr(torch.nn.functional, "leaky_relu", lambda *given: calls.append(1) or plain(*given))
    ready = occlusion_of(net)
    few = len(calls)
    by_itself = occlusion_of(Looking(net))
    assert few < (len(calls) - few) / 2  # checks before the first pass are made with the network as it is
    torch.testing.assert_close(ready, by_itself, rtol=0, atol=LAST_BITS * float(by_itself.abs().max()) * 10)


def weight_by_data(net) -> None:
    net[2].weight.data.mul_(-1)


def another_weight(net) -> None:
    net[2].weight = nn.Parameter(-net[2].weight.detach())


def another_slope(net) -> None:
    net[1].negative_slope = 0.9


def another_layer(net) -> None:
    net[3] = nn.Tanh()


@pytest.mark.parametrize("change", [weight_by_data, another_weight, another_slope, another_layer])
def test_what_is_changed_in_a_network_is_seen_by_the_next_explanation(change):
    net = critic()
    before = occlusion_of(net)
    change(net)
    after = occlusion_of(net)
    assert not torch.equal(after, before)
    assert torch.equal(after, occlusion_of(deepcopy(net)))


def test_a_network_is_traced_once_for_all_its_explanations(monkeypatch):
    net, traced = critic(), []
    plain = ops.freeze
    monkeypatch.setattr(ops, "freeze", lambda fn, rows: traced.append(fn) or plain(fn, rows))
    maps = [occlusion_of(net) for _ in range(2)]
    assert traced == [net]
    assert torch.equal(*maps)
    explain(net, images(14), method="occlusion", micro_batch=8, **BARE)
    assert traced == [net, net]  # passes of another size are another function


def frozen_of(subject: Subject, x: torch.Tensor) -> ops.Frozen | None:
    return build_explainer(subject, make_request(EXPLAINERS["occlusion"], x)).frozen


def test_no_trace_is_used_where_plain_torch_is_asked_for():
    subject = subject_of(critic())
    assert frozen_of(subject, images(14)) is not None
    with ops.using("reference"):
        assert frozen_of(subject, images(14)) is None


def test_a_blank_sample_does_not_hide_that_a_function_is_another_now():
    net, sign = critic(), [1]

    def turned(x: torch.Tensor) -> torch.Tensor:
        return net(x if sign[0] > 0 else x.flip(3))

    subject, blank = Subject(name="f", fn=turned, module=net), torch.full((1, 3, 14, 14), -1.0)
    before = frozen_of(subject, blank)
    assert frozen_of(subject, blank) is before
    sign[0] = -1
    assert frozen_of(subject, blank) is not before


@pytest.mark.parametrize("target", ["critic", "critic:fake", "class:1"])
def test_targets_of_critics_and_classifiers_are_made_ready(target):
    net = critic()
    classes = source_of_object(nn.Sequential(net, nn.Unflatten(0, (-1, 1)), nn.Linear(1, 3)).eval()).open(images(14))
    subject = subject_of_run(target=target, critic=net, classifier=classes)
    frozen = frozen_of(subject, images(14))
    assert len(frozen.packed) == 2
    assert frozen_of(subject, images(14)) is frozen


class Fragile(nn.Module):
    """A critic that gives NaN once its weights are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.of_log = critic(), nn.Parameter(torch.tensor([1.0, *[-1.0] * 15]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) + self.of_log[0].log()


def test_who_meets_a_control_that_fails_first_computes_the_bytes_of_who_meets_it_last():
    request = make_request(EXPLAINERS["occlusion"], images(14, 3), options={"shakes": 0})
    chunks = build_explainer(subject_of(Fragile().eval()), request).plan()
    found = []
    for sign in (1, -1):
        explainer = build_explainer(subject_of(Fragile().eval()), request)
        partials = {chunk.index: explainer.run(chunk) for chunk in sorted(chunks, key=lambda chunk: sign * chunk.index)}
        found.append([partials[chunk.index].items[0][3]["sum"] for chunk in chunks])
    assert any(sums.isnan().any() for sums in found[0])
    assert any(sums.isfinite().all() for sums in found[0])
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)


def test_hooks_of_a_network_are_called_at_every_pass():
    net, seen = critic(), []
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    found = explain(net, images(14), method="occlusion", **BARE)
    assert sum(seen) >= found.meta["cost"]["rows_forward"]
