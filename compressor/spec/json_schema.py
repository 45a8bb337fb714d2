"""The pipeline language as JSON Schema, for editors; the copy beside this file is what the shipped pipelines name."""

from __future__ import annotations

import json

from compressor.spec.pipeline import Pipeline


def pipeline_schema() -> str:
    """The schema as text, as it stands in `pipeline.schema.json`."""
    schema = Pipeline.model_json_schema(by_alias=True)
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1) + "\n"
