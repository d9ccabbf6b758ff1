"""Watching a critic run: what depends on x is written down instead of computed, for as long as it is understood.

A critic's forward pass runs once, as ordinary Python, on a ``Traced`` x. Whatever does not depend on x (weights, their
spectral norms, the embedding of a condition) is computed as always, with its graph. Calls on what does depend on x
come to the session, which writes each down as a node. At the first call it does not understand it computes what it has
written, in the same order by the same calls, and lets the rest of the pass run as ordinary autograd: nothing ran twice,
nothing is guessed, and the watched pass had every effect of an ordinary one. Since each pass is watched anew, no plan
can be out of date.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from ganscale.errors import UserError
from ganscale.ops.penalty import piecewise as penalty_piecewise
from ganscale.ops.penalty.program import Node, write

LOW_OR_SINGLE = (torch.float32, torch.float16, torch.bfloat16)  # what autocast casts


class NotUnderstood(Exception):
    """Why a call cannot be written down; the session turns to ordinary autograd."""


class Unwatched(BaseException):
    """A value was used where the session cannot follow; the pass has to run again on x itself."""


class Ref(int):
    """A value in a call that was written down."""


class Traced(Tensor):
    """A tensor that is not there yet: shape, dtype and device are real, the numbers come when somebody asks."""

    session: Session
    value: int
    aliased: bool  # other Tensors may share its memory

    @staticmethod
    def __new__(cls, session: Session, value: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device):
        new = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device, requires_grad=True)
        new.session, new.value, new.aliased = session, value, False
        return new

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Reached when the pass is over: a critic kept this value, and somebody uses it."""
        session = next(part for part in _leaves(args, kwargs) if isinstance(part, Traced)).session
        return session.call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Reached from code that does not announce its calls (TorchScript, functorch, C++)."""
        traced = next(part for part in _leaves(args, kwargs) if isinstance(part, Traced))
        traced.session.unwatched = f"{func} is called below the level of torch functions"
        raise Unwatched(traced.session.unwatched)


def _leaves(args: tuple, kwargs: dict | None) -> list:
    parts = [*args, *(kwargs or {}).values()]
    return [leaf for part in parts for leaf in (part if isinstance(part, (list, tuple)) else (part,))]


METADATA = {
    getattr(Tensor, name).__get__
    for name in ("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "is_sparse", "is_quantized",
                 "is_meta", "is_mkldnn", "is_nested", "is_mps", "is_xpu", "is_cpu", "names")
    if hasattr(Tensor, name)
} | {Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.is_floating_point,
     Tensor.is_complex, Tensor.__len__, torch.numel, torch.is_floating_point, torch.is_complex}  # fmt: skip


class Session(TorchFunctionMode):
    """One pass of a critic on x [N, ...], watched."""

    def __init__(self, x: Tensor, *, impl: str = "auto", dry: bool = False) -> None:
        super().__init__()
        self.x = x
        self.impl = impl  # of activations that are run as they come
        self.dry = dry  # stop at the first call that is not understood
        self.watching = True  # calls are written down
        self.pending = True  # what was written down is not computed
        self.reason = ""  # why the session turned to ordinary autograd
        self.unwatched = ""
        self.nodes: list[Node] = []
        self.dtypes: list[torch.dtype] = [x.dtype]
        self.tensors: list[Tensor] = []
        self.positions: dict[int, int] = {}
        self.tape: list[tuple[Callable, tuple, dict, int]] = []
        self.results: dict[int, Tensor] = {0: x}
        self.traced: list[weakref.ref[Traced]] = []
        self.root: object = None
        self.modules: list[nn.Module] = []
        self.autocast = _autocast(x.device.type)
        self.thread = threading.get_ident()
        self.saving = _saving()
        self.versions: list[int] = []  # of the tensors when they were first read

    # --- the pass ----------------------------------------------------------------------------------------------------

    def run(self, critic: Callable[[Tensor], object]) -> object:
        """Return what the critic returns: a Traced where all was understood, else what ordinary autograd made of it."""
        self.root = critic
        try:
            with ExitStack() as stack:
                for register, hook in (
                    (hooks.register_module_forward_pre_hook, self._enter),
                    (hooks.register_module_forward_hook, self._leave),
                ):
                    stack.callback(register(hook).remove)
                stack.enter_context(self)
                return self._checked(critic(self.new(0)))
        except (Exception, Unwatched) as error:
            if not self.pending and not self.unwatched:  # a mistake of the critic's own
                raise
            # Code that asks a Traced for memory fails in ways of its own; where it is the critic that fails, it will
            # fail again.
            self.reason = self.unwatched or self._named(f"raises {type(error).__name__} when it is watched")
        finally:
            self.watching = False
        self.pending = False
        if self.dry:
            return None
        return unwatched(critic, self.x, self.impl)

    def _checked(self, output: object) -> object:
        if self.pending and self._changed():
            self.unwatched = self._named("writes into a weight that it has read")
        if self.unwatched:  # maybe somebody caught the exception
            raise Unwatched(self.unwatched)
        return output if self.pending else self.real(output)

    def new(self, value: int) -> Traced:
        made = Traced(self, value, self.shape(value), self.dtypes[value], self.x.device)
        self.traced.append(weakref.ref(made))
        return made

    def shape(self, value: int) -> tuple[int, ...]:
        return (self.x.shape[0], *self.nodes[value - 1].shape) if value else tuple(self.x.shape)

    def program(self, output: Traced) -> tuple[str, list[Tensor]]:
        """Return the text of the program that computes ``output``, and the tensors it reads."""
        text, positions = write(self.nodes, self.x.shape[1:], output.value)
        return text, [self.tensors[position] for position in positions]

    # --- calls -------------------------------------------------------------------------------------------------------

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if Traced in types:
            return self.call(func, args, kwargs)
        if self.tensors and self.pending and self._overwrites(func, args, kwargs):
            self.give_up(self._named("writes into a weight that it has read"))
        return penalty_piecewise.call(func, args, kwargs, self.impl)

    def call(self, func: Callable, args: tuple, kwargs: dict) -> object:
        """Answer a call on values that depend on x."""
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if self.watching:
            try:
                return self._record(func, args, kwargs)
            except NotUnderstood as why:
                self.give_up(self._named(str(why)))
        return penalty_piecewise.call(func, *self._real_arguments(args, kwargs), self.impl)

    def _record(self, func: Callable, args: tuple, kwargs: dict) -> Traced:
        from ganscale.ops.penalty.record_maps import RECORDERS, describe

        if not torch.is_grad_enabled():
            if _inside_function():
                self.unwatched = self._named("calls a torch.autograd.Function, whose backward is its own")
                raise Unwatched(self.unwatched)
            raise NotUnderstood("runs with gradients off")
        if _autocast(self.x.device.type) != self.autocast:
            raise NotUnderstood("changes autocast")
        if _saving() is not self.saving:
            # Checkpointing and the like, which would miss, or get twice, what is computed later.
            self.unwatched = self._named("changes how tensors are saved")
            raise Unwatched(self.unwatched)
        if func not in RECORDERS:
            raise NotUnderstood(describe(func))
        references = [_references(part) for part in (args, kwargs)]
        try:
            result = RECORDERS[func](self, *args, **kwargs)
        except TypeError:
            raise NotUnderstood(describe(func)) from None
        self.tape.append((func, *references, result.value))
        return result

    def add(self, kind: str, inputs: list[Traced], tensors: list[Tensor], options: tuple, shape: tuple, dtype=None):
        """Write a node down and return its output."""
        node = Node(kind, tuple(t.value for t in inputs), tuple(map(self._position, tensors)), options, tuple(shape))
        self.nodes.append(node)
        self.dtypes.append(dtype or functools.reduce(torch.promote_types, (self.dtypes[t.value] for t in inputs)))
        return self.new(len(self.nodes))

    def rebind(self, target: Traced, result: Traced) -> Traced:
        """Let ``target`` mean ``result``, as after an operation in place."""
        if target.value == 0 or target.aliased or result.shape != target.shape:
            raise NotUnderstood("writes into a value that is used elsewhere")
        target.value = result.value
        return target

    def _position(self, tensor: Tensor) -> int:
        if id(tensor) not in self.positions:
            self.positions[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
            self.versions.append(tensor._version)
        return self.positions[id(tensor)]

    # --- turning to ordinary autograd --------------------------------------------------------------------------------

    def give_up(self, reason: str) -> None:
        """Compute what was written down; from here on calls are run as they come."""
        self.reason = reason
        if self.dry:
            self.unwatched = reason
            raise Unwatched(reason)
        self._compute()

    def _compute(self) -> None:
        self.watching = self.pending = False
        with torch.enable_grad(), ExitStack() as stack:
            if self.autocast:
                stack.enter_context(torch.autocast(self.x.device.type, dtype=self.autocast))
            for func, args, kwargs, value in self.tape:
                arguments = (_filled(args, self.results), _filled(kwargs, self.results))
                self.results[value] = penalty_piecewise.call(func, *arguments, self.impl)
        alive = {t.value for t in (ref() for ref in self.traced) if t is not None}
        self.results = {value: result for value, result in self.results.items() if value in alive or not value}
        self.tape.clear()

    def _real_arguments(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return self.real(args), self.real(kwargs)

    def _overwrites(self, func: Callable, args: tuple, kwargs: dict) -> bool:
        """Tell whether a call writes into memory of a tensor that a node reads."""
        name = getattr(func, "__name__", "")
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        written = (args[:1] or tuple(kwargs.values())) if in_place else ()
        targets = _leaves((kwargs.get("out"), *written), None)
        storages = [target.untyped_storage()._cdata for target in targets if type(target) in (Tensor, nn.Parameter)]
        return bool(storages) and any(tensor.untyped_storage()._cdata in storages for tensor in self.tensors)

    def _changed(self) -> bool:
        return self.versions != [tensor._version for tensor in self.tensors]

    def _require_unchanged(self) -> None:
        if self._changed():
            raise UserError(
                "a value that a critic keeps from its pass in gradient_penalty",
                "be used before the critic's parameters change",
                "a parameter that was written to since",
                "use impl='reference', which computes such values at once",
            )

    def real(self, part: object) -> object:
        """Replace every Traced of this session by its tensor."""
        if self.pending:  # of a critic that kept a value and uses it after the pass, or whose output is of no use
            self._require_unchanged()
            self._compute()
        return _filled(_references(part), self.results)

    # --- modules -----------------------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: tuple) -> tuple | None:
        if threading.get_ident() != self.thread:
            return None
        self.modules.append(module)
        apart = args and all(isinstance(arg, Tensor) and not isinstance(arg, Traced) for arg in args)
        if self.watching and not apart and (why := _interferes(module)):
            self.give_up(self._named(str(why)))
        return None if self.watching else self.real(args)

    def _leave(self, module: nn.Module, args: tuple, output: object) -> None:
        if threading.get_ident() == self.thread and self.modules:
            self.modules.pop()

    def _named(self, what: str) -> str:
        """Put the module that is running in front of ``what`` it does, as "BatchNorm2d at blocks.0.1 ..."."""
        if not self.dry:
            return what  # nobody reads it
        if not self.modules:
            return f"the critic {what}"
        root = self.root if isinstance(self.root, nn.Module) else self.modules[0]
        module = self.modules[-1]
        path = next((name for name, other in root.named_modules() if other is module), "")
        return f"{type(module).__name__} at {path} {what}" if path else f"{type(module).__name__} {what}"


def unwatched(critic: Callable[[Tensor], object], x: Tensor, impl: str) -> object:
    """Run a pass as ordinary autograd, its piecewise linear activations without second derivatives."""
    with penalty_piecewise.PiecewiseMode(impl):
        return critic(x)


def _autocast(device: str) -> torch.dtype | None:
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def _inside_function() -> bool:
    """Tell whether the caller runs inside the forward of a torch.autograd.Function."""
    frame = sys._getframe()
    while frame is not None and frame.f_code is not torch.autograd.Function.apply.__func__.__code__:
        frame = frame.f_back
    return frame is not None


def _saving() -> object:
    """The function that packs tensors for a backward pass, as checkpointing sets one."""
    packing = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return packing[0] if packing else None


def _interferes(module: nn.Module) -> str:
    """Say why what a module does with its input may not be seen in its calls; the empty string where it is."""
    before = [hook for hook in module._forward_pre_hooks.values() if type(hook) not in (SpectralNorm, WeightNorm)]
    if before or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "has hooks"
    if type(module).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel", "DataParallel"):
        return "acts on its parameters around its pass"
    return ""


def global_hooks() -> bool:
    """Tell whether there are hooks of all modules, other than those of sessions."""
    registered = [hooks._global_forward_pre_hooks, hooks._global_forward_hooks]
    registered += [hooks._global_backward_hooks, hooks._global_backward_pre_hooks]
    found = [hook for group in registered for hook in group.values()]
    return any(not isinstance(getattr(hook, "__self__", None), Session) for hook in found)


def _references(part: object) -> object:
    if isinstance(part, Traced):
        return Ref(part.value)
    if type(part) in (list, tuple):
        return type(part)(_references(item) for item in part)
    if type(part) is dict:
        return {key: _references(item) for key, item in part.items()}
    return part


def _filled(part: object, results: dict[int, Tensor]) -> object:
    if type(part) is Ref:
        return results[part]
    if type(part) in (list, tuple):
        return type(part)(_filled(item, results) for item in part)
    if type(part) is dict:
        return {key: _filled(item, results) for key, item in part.items()}
    return part
