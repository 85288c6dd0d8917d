"""How a batch reaches the device: the host counts, and sends all numbers of a step in one piece, without waiting."""
from __future__ import annotations

import numpy as np
import torch


def send(parts: list, device: torch.device, into: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Whole numbers, a list, array or tensor for each part, any shape -> int64 tensors on the device, flat.

    into  (all numbers,) int64: where to put them, for a captured step that reads them there
    """
    flat = [np.asarray(part, dtype=np.int64).reshape(-1) for part in parts]
    host = torch.from_numpy(np.concatenate(flat))
    if device.type == "cuda":
        host = host.pin_memory()  # torch keeps the pinned copy until it is sent
    sent = host.to(device, non_blocking=True) if into is None else into.copy_(host, non_blocking=True)
    return list(sent.split([len(part) for part in flat]))


def block_table(sequences: list, width: int | None = None, rows: int | None = None) -> np.ndarray:
    """The sequences' pages, (rows, width) int64; page 0 where there is none. As wide as the longest unless said."""
    width = width or max(len(s.blocks) for s in sequences)
    table = np.zeros((rows or len(sequences), width), dtype=np.int64)
    for row, s in enumerate(sequences):
        table[row, : len(s.blocks)] = s.blocks
    return table
