"""Schemathesis plays stranger: requests made from the OpenAPI document, valid and not, never end in a 5xx.

PUMA_CASES sets how many; the whole run is `PUMA_CASES=2000 python -m pytest tests/serve/test_contract.py -s`.
"""

import os
from collections import Counter

import pytest
import requests

from tests.serve.conftest import Served

CASES = int(os.environ.get("PUMA_CASES", "40"))


def test_no_case_ends_in_a_server_error(server: Served):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [one.ok() for one in schema.get_all_operations()]
    assert {one.path for one in operations} >= {"/search", "/embed", "/image/{image_id}"}
    posts = [one for one in operations if one.method == "post"]
    each = -(-CASES // (2 * len(posts)))  # valid and invalid bodies; paths without a body have few cases
    got: Counter[int] = Counter()
    session = requests.Session()
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            if mode.is_negative and operation not in posts:
                continue
            count = each if operation in posts else 10

            @settings(
                max_examples=count,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case):
                answer = case.call(session=session)
                got[answer.status_code] += 1
                assert answer.status_code < 500, (case.body, answer.text)

            check()
    print({"cases": sum(got.values()), "answers": dict(sorted(got.items()))})
    assert sum(got.values()) >= CASES and got[200]
