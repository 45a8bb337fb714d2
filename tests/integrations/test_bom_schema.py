"""Bills of materials against their publishers' own schemas, which SPDX's and CycloneDX's libraries bring along."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from finished import finished, values
from spdx_python_model import v3_0_1 as spdx_model

from compressor.integrations.bom import cyclonedx, spdx

CARBON = {"g_per_kwh": 400.0, "year": 2024, "source": "somebody"}


def read_spdx(document: dict[str, Any]) -> None:
    """Read by SPDX's own model, which refuses unknown names and values, and write, which refuses what lacks a part."""
    found = spdx_model.SHACLObjectSet()
    spdx_model.JSONLDDeserializer().read(io.BytesIO(json.dumps(document).encode()), found)
    assert found.missing_ids == set(), "it points to elements that it does not have"
    spdx_model.JSONLDSerializer().write(found, io.BytesIO())


@pytest.mark.parametrize("measured", [False, True])
def test_spdx_takes_our_document(measured: bool) -> None:
    read_spdx(spdx(finished(measured=measured)))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda package: package.update(joules=1), "Unknown property 'joules'"),
        (lambda package: package.pop("creationInfo"), "creationInfo"),
        (
            lambda package: package["ai_energyConsumption"]["ai_inferenceEnergyConsumption"][0].update(
                ai_energyUnit="kWh"
            ),
            "'kWh' is not a valid value",
        ),
    ],
)
def test_spdx_refuses_another(change: Callable[[dict[str, Any]], object], error: str) -> None:
    document = copy.deepcopy(spdx(finished(measured=True)))
    change(next(one for one in document["@graph"] if one["type"] == "ai_AIPackage"))
    with pytest.raises((KeyError, ValueError), match=error):
        read_spdx(document)


def complaints(document: dict[str, Any]) -> str | None:
    """What the schema of CycloneDX says against a document; None where it takes it."""
    validation = pytest.importorskip(
        "cyclonedx.validation.json", reason="make test-integrations: eval/integrations/requirements-cyclonedx.txt"
    )
    from cyclonedx.schema import SchemaVersion

    found = validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))
    return None if found is None else str(found)


def test_cyclonedx_takes_our_document_and_refuses_another() -> None:
    for measured in (False, True):
        for pipeline in (values()["pipeline"], values()["pipeline"] | {"energy": {"carbon": CARBON}}):
            assert complaints(cyclonedx(finished(measured=measured, pipeline=pipeline))) is None
    wrong = cyclonedx(finished())
    wrong["components"][0]["modelCard"]["considerations"]["environmentalConsiderations"]["joules"] = 1
    assert complaints(wrong) is not None
