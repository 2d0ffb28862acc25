"""A pretended second device, for tests on machines without one.

Inside ``elsewhere()`` the models of a study are loaded to a device that torch calls
``lazy``. Its tensors have their numbers in the processor's memory, and the processor's
kernels compute with them, so that results are the same up to the choice of a kernel
(attention has more than one). But they are refused together with tensors that were left
on the processor, as CUDA refuses them, and so is ``numpy()`` without ``force``.

``lazy`` is one of torch's own names, so that a backward pass runs without a
driver. FakeTensorMode finds mixed devices too, and has no numbers: the private step
reads norms, and would stop there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Self

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAR: Final = torch.device("lazy")

_aten = torch.ops.aten
_BETWEEN: Final = (_aten.copy_, _aten._to_copy)
_TAKES_NEAR_PLACES: Final = (_aten.index, _aten.index_put, _aten.index_put_)


class Far(torch.Tensor):
    """A tensor on the pretended device; ``held`` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Self:
        """Of the same shape, strides and type, without gradient."""
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=FAR,
        )
        made.held = held
        return made

    def numpy(self, *, force: bool = False) -> Any:
        """Torch's own has no rule for other classes than its own."""
        if not force:
            raise TypeError("the numbers are on the device; copy them first")
        return self.detach().cpu().numpy()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        _types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """As on one device."""
        return _computed(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees the operations that make tensors too."""

    def __torch_dispatch__(
        self,
        func: Any,
        _types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute by the processor; the outcome is where a device would have it."""
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    far = [x for x in given if isinstance(x, Far)]
    asked = kwargs.get("device")
    goes_far = bool(far) if asked is None else torch.device(asked) == FAR
    if not far and not goes_far:
        return func(*args, **kwargs)
    _require_one_device(func, args, given)
    if goes_far and asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    owners = {id(x.held): x for x in far} | {id(x): x for x in given}
    out = func(*tree_map(_held, args), **tree_map(_held, kwargs))

    def placed(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in owners:
            return owners[id(x)]
        return Far(x) if goes_far else x

    return tree_map(placed, out)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, Far) else x


def _require_one_device(
    func: Any, args: tuple[Any, ...], given: Sequence[torch.Tensor]
) -> None:
    """As CUDA does: single numbers may lie anywhere, all else must be on one device."""
    kind = func.overloadpacket
    if kind in _BETWEEN:
        return
    if kind in _TAKES_NEAR_PLACES and isinstance(args[0], Far):
        values = [x for x in args[2:3] if isinstance(x, torch.Tensor)]
        given = [args[0], *values]
    near = [x for x in given if not isinstance(x, Far) and x.dim() > 0]
    if near and any(isinstance(x, Far) for x in given):
        raise RuntimeError(
            f"{func}: a tensor of shape {tuple(near[0].shape)} is on the processor, "
            "and others are on the device"
        )


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Models are loaded to the pretended device, and no other is mixed with it."""
    future = torch.__future__
    with pytest.MonkeyPatch.context() as patch, _Mode():
        # Else torch would set the numbers of a parameter of the processor's.
        patch.setattr(future, "get_overwrite_module_params_on_conversion", lambda: True)
        patch.setattr("secfed.models.device.chosen_device", lambda: FAR)
        patch.setattr("secfed.models.device._repeat_sums", lambda: None)
        patch.setattr(torch, "autocast", _autocast)
        # Operations come whole in inference mode, and torch.tensor not at all.
        patch.setattr(torch, "inference_mode", torch.no_grad)
        patch.setattr(torch, "tensor", _made_near(torch.tensor))
        patch.setattr(torch, "as_tensor", _made_near(torch.as_tensor))
        yield


def _made_near(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """As torch's, which makes a tensor on the processor and moves it then."""

    def made(data: Any, *, device: Any = None, **more: Any) -> torch.Tensor:
        found = make(data, **more)
        return found if device is None else found.to(device)

    return made


def _autocast(device: str, **_: object) -> contextlib.AbstractContextManager[None]:
    """Float32: torch has no other number format for a device that it does not know."""
    assert device == FAR.type, "a number format for another device than the model's"
    return contextlib.nullcontext()
