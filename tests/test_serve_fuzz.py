"""Requests that schemathesis makes from the service's own description."""

import pytest
from hypothesis import HealthCheck, given, settings

pytest.importorskip("gradio", reason="the page and the service need the extra `demo`")
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
from schemathesis import checks  # noqa: E402

from test_serve import QUIET, both_ways, model, paged, server, trained  # noqa: E402, F401

pytestmark = [
    pytest.mark.recipe,
    pytest.mark.stress,
    pytest.mark.timeout(7200),
    *QUIET,
]
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
]


@both_ways
def test_no_request_breaks_it_and_every_answer_is_described(server, request):  # noqa: F811
    _, port = server()
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    count = 500 if request.config.getoption("--stress") else 20
    asked = 0
    for operation in schema.get_all_operations():

        @settings(
            max_examples=count, deadline=None, database=None, suppress_health_check=[*HealthCheck]
        )
        @given(case=operation.ok().as_strategy())
        def ask(case):
            nonlocal asked
            asked += 1
            case.call_and_validate(checks=CHECKS)

        ask()
    assert asked >= count
