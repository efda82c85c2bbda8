"""Models whose weights lie in pieces on several processes: under FSDP2, or DeepSpeed's ZeRO of stage 3."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def in_pieces(tensor: Any) -> bool:
    """Whether a tensor is cut into pieces."""
    return isinstance(tensor, DTensor) or hasattr(tensor, "ds_id")


@contextlib.contextmanager
def ready_to_answer(model: nn.Module) -> Iterator[None]:
    """Prepare a model for calls of its parts one by one.

    The layers put themselves together when they are called, so all processes must call them alike. The
    tensors that FSDP2 leaves to the root of the model are whole until the end. Then everything lies in pieces
    again, in every process: a layer is put together by all of them or by none.
    """
    root = model if isinstance(model, FSDPModule) else None
    if root is not None:
        root.unshard()
    try:
        yield
    finally:
        put_away(model)


def put_away(model: nn.Module) -> None:
    """Drop what FSDP2 has put together, so that the next call of a layer reads the pieces again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
