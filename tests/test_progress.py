"""What is asked in kimg is counted in whole images."""

import pytest

from ganscale.progress import duration, times_passed, to_images


@pytest.mark.parametrize(
    ("kimg", "images"), [(16.1, 16100), (1.001, 1001), (256 / 1000 + 0.032, 288), (0.0004, 1), (25_000.0, 25_000_000)]
)
def test_kimg_become_the_number_of_images_that_was_meant(kimg: float, images: int):
    assert to_images(kimg) == images


def test_every_multiple_is_passed_once_whatever_the_batch():
    for batch in (1, 7, 64, 100):
        passed = [times_passed(done, done + batch, 16.1) for done in range(0, 161_000, batch)]
        assert sum(passed) == (len(passed) * batch) // 16100
    assert times_passed(0, 16_099, 16.1) == 0
    assert times_passed(16_099, 16_100, 16.1) == 1
    assert times_passed(16_100, 64_500, 16.1) == 3


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.9, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_read_well(seconds, words):
    assert duration(seconds) == words
