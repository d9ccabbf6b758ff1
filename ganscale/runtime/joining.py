"""Whether a cluster can be joined: asked once before Ray tries twenty times, and told in one line."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
from collections.abc import Iterator

from ganscale.errors import ResourceError, UserError

ANSWER_S = 5.0  # for a cluster's head to accept a connection
TOKEN_REMEDY = "copy ~/.ray/auth_token from the head node of the cluster (mode 600), or set RAY_AUTH_TOKEN"
_WRONG_TOKEN = "InvalidAuthToken"  # as the cluster says it
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")  # of the cluster, then of this process
_LOCAL = "leave it out for a local Ray"


def check_address(address: str, *, verbose: bool) -> None:
    """Raise ResourceError where no Ray listens at HOST:PORT, UserError where it wants another token."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "://" in address:
        return
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        words = getattr(error, "strerror", None) or error
        raise ResourceError("--address", "be that of a running Ray cluster", f"{address} ({words})", _LOCAL) from None
    from ray._raylet import GcsClient
    from ray.exceptions import AuthenticationError, RayError

    try:
        with contextlib.nullcontext() if verbose else _no_native_stderr():
            GcsClient(address=address)
    except AuthenticationError as error:
        raise refusal(address, error) from None
    except RayError:  # Ray's client has given up after some 40 s; ray.init would let it try 20 times
        rule, got = "be that of a running Ray cluster", f"{address}, where something else listens, or a head that hangs"
        remedy = "its port is 6379 unless it was chosen otherwise; the dashboard's port takes jobs: ganscale submit"
        raise ResourceError("--address", rule, got, remedy) from None


def refusal(address: str, error: BaseException) -> UserError:
    """Return the error to show for what ``ray.init(address)`` raised."""
    words = str(error).strip() or type(error).__name__
    if _WRONG_TOKEN in words or _WRONG_TOKEN in str(error.__cause__):
        return UserError("the Ray token", f"be that of the cluster at {address}", "another one", TOKEN_REMEDY)
    found = _VERSIONS.findall(words)
    if "Version mismatch" in words and len(found) == 2:
        return _other_versions(address, *found)
    return ResourceError("--address", "reach a Ray cluster", f"{address} ({words.splitlines()[0]})", _LOCAL)


def _other_versions(address: str, theirs: tuple[str, str], ours: tuple[str, str]) -> UserError:
    pairs = zip(("Ray", "Python"), theirs, ours, strict=True)
    names, there, here = zip(*(pair for pair in pairs if pair[1] != pair[2]), strict=True)
    remedy = {
        ("Ray",): f"install ray=={theirs[0]} here, or start the cluster with {ours[0]}",
        ("Python",): f"use Python {theirs[1]} here, or send a job, which the cluster's Python runs: ganscale submit",
    }.get(names, f"use ray=={theirs[0]} with Python {theirs[1]} here, or start the cluster from this environment")
    rule = f"be {' and '.join(there)} as on the cluster at {address}"
    return UserError(" and ".join(names), rule, " and ".join(here), remedy)


@contextlib.contextmanager
def _no_native_stderr() -> Iterator[None]:
    """Keep what compiled code writes to the stderr of this process out of sight; no setting of Ray's does."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
