from pathlib import Path

import pytest
import torch

from tokenflow.ops.precision import has_fast_bf16

CPU_FLAGS = Path("/proc/cpuinfo")


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not tell of processors")
@pytest.mark.skipif(not CPU_FLAGS.is_file(), reason="needs /proc/cpuinfo to compare with")
def test_a_processor_has_bf16_when_the_kernel_says_so():
    flags = CPU_FLAGS.read_text().split()
    assert has_fast_bf16() == ("avx512_bf16" in flags or "amx_bf16" in flags)
