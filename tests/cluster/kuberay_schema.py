"""The part of KubeRay's API that our manifests use, as a closed JSON schema: a name that is not in it is a mistake.

Kubernetes drops unknown fields without a word, so a typo would show only as something missing on the cluster. The
fields and types are those of ray.io/v1 in KubeRay's CRDs, which lie whole in ``crds``; this part is stricter: it asks
for what a training cannot do without.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STRING, WHOLE, SWITCH = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY, "minProperties": 1}


def of(required: str = "", **fields: Schema) -> Schema:
    """Return a closed object with ``fields``, of which those named in ``required`` have to be there."""
    return {"type": "object", "properties": fields, "additionalProperties": False, "required": required.split()}


def many(items: Schema) -> Schema:
    """Return a list of at least one."""
    return {"type": "array", "items": items, "minItems": 1}


METADATA = of("name", name=STRING, namespace=STRING, labels=LABELS, annotations=LABELS)
CONTAINER = of(
    "name image resources volumeMounts",
    name=STRING,
    image=STRING,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    command=many(STRING),
    args=many(STRING),
    env=many(of("name value", name=STRING, value={"type": "string"})),
    resources=of("limits requests", limits=QUANTITIES, requests=QUANTITIES),
    securityContext=of(
        allowPrivilegeEscalation=SWITCH, readOnlyRootFilesystem=SWITCH, capabilities=of(drop=many(STRING))
    ),
    volumeMounts=many(of("name mountPath", name=STRING, mountPath=STRING, readOnly=SWITCH, subPath=STRING)),
)
VOLUME = of(
    "name",
    name=STRING,
    emptyDir=of(medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
    persistentVolumeClaim=of("claimName", claimName=STRING, readOnly=SWITCH),
)
POD = of(
    "spec",
    metadata=of(labels=LABELS, annotations=LABELS),
    spec=of(
        "containers",
        automountServiceAccountToken=SWITCH,
        containers=many(CONTAINER),
        nodeSelector=LABELS,
        priorityClassName=STRING,
        securityContext=of(runAsNonRoot=SWITCH, runAsUser=WHOLE, runAsGroup=WHOLE, fsGroup=WHOLE),
        serviceAccountName=STRING,
        terminationGracePeriodSeconds=WHOLE,
        tolerations=many(of(key=STRING, operator=STRING, value=STRING, effect=STRING)),
        volumes=many(VOLUME),
    ),
)
CLUSTER = of(
    "rayVersion headGroupSpec workerGroupSpecs",
    rayVersion=STRING,
    authOptions=of("mode", mode={"enum": ["disabled", "token"]}, secretName=STRING),
    enableInTreeAutoscaling=SWITCH,
    headGroupSpec=of("template", rayStartParams=LABELS, serviceType=STRING, template=POD),
    workerGroupSpecs=many(
        of(
            "groupName minReplicas maxReplicas template",
            groupName=STRING,
            replicas=WHOLE,
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            idleTimeoutSeconds=WHOLE,
            rayStartParams=LABELS,
            template=POD,
        )
    ),
)
JOB = of(
    "entrypoint rayClusterSpec",
    entrypoint=STRING,
    shutdownAfterJobFinishes=SWITCH,
    ttlSecondsAfterFinished=WHOLE,
    activeDeadlineSeconds=WHOLE,
    backoffLimit=WHOLE,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    runtimeEnvYAML=STRING,
    metadata=LABELS,
    suspend=SWITCH,
    rayClusterSpec=CLUSTER,
)


def resource(kind: str, spec: Schema) -> Schema:
    """Return the schema of a whole resource of ray.io/v1."""
    return of(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=METADATA,
        spec=spec,
    )


RESOURCES = {"RayJob": resource("RayJob", JOB), "RayCluster": resource("RayCluster", CLUSTER)}


def closed(schema: Any) -> Any:
    """Return a CRD's schema in which every object with named fields takes no others, as JSON schema reads it."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(part) for key, part in schema.items()}
    if found.pop("x-kubernetes-int-or-string", False) is True:
        found = {key: part for key, part in found.items() if key not in ("type", "pattern", "anyOf")}
    is_object = found.get("type") == "object" and isinstance(found.get("properties"), dict)
    if is_object and "additionalProperties" not in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    return found
