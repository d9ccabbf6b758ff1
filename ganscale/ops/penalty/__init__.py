"""The gradient penalty: four sweeps over a critic that is watched as it runs, and plain autograd for all others.

Read in this order: ``public`` has what users call; ``plan`` decides for a critic; ``trace`` and
``record`` watch it run and write it down as a ``program`` by the ``rules``; ``fdtw`` runs the program, ``op`` makes an
operator of torch of that, with ``masks`` of a bit an element. ``piecewise`` is the second-best way: autograd without
the terms that are zero.
"""

from ganscale.ops.penalty.public import explain_choice, gradient_penalty

__all__ = ["explain_choice", "gradient_penalty"]
