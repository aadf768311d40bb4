import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
torch.set_num_threads(2)


def blind_judges(monkeypatch, device="cpu"):
    """Judges that know nothing, in place of trained ones."""
    import toyfaces
    monkeypatch.setattr(toyfaces, "judge", lambda kind, *_: (toyfaces.Judge(kind).eval().requires_grad_(False).to(device), 1.))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One folder for drawn faces and judges of the whole test session."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))])
def device(request):
    return request.param
