"""Writes published.json: the fields and types of a JobSet, its Pod and a ConfigMap as published.

In an environment of its own: pip install kubeflow-trainer-api==2.3.0 pydantic==2.14.3; then, in
this folder, python make.py

The package (Apache-2.0, by the Kubeflow authors) has models that were generated from the OpenAPI
definitions of Kubernetes and of JobSet. Taken from it are names, types and what is required; a
field of another name is refused here, which an API server does, too, when it is asked to be strict.
"""

import json
import pathlib
from typing import Any

from kubeflow_trainer_api.models import IoK8sApiCoreV1ConfigMap, JobsetV1alpha2JobSet

KINDS = {"JobSet": JobsetV1alpha2JobSet, "ConfigMap": IoK8sApiCoreV1ConfigMap}
PROSE = ("description", "title", "default")


def reduce(schema: Any) -> Any:
    """Without prose and nulls, and closed."""
    if not isinstance(schema, dict):
        return schema
    fields = schema.get("properties", {})
    if "actual_instance" in fields:  # one of several types
        return reduce(fields["actual_instance"])
    found = {key: value for key, value in schema.items() if key not in PROSE}
    if "anyOf" in found:
        kinds = [reduce(one) for one in found["anyOf"] if one != {"type": "null"}]
        found |= {"anyOf": kinds} if len(kinds) > 1 else kinds[0]
        if len(kinds) == 1:
            del found["anyOf"]
    for key in ("items", "additionalProperties"):
        if key in found:
            found[key] = reduce(found[key])
    if "properties" in found:
        found["properties"] = {name: reduce(one) for name, one in fields.items()}
        found.setdefault("additionalProperties", False)
    return found


definitions = {}
for model in KINDS.values():
    whole = model.model_json_schema(by_alias=True)
    own = {key: value for key, value in whole.items() if key != "$defs"}
    for name, one in {**whole["$defs"], model.__name__: own}.items():
        definitions[name] = reduce(one)
lines = [
    f"  {json.dumps(name)}: {json.dumps(one, sort_keys=True, separators=(',', ':'))}"
    for name, one in sorted(definitions.items())
]
entries = {name: {"$ref": f"#/$defs/{model.__name__}"} for name, model in KINDS.items()}
pathlib.Path("published.json").write_text(
    '{\n "$comment": "By make.py from kubeflow-trainer-api 2.3.0, Apache-2.0.",\n'
    f' "kinds": {json.dumps(entries)},\n "$defs": {{\n' + ",\n".join(lines) + "\n }\n}\n"
)
