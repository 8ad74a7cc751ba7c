"""The course's command, as a user types it."""

import os
import subprocess
import sys


def command(*arguments, runs, cwd=None):
    environment = os.environ | {"COURSE_RUNS": str(runs), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "utils.course", *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
