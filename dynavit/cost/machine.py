"""The machine that speed is measured on."""

from __future__ import annotations

import timm
import torch


def machine(device: torch.device | str) -> str:
    """Say what speed was measured on: the device, the threads that torch uses, and versions."""
    if torch.device(device).type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device} ({torch.backends.cpu.get_cpu_capability()})"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, timm {timm.__version__}"
