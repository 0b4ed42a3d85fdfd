"""Generated requests, valid and invalid, get what the OpenAPI document of the server says."""

import collections

import pytest

TOKEN = "0" * 32
HEADERS = {"Authorization": f"Bearer {TOKEN}"}

# Whether a model takes these parts, and whether data has the shape of its tensor, is beyond a schema.
DEPENDS_ON_MODEL = "^/predictions/|/infer$"


@pytest.fixture
def app(service, monkeypatch):
    from simple_multimodal.serving.app import create_app

    monkeypatch.setattr(service, "token", TOKEN)
    return create_app(service)


def is_fault(context, failure, case, response) -> bool:
    """Return whether a finding counts: a form cannot express objects, nulls and empty lists, which become texts, or
    nothing.
    """
    from schemathesis.core.failures import AcceptedNegativeData

    is_form = isinstance(failure, AcceptedNegativeData) and case.media_type == "multipart/form-data"
    return not (is_form and any(map(_is_lost_in_forms, case.body.values())))


def _is_lost_in_forms(value) -> bool:
    if isinstance(value, list):
        return not value or any(map(_is_lost_in_forms, value))
    return value is None or isinstance(value, dict)


@pytest.mark.parametrize(("num_examples", "num_cases"), [(5, 200), pytest.param(125, 2_000, marks=pytest.mark.slow)])
def test_generated_requests(app, files, num_examples, num_cases):
    """All checks of schemathesis, whose pytest plugin is not used: version 4.32 does not know pytest 9.2."""
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis, which the extra dev has")
    from hypothesis import strategies
    from schemathesis.engine import events, from_schema

    schemathesis.openapi.format("binary", strategies.sampled_from(list(files.values())))
    config = schemathesis.Config.from_dict(
        {
            "seed": 0,
            "headers": HEADERS,
            "generation": {"max-examples": num_examples, "database": "none"},
            "analysis": {"constants": {"enabled": False}},  # cases must not depend on the source
            "operations": [
                {
                    "include-path-regex": DEPENDS_ON_MODEL,
                    "checks": {"positive_data_acceptance": {"enabled": False}},
                }
            ],
        }
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config, headers=HEADERS)
    schema.hook("filter_failure")(is_fault)
    faults, statuses = [], collections.defaultdict(collections.Counter)
    for event in from_schema(schema).execute():
        assert not isinstance(event, (events.NonFatalError, events.FatalError)), event
        if not isinstance(event, events.ScenarioFinished):
            continue
        recorder = event.recorder
        statuses[recorder.label].update(own.response.status_code for own in recorder.interactions.values())
        for checks in recorder.checks.values():
            found = [check.failure_info for check in checks if check.failure_info is not None]
            faults += [f"{recorder.label}: {own.failure.message}\n{own.code_sample}" for own in found]
    assert not faults, "\n\n".join(faults)
    total = sum(statuses.values(), collections.Counter())
    print(f"{total.total()} cases: {dict(sorted(total.items()))}")
    assert total.total() >= num_cases and max(total) < 500
    operations = [operation.ok().label for operation in schema.get_all_operations()]
    assert len(operations) == 15 and all(statuses[label][200] for label in operations)
    assert {*statuses} <= {*operations, "Stateful tests"}


def test_references_of_the_document_are_resolved(app):
    document = app.openapi()
    names = set()

    def collect(value):
        if isinstance(value, dict):
            names.update([value["$ref"]] if "$ref" in value else [])
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                collect(item)

    collect(document)
    prefix = "#/components/schemas/"
    assert names and names <= {prefix + name for name in document["components"]["schemas"]}


@pytest.mark.parametrize("has_token", [False, True])
def test_the_document_says_which_routes_need_a_token(service, monkeypatch, has_token):
    from simple_multimodal.serving.app import create_app
    from simple_multimodal.serving.gate import OPEN_ROUTES

    monkeypatch.setattr(service, "token", TOKEN if has_token else None)
    document = create_app(service).openapi()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            expected = ([] if path in OPEN_ROUTES else [{"token": []}]) if has_token else None
            assert operation.get("security") == expected
    assert ("securitySchemes" in document["components"]) == has_token


@pytest.mark.parametrize(("max_parts", "max_inputs", "expected"), [(16, 64, 13), (16, 4, 4), (1, 64, 1)])
def test_the_document_says_how_many_questions_a_form_may_have(needs_serve, max_parts, max_inputs, expected):
    """The clip, the model and `top_k` are parts, too."""
    from simple_multimodal.serving.app import ANSWER_PARTS
    from simple_multimodal.serving.documents import form_body
    from simple_multimodal.serving.limits import ServingLimits

    limits = ServingLimits(max_parts=max_parts, max_inputs=max_inputs)
    schema = form_body(ANSWER_PARTS, limits, ["data", "question"])["multipart/form-data"]["schema"]
    assert schema["properties"]["question"]["maxItems"] == expected
