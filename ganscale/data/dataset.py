"""What every data set is to the rest of the house, and the one that lies in memory.

Legend: n samples read, N samples in the set, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from ganscale.data.convert import ENLARGED, Conversion
from ganscale.data.keyed import keyed_permutation

if TYPE_CHECKING:
    import torch

Split = Literal["train", "held-out"]
Kind = Literal["image", "points"]


class Dataset(ABC):
    """Indexed samples of one shape.

    ``name`` says which data, ``split`` which part; ``shape`` is (C, H, W); ``kind`` is "image" (uint8) or "points"
    (float32); ``num_classes`` is 0 without labels; ``class_names`` has one name a class; ``labels`` is int64 [N], -1
    where a sample has none; ``policy`` states how any source image becomes one of ``shape``; ``fingerprint`` is the
    SHA-256 of the sorted names, sizes, content hashes and the policy; ``quarantine`` lists ``{"path", "reason"}`` of
    files that were set aside out of ``num_files``.
    """

    name: str
    split: Split
    shape: tuple[int, int, int]
    kind: Kind
    class_names: tuple[str, ...]
    labels: np.ndarray
    policy: str
    fingerprint: str
    num_files: int

    def __init__(self) -> None:
        self.quarantine: list[dict[str, str]] = []

    @property
    def num_classes(self) -> int:
        """How many classes the labels name; 0 where there are none."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the samples at ``indices`` (int64 [n]) and their labels (int64 [n]).

        Samples are ``[n, C, H, W]``: uint8 0..255 for images, float32 for points. Safe to call from several threads.
        """


class ArrayImages(Dataset):
    """Images that lie in memory as one uint8 array, brought to the run's size and channels when they are read."""

    kind: Kind = "image"

    def __init__(
        self,
        name: str,
        split: Split,
        *,
        images_NHW: np.ndarray,
        labels: np.ndarray,
        class_names: tuple[str, ...],
        conversion: Conversion,
        content: Mapping[str, str],
    ) -> None:
        """``images_NHW`` is uint8 gray; ``content`` maps each source file to the hash of its bytes."""
        super().__init__()
        assert images_NHW.dtype == np.uint8
        assert images_NHW.shape[:1] == labels.shape
        self.name, self.split, self.class_names = name, split, class_names
        self.labels = labels.astype(np.int64)
        self.shape, self.policy = conversion.shape, conversion.policy
        self.num_files = len(images_NHW)
        self.fingerprint = fingerprint(name, split, content, self.policy)
        self.images_NHW, self._conversion = images_NHW, conversion

    @property
    def source_size(self) -> str:
        """``WIDTHxHEIGHT`` of the stored images."""
        return f"{self.images_NHW.shape[2]}x{self.images_NHW.shape[1]}"

    @property
    def enlarged(self) -> bool:
        """Whether reading enlarges the stored images more than four times on an axis."""
        height, width = self.images_NHW.shape[1:]
        return self._conversion.scale(height=height, width=width) > ENLARGED

    def read(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return uint8 ``[n, C, H, W]`` and int64 ``[n]``; see ``Dataset.read``."""
        import torch

        images = self._conversion.gray_arrays(self.images_NHW[indices])
        return torch.from_numpy(images), torch.from_numpy(self.labels[indices])


def fingerprint(name: str, split: str, content: Mapping[str, str], policy: str) -> str:
    """Return the SHA-256 that identifies data: its name, part, files (name -> size and content hash) and policy."""
    facts = {"name": name, "split": split, "content": dict(sorted(content.items())), "policy": policy}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def stratified_split(labels: np.ndarray, *key: int, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Split ``range(len(labels))`` into sorted (train, held-out) index arrays, nine to one.

    Samples are shuffled by ``key`` within each class, the classes are laid end to end, and every tenth sample is held
    out; so each class gives its tenth, give or take one sample. ``groups`` (int64 [N]) keeps samples together that must
    not be parted, such as exact duplicates: a group follows its first member. With fewer than ten groups nothing is
    held out.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    _, first = np.unique(groups, return_index=True)
    first.sort()
    shuffled = first[keyed_permutation(len(first), *key, purpose="split")]
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    held = np.isin(groups, groups[by_class[9::10]])
    return np.flatnonzero(~held), np.flatnonzero(held)
