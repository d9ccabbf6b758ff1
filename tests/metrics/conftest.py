"""The built-in garments and one judge trained on them, shared by every test of the metrics."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

import ganscale
from ganscale.metrics import InDomainCNN, TrainingSet, in_domain_classifier

BUILTIN = Path(ganscale.__file__).parent / "data" / "builtin"
HELD_OUT = 1000


@pytest.fixture(scope="session")
def garments() -> TrainingSet:
    """9,000 training and 1,000 held-out images of the built-in sample, in one fixed shuffled order."""
    raw_images = gzip.decompress((BUILTIN / "t10k-images-idx3-ubyte.gz").read_bytes())
    raw_labels = gzip.decompress((BUILTIN / "t10k-labels-idx1-ubyte.gz").read_bytes())
    images = torch.from_numpy(np.frombuffer(raw_images, np.uint8, offset=16).reshape(-1, 1, 28, 28).copy())
    labels = torch.from_numpy(np.frombuffer(raw_labels, np.uint8, offset=8).astype(np.int64))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(5))
    held, kept = order[:HELD_OUT], order[HELD_OUT:]
    return TrainingSet(images[kept], labels[kept], images[held], labels[held])


@pytest.fixture(scope="session")
def judge(garments: TrainingSet, tmp_path_factory: pytest.TempPathFactory) -> InDomainCNN:
    """The in-domain CNN as a first use would train it (about 14 s of CPU), through an empty cache."""
    directory = tmp_path_factory.mktemp("cache")
    return in_domain_classifier("garments", lambda: garments, directory=directory, say=lambda line: None)
