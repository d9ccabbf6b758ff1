"""The package's own timing, under the name that the files here use."""

from ganscale.bench.timing import fastest

__all__ = ["fastest"]
