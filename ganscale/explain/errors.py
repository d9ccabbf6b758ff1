"""What a user can get wrong about an explanation, one class a kind. All are ``UserError``: exit code 2, nothing
written.
"""

from __future__ import annotations

from ganscale.errors import UserError


class CallableError(UserError):
    """The function to explain does not map [n, ...] to [n] finite numbers row by row."""


class ExplainInputError(UserError):
    """Inputs that are missing, empty, of another shape, or outside the declared value range."""


class ExplainOptionError(UserError):
    """An option that the method does not have, or a value that it cannot work with."""


class ExplainTargetError(UserError):
    """A target that is unknown, or that the method cannot serve."""


class ExplanationFileError(UserError):
    """A saved explanation that is missing, truncated, altered, or of another schema."""


class LayerError(UserError):
    """A layer name that the network does not have."""


class ZeroGradientError(UserError):
    """A gradient that is exactly zero for a whole sample, so that every map of it would be empty."""
