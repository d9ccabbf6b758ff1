"""Distances between image sets and image quality; every value can say how it was measured.

``METRICS`` are the metrics of a whole set that ``ganscale evaluate`` computes: name -> function of two feature sets.
``EXTRACTORS`` make the features of them: name -> function of a data set's fingerprint and of a function that reads it.
Nothing here knows of data sources, models or training.
"""

from collections.abc import Callable

from ganscale.metrics.classifier_cache import in_domain_classifier, load_classifier, save_classifier
from ganscale.metrics.distances import KernelDistance, kernel_distance
from ganscale.metrics.evaluation import METRICS, MetricValue, Reference
from ganscale.metrics.features import Extractor, features_of
from ganscale.metrics.frechet import Moments, frechet_distance
from ganscale.metrics.image_quality import ms_ssim, psnr, ssim
from ganscale.metrics.in_domain import InDomainCNN, TrainingSet, train_classifier
from ganscale.metrics.modes import GaussianGridReport, gaussian_grid_report
from ganscale.metrics.neighbours import prdc
from ganscale.metrics.stability import Oscillation, find_oscillation, gradient_ratio, mode_divergence

EXTRACTORS: dict[str, Callable[..., Extractor]] = {"in-domain-cnn": in_domain_classifier}

__all__ = [
    "EXTRACTORS",
    "METRICS",
    "Extractor",
    "GaussianGridReport",
    "InDomainCNN",
    "KernelDistance",
    "MetricValue",
    "Moments",
    "Oscillation",
    "Reference",
    "TrainingSet",
    "features_of",
    "find_oscillation",
    "frechet_distance",
    "gaussian_grid_report",
    "gradient_ratio",
    "in_domain_classifier",
    "kernel_distance",
    "load_classifier",
    "mode_divergence",
    "ms_ssim",
    "prdc",
    "psnr",
    "save_classifier",
    "ssim",
    "train_classifier",
]
