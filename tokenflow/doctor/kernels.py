"""Which kernels this machine runs, each tried once on small tensors."""

import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from tokenflow.doctor.findings import Finding, findings
from tokenflow.ops.nearest_code import nearest_code


def kernels() -> Iterator[Finding]:
    """Which kernels this machine runs, each tried once on the device that training would use."""
    found = findings("kernels in use")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features, codebook = torch.randn(64, 8, device=device), torch.randn(512, 8, device=device)
    chosen = nearest_code([features], [codebook], weights=[1.0])
    agree = torch.equal(chosen, nearest_code([features], [codebook], weights=[1.0], backend="dense"))
    yield found(
        "nearest code",
        "ok" if agree else "broken",
        f"auto on {device.type}: {'equals' if agree else 'differs from'} the reference",
        "" if agree else "please report this with the output of tokenflow doctor --json",
    )
    working = sdpa_backends(device)
    yield found("attention", "ok", f"torch SDPA on {device.type}: {', '.join(working)}")


def sdpa_backends(device: torch.device) -> list[str]:
    """Backends of torch's attention that run on the device (bf16 on a GPU, fp32 on a CPU), fastest first."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    query = torch.zeros(1, 2, 64, 64, device=device, dtype=dtype)
    working = []
    for backend in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with sdpa_kernel(getattr(SDPBackend, backend)):
                    F.scaled_dot_product_attention(query, query, query)
            except RuntimeError:
                continue
        working.append(backend.removesuffix("_ATTENTION").lower())
    return working
