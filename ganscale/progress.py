"""Progress in whole images: what is configured in kimg (thousands of images) is compared and counted as integers.

And how long it takes, as everything that we print says it.
"""

from __future__ import annotations


def to_images(kimg: float) -> int:
    """Return ``kimg`` thousands of images as a number of images, at least 1.

    It rounds, as 1000 * 16.1 is a little more than 16100 and a run would go on for a batch more than asked.
    """
    return max(1, round(1000 * kimg))


def times_passed(before: int, images: int, every_kimg: float) -> int:
    """Return how many multiples of ``every_kimg`` lie above ``before`` and not above ``images``."""
    every = to_images(every_kimg)
    return images // every - before // every


def checkpoint_name(images: int) -> str:
    """Return the directory name of ``images`` seen; names sort as numbers do: ``kimg-000008``, ``kimg-000008.192``."""
    kimg, rest = divmod(images, 1000)
    return f"kimg-{kimg:06d}" + (f".{rest:03d}" if rest else "")


def images_of(name: str) -> int:
    """Return the images seen of a ``checkpoint_name``; ValueError: it is none."""
    kimg, _, rest = name.removeprefix("kimg-").partition(".")
    return 1000 * int(kimg) + int(rest or 0)


def duration(seconds: float) -> str:
    """Return ``seconds`` in words with two units at most: ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
