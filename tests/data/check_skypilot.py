"""Read SkyPilot tasks as its API server does, and print {file: what is wrong, or null} as JSON.

Run by the Python of `test_templates.skypilot`, which has SkyPilot and not this project. As a client, SkyPilot lets unknown
keys of `job_recovery` pass and does not look at the strategy's name; a server refuses both.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["IS_SKYPILOT_SERVER"] = "1"

import sky  # noqa: E402
from sky.jobs import recovery_strategy  # noqa: E402, F401  (puts the strategies into the registry)
from sky.server import plugins  # noqa: E402
from sky.utils import registry  # noqa: E402


def problem(path: str) -> str | None:
    """What SkyPilot says against a file."""
    try:
        task = sky.Task.from_yaml(path)
        for resources in task.resources:
            strategy = (resources.job_recovery or {}).get("strategy")
            registry.JOBS_RECOVERY_STRATEGY_REGISTRY.from_str(strategy)
    except Exception as error:  # SkyPilot has many kinds
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    plugins.load_plugins(plugins.ExtensionContext())  # there are none, but from now on the schemas are strict
    print(json.dumps({path: problem(path) for path in sys.argv[1:]}))
