"""The in-domain CNN: its accuracy, its reach, its cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ganscale.errors import CheckpointError, DataError, UserError
from ganscale.metrics import (
    InDomainCNN,
    TrainingSet,
    features_of,
    in_domain_classifier,
    load_classifier,
    save_classifier,
    train_classifier,
)


def first(data: TrainingSet, n: int) -> TrainingSet:
    return TrainingSet(*(part[:n] for part in data))


def stripes(n: int, shape: tuple[int, int, int], *, labelled: bool = True) -> TrainingSet:
    """Vertical or horizontal brightness ramps with noise: two classes that anything can tell apart."""
    generator = torch.Generator().manual_seed(0)
    _, height, width = shape
    label = torch.arange(n) % 2
    ramps = torch.stack([torch.linspace(0, 255, width).expand(height, width),
                         torch.linspace(0, 255, height)[:, None].expand(height, width)])  # fmt: skip
    noisy = ramps[label][:, None] + 20 * torch.randn(n, *shape, generator=generator)
    images = noisy.clamp(0, 255).to(torch.uint8)
    label = label if labelled else torch.full((n,), -1)
    return TrainingSet(images[n // 4 :], label[n // 4 :], images[: n // 4], label[: n // 4])


def test_judge_has_the_stated_size_and_accuracy(judge: InDomainCNN):
    assert sum(p.numel() for p in judge.parameters()) == 421_642
    assert judge.objective == "classes"
    assert judge.held_out_accuracy >= 0.85  # .881 to .885 measured over three seeds
    assert judge.describe()["held_out_accuracy"] == f"{judge.held_out_accuracy:.4f}"


def test_held_out_accuracy_is_what_the_logits_say(judge: InDomainCNN, garments: TrainingSet):
    with torch.no_grad():
        verdict = judge(garments.held_images.float() / 127.5 - 1).argmax(1)
    assert float((verdict == garments.held_labels).float().mean()) == pytest.approx(judge.held_out_accuracy)


def test_features_are_unit_scale_on_held_out_images_and_do_not_depend_on_the_batch(judge, garments):
    features = features_of(judge, garments.held_images)
    assert features.shape == (1000, 128)
    assert float(features.square().mean()) == pytest.approx(1, abs=1e-4)
    assert torch.allclose(features_of(judge, garments.held_images, batch=77), features, atol=1e-4)


@pytest.mark.parametrize("images", [1, 2, 65, 300])
def test_training_works_for_any_number_of_images_and_epochs(images: int, garments):
    for epochs in (1, 3):
        network = train_classifier(*first(garments, images), epochs=epochs)
        assert features_of(network, garments.images[:3]).isfinite().all()


def test_same_seed_gives_same_weights_another_seed_others_and_the_callers_random_state_is_kept(garments):
    data = first(garments, 300)
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    one, same, other = (train_classifier(*data, seed=seed, epochs=1).sha256 for seed in (0, 0, 1))
    assert one == same != other
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_weights_do_not_depend_on_the_callers_thread_count(garments):
    data, threads, hashes = first(garments, 300), torch.get_num_threads(), set()
    try:
        for ambient in (1, 2):
            torch.set_num_threads(ambient)
            hashes.add(train_classifier(*data, epochs=1).sha256)
    finally:
        torch.set_num_threads(threads)
    assert len(hashes) == 1


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 48), (4, 16, 16), (3, 1, 1)])
def test_any_size_and_channel_count_trains(shape: tuple[int, int, int]):
    data = stripes(80, shape)
    network = train_classifier(*data, epochs=3)
    assert features_of(network, data.held_images).shape == (20, 128)
    assert network(torch.zeros(2, *shape)).shape == (2, 2)
    if min(shape[1:]) > 1:  # one pixel holds no direction
        assert network.held_out_accuracy == 1


def test_without_labels_it_learns_quarter_turns_and_says_so():
    data = stripes(240, (1, 32, 24), labelled=False)
    network = train_classifier(*data, epochs=8)
    assert network.objective == network.describe()["objective"] == "turns"
    assert network(torch.zeros(1, 1, 32, 24)).shape == (1, 4)
    # A ramp and the other ramp turned look alike: chance is .25, the two kinds leave .5 at best.
    assert network.held_out_accuracy > 0.4


def test_quarter_turns_of_garments_are_learned_far_above_chance(garments):
    unlabelled = first(garments, 1500)._replace(labels=torch.full((1500,), -1))
    network = train_classifier(*unlabelled, epochs=3)
    assert network.held_out_accuracy > 0.6  # chance: .25


def test_images_without_a_label_are_left_out_where_others_have_one():
    data = stripes(120, (1, 28, 28))
    mixed = data.labels.clone()
    mixed[::3] = -1
    network = train_classifier(*data._replace(labels=mixed), epochs=3)
    assert network.objective == "classes"
    assert network.recipe["images"] == "60"


def test_cache_trains_once_and_gives_the_same_network_back(garments, tmp_path: Path):
    data, reads, lines = first(garments, 200), [], []

    def read() -> TrainingSet:
        reads.append(1)
        return data._replace(images=data.images[:64], labels=data.labels[:64])

    made = in_domain_classifier("a", read, directory=tmp_path, say=lines.append)
    again = in_domain_classifier("a", read, directory=tmp_path, say=lines.append)
    assert len(reads) == 1
    assert made.describe() == again.describe()
    assert made.recipe == again.recipe
    assert torch.equal(features_of(made, data.images), features_of(again, data.images))
    in_domain_classifier("b", read, directory=tmp_path, say=lines.append)
    assert len(reads) == 2
    assert sum(line.startswith("training the in-domain CNN") for line in lines) == 2
    assert len(list(tmp_path.iterdir())) == 2  # no temporary directory stays


def test_cache_lives_where_the_environment_says(garments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GANSCALE_CACHE", str(tmp_path / "here"))
    network = InDomainCNN(1, 10)
    save_classifier(network, tmp_path / "elsewhere" / "net")
    in_domain_classifier("x", lambda: first(garments, 20), say=lambda line: None)
    assert [path.name[:13] for path in (tmp_path / "here").iterdir()] == ["in-domain-cnn"]


def flip_a_weight(entry: Path) -> str:
    path = entry / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    return "weights.safetensors"


def cut_the_weights(entry: Path) -> str:
    path = entry / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return "weights.safetensors"


def lose_the_facts(entry: Path) -> str:
    (entry / "classifier.json").unlink()
    return "classifier.json"


def scramble_the_facts(entry: Path) -> str:
    (entry / "classifier.json").write_bytes(b"\xff{")
    return "classifier.json"


def change_the_classes(entry: Path) -> str:
    path = entry / "classifier.json"
    path.write_text(path.read_text().replace('"classes": 10', '"classes": 11'))
    return "classifier.json"


DAMAGES = [flip_a_weight, cut_the_weights, lose_the_facts, scramble_the_facts, change_the_classes]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_refused_by_name(damage, tmp_path: Path):
    entry = tmp_path / "net"
    save_classifier(InDomainCNN(1, 10), entry)
    load_classifier(entry)
    name = damage(entry)
    with pytest.raises(CheckpointError, match=name):
        load_classifier(entry)


def test_a_damaged_entry_is_trained_again_with_one_line_said(garments, tmp_path: Path):
    data, lines = first(garments, 64), []
    good = in_domain_classifier("a", lambda: data, directory=tmp_path, say=lines.append)
    (entry,) = tmp_path.iterdir()
    flip_a_weight(entry)
    lines.clear()
    again = in_domain_classifier("a", lambda: data, directory=tmp_path, say=lines.append)
    assert again.sha256 == good.sha256
    assert [line for line in lines if str(entry) in line and line.endswith("training it again")] == lines[:1]
    assert load_classifier(entry).sha256 == good.sha256
    assert list(tmp_path.iterdir()) == [entry]


def test_a_cache_that_cannot_be_written_costs_one_line_and_no_result(garments, tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    lines: list[str] = []
    data = first(garments, 64)
    network = in_domain_classifier("a", lambda: data, directory=blocked, say=lines.append)
    assert features_of(network, data.images).isfinite().all()
    assert sum("could not be kept" in line for line in lines) == 1


def test_a_module_in_training_mode_comes_back_in_it(judge, garments):
    judge.train()
    features_of(judge, garments.images[:4])
    assert judge.training
    judge.eval()


def test_bad_data_is_refused(judge, garments):
    data = first(garments, 50)
    with pytest.raises(UserError, match="uint8"):
        train_classifier(data.images.float(), *data[1:])
    with pytest.raises(UserError, match=r"labels must be \[50\], got \[49\]"):
        train_classifier(data.images, data.labels[:49], *data[2:])
    with pytest.raises(DataError, match="held-out images must hold at least one image"):
        train_classifier(*data[:2], data.held_images[:0], data.held_labels[:0])
    for amount in ("epochs", "threads"):
        with pytest.raises(UserError, match=f"{amount} must be at least 1, got 0"):
            train_classifier(*data, **{amount: 0})
    with pytest.raises(UserError, match=r"be \[N, 1, H, W\], got \[2, 3, 28, 28\]"):
        judge(torch.zeros(2, 3, 28, 28))
    with pytest.raises(UserError, match="at least one image"):
        features_of(judge, data.images[:0])
    with pytest.raises(UserError, match=r"uint8 \[N, C, H, W\]"):
        features_of(judge, data.images.float())
