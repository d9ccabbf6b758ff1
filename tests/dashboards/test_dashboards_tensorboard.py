"""What the sink writes is what TensorBoard reads back, in images, with the past of a resumed run purged."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from dashboard_cases import NASTY, SIDE, evaluation_values, red_codes
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from ganscale.config import RunConfig, override
from ganscale.dashboards import TensorBoardSink
from ganscale.dashboards.tags import LAYOUT, find, histogram_tag
from ganscale.explain import Explanation
from ganscale.metrics import MetricValue
from ganscale.presets import preset
from ganscale.training import solo_group, train
from ganscale.training.records import Histogram, SampleRecord, StartRecord, TickRecord

KINDS = ("scalars", "histograms", "images", "tensors")


def read(directory: Path) -> EventAccumulator:
    events = EventAccumulator(str(directory), size_guidance=dict.fromkeys(KINDS, 0))
    events.Reload()
    return events


def tick(images: int, **scalars: float) -> TickRecord:
    histogram = Histogram(edges=np.array([-4.0, -2.0, 0.0, 1.0, 3.0, 9.0]), counts=np.array([0, 2, 3, 5, 0]))
    return TickRecord(
        images=images,
        scalars={"loss/critic": images / 1000, **scalars},
        histograms={"logits/real": histogram, "logits/fake": histogram},
        timing={"kimg_per_s": 0.5, "tick_s": 2.0},
        checkpoint=None,
        partial=False,
    )


def pixels_of(event) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def test_scalars_come_back_at_their_images(tmp_path):
    with TensorBoardSink(tmp_path) as sink:
        for images in (2048, 4096):
            sink.write(tick(images, penalty=0.25))
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("loss/critic")] == [
        (2048, pytest.approx(2.048)),
        (4096, pytest.approx(4.096)),
    ]
    assert [e.value for e in events.Scalars("penalty")] == [0.25, 0.25]
    assert [e.value for e in events.Scalars("speed/kimg_per_s")] == [0.5, 0.5]


def test_a_record_is_readable_while_the_run_still_writes(tmp_path):
    with TensorBoardSink(tmp_path) as sink:
        sink.write(tick(1000))
        assert [e.step for e in read(tmp_path).Scalars("loss/critic")] == [1000]


def test_histograms_keep_counts_and_limits_and_lose_empty_ends(tmp_path):
    with TensorBoardSink(tmp_path) as sink:
        sink.write(tick(1000))
    [event] = read(tmp_path).Histograms(histogram_tag("logits/real"))
    histogram = event.histogram_value
    assert list(histogram.bucket) == [2, 3, 5]
    assert list(histogram.bucket_limit) == [0, 1, 3]
    assert (histogram.min, histogram.max, histogram.num) == (-2, 3, 10)


def test_a_histogram_without_values_is_left_out(tmp_path):
    record = tick(1000)
    record.histograms["logits/real"].counts[:] = 0
    with TensorBoardSink(tmp_path) as sink:
        sink.write(record)
    assert read(tmp_path).Tags()["histograms"] == []


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_sample_grids_come_back_as_images_of_square_pixels(tmp_path, shape):
    grid = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with TensorBoardSink(tmp_path) as sink:
        sink.write(SampleRecord(images=500, path=tmp_path / "grid.png", grid=grid))
    [event] = read(tmp_path).Images("samples/ema")
    shown = pixels_of(event)
    times = shown.shape[0] // 20
    assert times > 1, "small grids are enlarged"
    small = shown[::times, ::times]
    assert (small == (grid if grid.ndim == 3 else grid[..., None])).all()


def test_logits_are_drawn_over_each_other_at_the_pace_of_the_samples(tmp_path):
    grid = np.zeros((4, 4), dtype=np.uint8)
    with TensorBoardSink(tmp_path) as sink:
        sink.write(SampleRecord(images=0, path=tmp_path / "grid.png", grid=grid))
        sink.write(tick(1000))
        sink.write(tick(2000))
        sink.write(SampleRecord(images=2000, path=tmp_path / "grid.png", grid=grid))
    assert [event.step for event in read(tmp_path).Images("logits_overlap")] == [2000]


def test_layout_draws_together_what_belongs_together(tmp_path):
    with TensorBoardSink(tmp_path) as sink:
        sink.write(StartRecord(images=0, config=RunConfig(), facts={}))
    [event] = read(tmp_path).Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts == LAYOUT["Training"]


def test_config_and_facts_are_text_that_cannot_become_markup(tmp_path):
    config = override(RunConfig(), {"data.path": NASTY})
    with TensorBoardSink(tmp_path) as sink:
        sink.write(StartRecord(images=0, config=config, facts={"kernels": "plain | torch"}))
    events = read(tmp_path)
    words = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"][1:]}
    config_words, facts_words = words["run/config/text_summary"], words["run/facts/text_summary"]
    assert "| train.batch | 64 |" in config_words
    assert "<script>" not in config_words
    assert "&lt;script&gt;" in config_words
    assert "plain &#124; torch" in facts_words, "a bar would end the table's cell"


def _make_old(directory: Path) -> None:
    """Date the event file back: TensorBoard sorts files by the second in their names, a test takes less."""
    [path] = directory.glob("events.out.tfevents.*")
    path.rename(path.with_name(re.sub(r"tfevents\.\d+", "tfevents.1000000000", path.name)))


def test_resuming_hides_what_came_after_the_checkpoint_and_keeps_the_rest(tmp_path):
    with TensorBoardSink(tmp_path) as sink:
        for images in (1000, 2000, 3000, 4000):
            sink.write(tick(images))
    _make_old(tmp_path)
    with TensorBoardSink(tmp_path, purge_images=2000) as sink:
        assert [e.step for e in read(tmp_path).Scalars("loss/critic")] == [1000, 2000]
        sink.write(tick(2500, penalty=1.0))
    assert [e.step for e in read(tmp_path).Scalars("loss/critic")] == [1000, 2000, 2500]
    assert [e.step for e in read(tmp_path).Histograms(histogram_tag("logits/real"))] == [1000, 2000, 2500]


def test_evaluations_come_with_floor_and_full_name(tmp_path):
    value = MetricValue(unit="features^2", **next(iter(evaluation_values().values())))
    with TensorBoardSink(tmp_path) as sink:
        sink.write_metrics({value.name: value}, 8000)
    events = read(tmp_path)
    name = "evaluation/FD (in-domain CNN), n=500, held-out, bilinear to 28x28"
    assert {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]} == {
        f"{name}/value": [(8000, 12.5)],
        f"{name}/floor": [(8000, 1.25)],
    }
    assert "extractor in-domain CNN" in events.SummaryMetadata(f"{name}/value").summary_description
    assert len(events.Images("evaluation_table")) == 1


def test_an_evaluation_read_from_its_file_writes_the_same(tmp_path):
    with TensorBoardSink(tmp_path) as sink:
        sink.write_metrics(evaluation_values(), 8000)
    tags = read(tmp_path).Tags()["scalars"]
    assert sum(tag.endswith("/floor") for tag in tags) == sum(tag.endswith("/value") for tag in tags) == 2


def test_explanations_come_with_panels_and_controls(tmp_path, shapley: Explanation):
    with TensorBoardSink(tmp_path) as sink:
        sink.write_explanation(shapley, 8000)
    events = read(tmp_path)
    assert set(events.Tags()["images"]) == {"explanation/kernel-shap/maps", "explanation/kernel-shap/curves"}
    deletion = shapley.scores["deletion_auc"]
    for part in ("value", "control"):
        [event] = events.Scalars(f"explanation_score/kernel-shap/deletion_auc/{part}")
        assert (event.step, event.value) == (
            8000,
            pytest.approx(getattr(deletion, part), rel=1e-6),
        )  # events are float32


def test_codes_come_back_as_points_with_classes_and_pictures(tmp_path):
    found = red_codes(count=10)
    with TensorBoardSink(tmp_path) as sink:
        sink.write_explanation(found, 8000)
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    [entry] = config.embeddings
    points = np.loadtxt(tmp_path / entry.tensor_path, delimiter="\t")
    np.testing.assert_allclose(points, found.values["codes"], rtol=1e-5, atol=1e-6)  # six digits are written
    head, *rows = (tmp_path / entry.metadata_path).read_text().splitlines()
    assert head == "class\timage"
    assert rows[:4] == ["class 0\t1", "class 1\t2", "class 2\t3", "class 0\t4"]
    with Image.open(tmp_path / entry.sprite.image_path) as sheet:
        assert sheet.size == (4 * SIDE, 4 * SIDE), "ten pictures on four by four places"
        tile = np.asarray(sheet)[SIDE : 2 * SIDE, SIDE : 2 * SIDE]  # the sixth
    assert list(entry.sprite.single_image_dim) == [SIDE, SIDE]
    assert (tile == found.values["code_images"][5].numpy().transpose(1, 2, 0)).all()


def test_codes_of_a_later_checkpoint_stand_beside_the_earlier_ones_and_new_ones_replace_their_own(tmp_path):
    found = red_codes(count=10)
    with TensorBoardSink(tmp_path) as sink:
        for step in (8192, 8000, 16000, 8000):
            sink.write_explanation(found, step, panels={})
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    times = [entry.tensor_name.rpartition(" at ")[2] for entry in config.embeddings]
    assert times == ["8 kimg", "8.192 kimg", "16 kimg"], "it opens with what was written last"
    assert len({entry.tensor_path for entry in config.embeddings}) == 3, "each has points of its own"


def test_what_has_no_codes_writes_none(tmp_path, shapley: Explanation):
    with TensorBoardSink(tmp_path) as sink:
        sink.write_explanation(shapley, 8000, panels={})
    assert not (tmp_path / "projector_config.pbtxt").exists()


def test_every_tag_of_a_real_run_is_in_the_table_with_its_description(tmp_path):
    settings = {"model.width": 4, "model.latent": 4, "train.batch": 16, "train.kimg": 0.096, "train.tick_kimg": 0.032}
    config = override(preset("dcgan-fashion"), settings | {"sample.num": 4, "penalty.every": 2, "penalty.center": 0})
    with TensorBoardSink(tmp_path / "tensorboard") as sink:
        train(config, tmp_path, group=solo_group(), sink=sink, should_stop=lambda: False, resume_from=None)
    events = read(tmp_path / "tensorboard")
    tags = events.Tags()
    written = [tag for kind in KINDS for tag in tags[kind]]
    assert {"loss/critic", "grad_norm/critic-penalty", "lr/generator", "speed/tick_s", "samples/ema"} <= set(written)
    unknown = [tag for tag in written if find(tag.removesuffix("/text_summary")) is None]
    assert unknown == []
    silent = [tag for tag in tags["scalars"] if not events.SummaryMetadata(tag).summary_description]
    assert silent == []
    assert {e.step for e in events.Scalars("loss/critic")} == {32, 64, 96}
