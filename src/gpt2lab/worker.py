"""A training in a process of its own, or one of several that share it: ``python -m gpt2lab.worker OPTIONS`` (JSON)."""

import json
import os
import sys

from gpt2lab.errors import tell
from gpt2lab.native.library import prepare_training


def main() -> int:
    """Train; returns the exit code."""
    options = json.loads(sys.argv[1])
    prepare_training(options.get("step"))
    from gpt2lab.progress import plain_console
    from gpt2lab.training.run import ended, train

    try:
        run = train(**options)
    except Exception as error:
        return tell(error)
    if os.environ.get("RANK", "0") == "0":
        plain_console().print(ended(run, options.get("attention")))
    return 0 if run.stopped_by is None else 128 + run.stopped_by


if __name__ == "__main__":
    sys.exit(main())
