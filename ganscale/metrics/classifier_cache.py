"""Keeps trained in-domain CNNs on disk, so that a data set's judge is trained once.

An entry is a directory ``in-domain-cnn-<key>`` with ``weights.safetensors`` and ``classifier.json`` (recipe, accuracy,
hash). It is written under a temporary name and renamed when whole; the hash is checked at every load.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ganscale.errors import CheckpointError
from ganscale.files import cache_dir, new_directory
from ganscale.metrics.in_domain import InDomainCNN, TrainingSet, recipe, train_classifier

SCHEMA = 1
WEIGHTS, FACTS = "weights.safetensors", "classifier.json"

Say = Callable[[str], None]


def in_domain_classifier(
    fingerprint: str,
    read: Callable[[], TrainingSet],
    *,
    seed: int = 0,
    threads: int = 1,
    directory: Path | None = None,
    say: Say | None = None,
) -> InDomainCNN:
    """Load the in-domain CNN of the data with this ``fingerprint``, or read the data, train it and keep it.

    ``read`` is called only where nothing usable is cached. ``directory`` defaults to ``cache_dir()``. ``say`` gets one
    line each for a training, for a damaged entry (which is replaced) and for a cache that cannot be written (the
    network is returned all the same); by default a log warning. Raises what ``read`` and ``train_classifier`` raise.
    """
    say = say or logging.getLogger("ganscale.metrics").warning
    entry = (directory or cache_dir()) / f"in-domain-cnn-{_key(fingerprint, seed)}"
    if entry.exists():
        try:
            return load_classifier(entry)
        except CheckpointError as error:
            say(f"{error}; training it again")
    say("training the in-domain CNN on this data (once; it is kept for later)")
    network = train_classifier(*read(), seed=seed, threads=threads)
    say(f"in-domain CNN: held-out accuracy {network.held_out_accuracy:.3f} ({network.objective})")
    try:
        save_classifier(network, entry, fingerprint=fingerprint)
    except OSError as error:
        say(f"the in-domain CNN could not be kept in {entry}: {error}; it will be trained again next time")
    return network


def save_classifier(network: InDomainCNN, entry: Path, *, fingerprint: str = "") -> None:
    """Write the network as the directory ``entry``, whole or not at all; an entry of that name is replaced."""
    weights = network.to_bytes()
    facts = {
        "schema": SCHEMA,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "channels": network.channels,
        "classes": network.classes,
        "objective": network.objective,
        "held_out_accuracy": network.held_out_accuracy,
        "recipe": network.recipe,
        "labels": list(network.labels),
        "fingerprint": fingerprint,
        "torch": torch.__version__,
    }
    try:
        with new_directory(entry) as aside:
            (aside / WEIGHTS).write_bytes(weights)
            (aside / FACTS).write_text(json.dumps(facts, indent=2))
    except OSError:
        if not (entry / FACTS).exists():  # else another process has just written the same
            raise


def load_classifier(entry: Path) -> InDomainCNN:
    """Read what ``save_classifier`` wrote; raises ``CheckpointError`` naming the file that is missing or altered."""
    try:
        facts = json.loads((entry / FACTS).read_text())
        weights = (entry / WEIGHTS).read_bytes()
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _refusal(entry, f"be readable ({FACTS} and {WEIGHTS})", str(error)) from None
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA:
        raise _refusal(entry / FACTS, f"be of schema {SCHEMA}", str(facts)[:60])
    if hashlib.sha256(weights).hexdigest() != facts.get("sha256"):
        raise _refusal(entry / WEIGHTS, "have the hash that was written beside it", "another one")
    try:
        network = InDomainCNN(facts["channels"], facts["classes"], objective=facts["objective"])
        network.load_state_dict(safetensors.torch.load(weights))
        network.held_out_accuracy = float(facts["held_out_accuracy"])
        network.recipe = dict(facts["recipe"])
        network.labels = tuple(facts.get("labels", ()))
    except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise _refusal(entry / FACTS, "describe the weights beside it", str(error).splitlines()[0]) from None
    return network.eval().requires_grad_(False)


def _refusal(path: Path, rule: str, got: str) -> CheckpointError:
    return CheckpointError(f"the cached classifier {path}", rule, got, "delete it")


def _key(fingerprint: str, seed: int) -> str:
    text = json.dumps({"schema": SCHEMA, "data": fingerprint, **recipe(seed)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
