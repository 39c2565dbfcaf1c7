"""Where commands print."""

import json
import sys
from typing import Any

from gpt2lab.progress import plain_console

console = plain_console()
errors = plain_console(stderr=True)


def print_json(told: Any) -> None:
    """Print JSON, in which a number that is not finite is null, in letters that the output can show."""
    plain = json.loads(json.dumps(told), parse_constant=lambda _: None)
    print(json.dumps(plain, ensure_ascii=sys.stdout.encoding.lower() != "utf-8", indent=2))
