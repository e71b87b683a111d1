"""Names a run by what it is: the same request has the same id until it is submitted."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from launcher.contract.cluster import Cluster
from launcher.contract.spec import Spec
from launcher.contract.values import to_value


def digest_request(stages: Mapping[str, tuple[Spec, dict[str, Any] | None]], cluster: Cluster, version: str) -> str:
    """Six hexadecimal digits over all that was asked for.

    ``stages`` has each stage's spec with the DeepSpeed config it is merged over; ``cluster`` is the resolved profile.
    """
    value: dict[str, Any] = {"cluster": to_value(cluster), "tuneyard": version}
    value["stages"] = [[name, to_value(spec), ds_base] for name, (spec, ds_base) in stages.items()]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]


def name_run(name: str, digest: str, is_taken: Callable[[str], bool]) -> str:
    """``NAME-DIGEST``, then ``NAME-DIGEST-2`` ... for the first that is not taken (submitted already).

    So `plan` and the `submit` after it speak of the same run, which makes the preview exact, and planning again
    leaves no second directory behind.
    """
    candidate, number = f"{name}-{digest}", 1
    while is_taken(candidate):
        number += 1
        candidate = f"{name}-{digest}-{number}"
    return candidate
