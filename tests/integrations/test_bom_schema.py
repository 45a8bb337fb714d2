"""The CycloneDX document against its publisher's own schema, which the library of CycloneDX brings along."""

from __future__ import annotations

import json
from typing import Any

import pytest
from finished import finished, values

from compressor.integrations.bom import cyclonedx

CARBON = {"g_per_kwh": 400.0, "year": 2024, "source": "somebody"}


def complaints(document: dict[str, Any]) -> str | None:
    """What the schema says against a document; None where it takes it."""
    validation = pytest.importorskip(
        "cyclonedx.validation.json", reason="make test-integrations: eval/integrations/requirements-cyclonedx.txt"
    )
    from cyclonedx.schema import SchemaVersion

    found = validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))
    return None if found is None else str(found)


def test_the_schema_takes_our_document_and_can_refuse_one() -> None:
    for measured in (False, True):
        for pipeline in (values()["pipeline"], values()["pipeline"] | {"energy": {"carbon": CARBON}}):
            assert complaints(cyclonedx(finished(measured=measured, pipeline=pipeline))) is None
    wrong = cyclonedx(finished())
    wrong["components"][0]["modelCard"]["considerations"]["environmentalConsiderations"]["joules"] = 1
    assert complaints(wrong) is not None
