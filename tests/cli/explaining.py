"""What the tests of ``ganscale explain`` share: its shortest calls, and a user's own module of classifiers."""

from __future__ import annotations

from pathlib import Path

from calls import call

MODULE = """
import torch

def halves(images):
    x = images.flatten(1)
    return torch.stack([x[:, :392].mean(1), x[:, 392:].mean(1)], dim=1)
halves.labels = ("upper", "lower")

wrong_size = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))

def of_bytes(images):
    if images.min() < 0:
        raise ValueError("these are no bytes")
    return images.flatten(1)[:, :2]

def constant(images):
    return torch.zeros(len(images), 2)

def constant_with_a_gradient(images):
    return (images.flatten(1) * 0).sum(1, keepdim=True).expand(-1, 2) + torch.tensor([0.0, 1.0])

def broken(images):
    return images.flatten(1)[:, :2] / 0

def raises_later(images):
    return {2: images.flatten(1)[:, :2], 1: images.flatten(1)[:, :2]}[min(len(images), 3)]

def named_by_number(images):
    return images.flatten(1)[:, :2]
named_by_number.labels = 2

def of_integers(images):
    return (images.flatten(1)[:, :2] * 100).to(torch.int8)

def breaks_later(images):
    x = images.flatten(1)
    return torch.where((x[:, :1] == -1) & (x[:, 400:401] > -0.9), float("nan"), x[:, 400:402])
"""
EXPLAIN = ["explain", "RUN", "--workers", "0", "--num-samples", "2"]
SHAP = [*EXPLAIN, "--method", "kernel-shap", "--set", "cells=2"]
GRADIENTS = [*EXPLAIN, "--method", "integrated-gradients"]


def of(arguments: list[str], run: Path):
    return call(*(argument.replace("RUN", str(run)) for argument in arguments))
