"""One plan gives the same bytes however its chunks are run: order, duplicates, several explainers, one process."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import cloudpickle
import pytest
import torch
import toys

from ganscale.explain import (
    EXPLAINERS,
    Chunk,
    Classifier,
    Explanation,
    Partial,
    Request,
    Subject,
    build_explainer,
    drive,
    find_explainer,
    make_request,
)

CASES = {
    "integrated-gradients": {},
    "kernel-shap": {"num_coalitions": 300},
    "exact-shapley": {},
    "lime": {"num_coalitions": 300, "fill": "generator"},
    "mprt": {"of": "input-x-gradient"},
    "roar": {"of": "input-x-gradient", "repeats": 2, "epochs": 1},
    "occlusion": {"window": 2},
    "saliency": {},
    "smoothgrad": {"draws": 4},
    "input-x-gradient": {},
    "expected-gradients": {"draws": 8},
    "grad-cam": {},
    "layer-conductance": {"steps": 8},
    "directions": {"num_directions": 3},
    "attack-input": {"steps": 3},
    "attack-latent": {"steps": 3},
    "explanation-robustness": {"steps": 2},
    "autoencoder": {},
    "disentanglement": {},
    "retrieval": {"k": 3},
    "membership": {"searched": 20, "steps": 3},
    "conv-interaction": {},
    "attfind": {},
    "dissect": {"ablate": 1},
    "layer-ablation": {},
    "layer-noise": {},
    "layer-shapley": {},
    "layer-swap": {},
    "style-mixing": {},
    "class-generation": {"steps": 4, "draws": 8},
    "probe-classifier": {"draws": 130},
    "feature-maps": {},
    "feature-vis": {"steps": 5},
    "latent-counterfactual": {"steps": 40, "confidence": 0.5},
}


JUDGED = ("class-generation", "probe-classifier")  # need a classifier
# of which a chunk has sixteen latents
BY_SIXTEEN = ("dissect", "layer-ablation", "layer-noise", "layer-shapley", "layer-swap", "style-mixing")
# Bytes, of these networks. A chunk holds a few numbers a player, a latent or a unit; a partial a few maps, a matrix of
# features by features or of units by concepts, never rows. So both grow with a network (512 units by 11 concepts: a
# megabyte) but not with what is evaluated.
MOST_SENT, MOST_BROUGHT_BACK = 2_000, 64 * 1024
DRAWS_NOTHING = {"autoencoder", "retrieval", "membership"}


class Encoding(toys.ConvGenerator):
    """A generator that can also encode: by six pixels."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 5, 4:10]


def subject(method: str = "") -> Subject:
    critic = toys.conv_critic()
    classifier = three_classes() if method in JUDGED else None
    networks = {"generator": Encoding(6, 14), "critic": critic, "classifier": classifier}
    return Subject(name="critic", fn=critic, module=critic, value_range=None, **networks)


def three_classes() -> Classifier:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(14 * 14, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(3, 14 * 14, generator=torch.Generator().manual_seed(1)))
        model[1].bias.zero_()
    return Classifier(model, name="three classes", example=torch.zeros(2, 1, 14, 14))


def request_of(method: str):
    generator = torch.Generator().manual_seed(7)
    explainer = find_explainer(method, EXPLAINERS)
    latents = 20 if method in BY_SIXTEEN else 5
    shape = (latents, 6) if explainer.input_name == "z" else (5, 1, 14, 14)
    inputs = {explainer.input_name: torch.randn(shape, generator=generator)}
    if method == "roar":  # enough to train on
        inputs = {"x": torch.randn(40, 1, 14, 14, generator=generator), "labels": torch.arange(40) % 2}
    if method in ("retrieval", "membership"):
        inputs |= {name: torch.randn(520, 1, 14, 14, generator=generator) for name in ("real", "held_out")}
    if method in JUDGED:
        inputs["real"] = torch.randn(30, 1, 14, 14, generator=generator)
        inputs["real_labels"] = torch.arange(30) % 3
    if method == "membership":
        inputs["latents"] = torch.randn(300, 6, generator=generator)
    if method == "retrieval":
        del inputs["held_out"]
    if method == "disentanglement":
        known = torch.randn(120, 1, 14, 14, generator=generator)
        inputs |= {"known": known, "known_labels": known[:, 0, 5, 4:6].double()}
    return make_request(explainer, inputs, seed=3, options=CASES[method])


def in_workers(
    request: Request, workers: int, arrange: Callable[[list], Iterable], made: dict[bytes, bytes]
) -> Callable[[list[Chunk]], Iterable[tuple[int, Partial]]]:
    """Run chunks on explainers that are each built anew from what crosses a process boundary, each chunk once.

    ``made`` keeps what crossed: each chunk with its partial.
    """

    def execute(chunks: list[Chunk]) -> Iterable[tuple[int, Partial]]:
        copies = [cloudpickle.loads(cloudpickle.dumps(request)) for _ in range(workers)]
        pool = [build_explainer(subject(request.method), copy) for copy in copies]
        sent = [cloudpickle.dumps(chunk) for chunk in chunks]
        for i, raw in enumerate(sent):
            if raw not in made:
                made[raw] = cloudpickle.dumps(pool[i % workers].run(cloudpickle.loads(raw)))
        return arrange([(chunk.index, cloudpickle.loads(made[raw])) for chunk, raw in zip(chunks, sent, strict=True)])

    return execute


def digest(explanation: Explanation, directory: Path) -> str:
    return hashlib.sha256((explanation.save(directory) / "values.safetensors").read_bytes()).hexdigest()


def shuffled(arrivals: list) -> list:
    return random.Random(0).sample(arrivals, len(arrivals))


TOGETHER = 10**6  # more samples than any request has
WAYS = {
    "one": (1, list),
    "two-reversed": (2, lambda a: a[::-1]),
    "eight-shuffled": (8, shuffled),
    "twice": (2, lambda a: shuffled(a + a)),
}


@pytest.mark.parametrize("method", EXPLAINERS)
def test_workers_order_and_duplicates_do_not_change_a_byte_and_little_is_sent(method: str, tmp_path: Path):
    check_all_ways(request_of(method), tmp_path)


SOURCES = [
    {"by": "pca", "layer": "start", "num_draws": 600},  # three chunks
    {"by": "boundary", "extremes": 100, "num_draws": 600},
    {"by": "score", "num_draws": 100},  # three rounds of four
]


@pytest.mark.parametrize("options", SOURCES, ids=lambda options: options["by"])
def test_workers_order_and_duplicates_do_not_change_a_byte_of_directions(options: dict, tmp_path: Path):
    asked = replace(request_of("directions"), options={"num_directions": 1} | options)
    most = 5 * MOST_BROUGHT_BACK if options["by"] == "pca" else MOST_BROUGHT_BACK  # 196 features by 196, in float64
    check_all_ways(asked, tmp_path, most=most)


def check_all_ways(request: Request, folder: Path, *, most: int = MOST_BROUGHT_BACK) -> None:
    """Compare all ways to run the chunks of ``request``, as a whole and a few samples at a time, with the plain one."""
    alone = toys.plainly(build_explainer(subject(request.method), request))
    wanted = digest(alone, folder / "alone")
    for name, (workers, arrange) in WAYS.items():
        made: dict[bytes, bytes] = {}
        execute = in_workers(request, workers, arrange, made)
        found = drive(build_explainer(subject(request.method), request), execute=execute, at_once=TOGETHER)
        in_parts = drive(build_explainer(subject(request.method), request), execute=execute, at_once=workers)
        for way, one in ((name, found), (f"{name}-in-parts", in_parts)):
            assert digest(one, folder / way) == wanted, way
            assert one.scores == alone.scores, way
        assert max(map(len, made)) < MOST_SENT, "a chunk of any round is small"
        assert max(map(len, made.values())) < most, "and so is what it finds"


@pytest.mark.parametrize("method", [name for name in EXPLAINERS if name not in DRAWS_NOTHING])
def test_the_seed_decides_and_is_enough(method: str):
    request = request_of(method)
    one, same = (toys.plainly(build_explainer(subject(request.method), request)) for _ in range(2))
    other = toys.plainly(build_explainer(subject(request.method), replace(request, seed=4)))
    drawn = (
        "random_directions",
        "random_curves",
        "log_odds_random",
        "vis_random",
        "depicted_permuted",
        "agreement_permuted",
        "random_units",
        "shuffled_spread",
        "noise_margins",
        "random_image_change",
        "noise_change",
        "shuffled_importance",
        "cka_shuffled",
        "similarity_moved",
        "accuracy_random",
    )
    sampled = next(name for name in drawn if name in one.values)
    assert torch.equal(one.values[sampled], same.values[sampled])
    assert not torch.equal(one.values[sampled], other.values[sampled])


def test_a_fold_of_rounds_goes_on_from_the_one_before():
    explainer = build_explainer(subject(), request_of("exact-shapley"))
    first = explainer.plan()
    done = toys.folded(explainer, first)
    second = explainer.plan(done)
    both = toys.folded(explainer, second, done)
    assert len(both.items) == len(first) + len(second)
    assert explainer.plan(both) == []
    maps, curves = 5 * 512, 5 * (2 + 23 * 8 + 64)  # coalitions; ends, orders x inner points, infidelity
    assert both.rows_forward == (1 + 2 + 1) * maps + curves  # the map, two of moved samples, one of a shuffled network
