"""Distances between image sets, image quality, diversity; every value can say how it was measured.

``METRICS`` are the metrics of a whole set that ``ganscale evaluate`` computes: name -> function of two feature sets.
Nothing here knows of data sources, models or training.
"""

from ganscale.metrics.classifier_cache import cache_dir, in_domain_classifier, load_classifier, save_classifier
from ganscale.metrics.distances import KernelDistance, energy_distance, kernel_distance
from ganscale.metrics.diversity import class_histogram, histogram_kl, neighbour_distance_ratio
from ganscale.metrics.evaluation import METRICS, MetricValue, Reference, compare, evaluate_features, measure
from ganscale.metrics.features import Extractor, features_of
from ganscale.metrics.frechet import Moments, frechet_distance
from ganscale.metrics.image_quality import ms_ssim, psnr, ssim
from ganscale.metrics.in_domain import InDomainCNN, TrainingSet, train_classifier
from ganscale.metrics.modes import GaussianGridReport, gaussian_grid_report
from ganscale.metrics.neighbours import nearest_distances, own_nearest_distances, prdc

__all__ = [
    "METRICS",
    "Extractor",
    "GaussianGridReport",
    "InDomainCNN",
    "KernelDistance",
    "MetricValue",
    "Moments",
    "Reference",
    "TrainingSet",
    "cache_dir",
    "class_histogram",
    "compare",
    "energy_distance",
    "evaluate_features",
    "features_of",
    "frechet_distance",
    "gaussian_grid_report",
    "histogram_kl",
    "in_domain_classifier",
    "kernel_distance",
    "load_classifier",
    "measure",
    "ms_ssim",
    "nearest_distances",
    "neighbour_distance_ratio",
    "own_nearest_distances",
    "prdc",
    "psnr",
    "save_classifier",
    "ssim",
    "train_classifier",
]
