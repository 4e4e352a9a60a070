import subprocess
import sys

import pytest

from benchmarks.memory import number_of_fresh_process


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("megabytes", [0, 200])
def test_the_peak_counts_what_was_freed_again(megabytes):
    found = number_of_fresh_process("tests.benchmarks.allocates", [str(megabytes)])
    assert found == pytest.approx(megabytes, abs=8)


def test_a_measurement_that_fails_is_an_error():
    with pytest.raises(subprocess.CalledProcessError):
        number_of_fresh_process("tests.benchmarks.allocates", ["many"])
