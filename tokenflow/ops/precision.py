"""Whether a processor has bf16 arithmetic of its own; without it bf16 is emulated and slower than fp32."""

import torch


def has_fast_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether `device` multiplies bf16 matrices faster than fp32 ones, by what it says of itself.

    An old torch, which does not tell of processors, counts as no.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
