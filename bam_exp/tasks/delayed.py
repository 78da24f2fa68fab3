"""Reading numbers of a device without waiting for it."""

import torch
from torch import Tensor


class DelayedScalar:
    """A number whose copy to the host begins at one step and is read at a later one, when it has long arrived."""

    def __init__(self) -> None:
        self._pending: tuple[int, Tensor, torch.cuda.Event | None] | None = None

    def put(self, step: int, value: Tensor) -> None:
        """Begin to copy the value of a step; one that has not been read is dropped."""
        if not value.is_cuda:
            self._pending = (step, value.detach().clone(), None)
            return
        host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        host.copy_(value.detach(), non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        self._pending = (step, host, copied)

    def take(self) -> tuple[int, float] | None:
        """The step and value of the last `put`, once."""
        if self._pending is None:
            return None
        (step, value, copied), self._pending = self._pending, None
        if copied is not None:
            copied.synchronize()
        return step, float(value)
