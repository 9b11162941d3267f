"""vLLM reads an exported student unchanged: `make test-vllm`, half a minute for each family on two cores.

It has an environment of its own, whose Python `PUMA_VLLM_PYTHON` names, for it asks for other versions than Puma does.
"""

import os

import pytest

from stages.export.loaders import VLLM, VLLM_PYTHON, run_stock_loaders
from stages.export.parity import MINIMUM_COSINE, samples
from stages.model.families import FAMILIES
from tests.loaders import COARSE
from tests.tiny_models import write_student

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not os.environ.get(VLLM_PYTHON), reason=f"{VLLM_PYTHON} is not set; `make test-vllm` sets it"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_vllm_gives_the_students_vectors_for_every_kind_of_input(family, tmp_path):
    loader, least = COARSE.get(family, (VLLM, MINIMUM_COSINE))
    student = write_student(tmp_path, family)
    found, not_run = run_stock_loaders(tmp_path / "model", samples(), [loader])
    assert not_run == {}
    cosines_N = (found[loader] * student.encode([one.row for one in samples()])).sum(1)
    print(f"{family} by {loader}: least cosine {cosines_N.min():.7f}")
    assert cosines_N.min() >= least
