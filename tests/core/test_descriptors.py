import subprocess
import sys

import pytest

resource = pytest.importorskip("resource")


@pytest.mark.parametrize("soft, hard, expected", [(100, 100, 100), (100, 150, 150), (300, 400, 300),
                                                  (100, 400, 200)])
def test_the_limit_is_raised_as_far_as_it_may(soft, hard, expected):
    code = (f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
            "from cosa.core.descriptors import allowed_files; print(allowed_files(200), "
            "*resource.getrlimit(resource.RLIMIT_NOFILE))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(expected), str(expected), str(hard)]
