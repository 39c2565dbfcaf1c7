"""``gpt2lab speedrun``."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2lab.cli.screen import console, print_json

if TYPE_CHECKING:
    from gpt2lab.training.speedrun import Attempt


def speedrun(*, text: Path | None = None, seeds: int = 5, json: bool = False) -> int:
    """Reach a validation loss of 1.88 nats per character on tinyshakespeare as soon as possible.

    Every seed is trained in a process of its own, with empty caches. The clock runs from the start of the process until
    the loss on the whole last tenth of the text is known. Rules and records: docs/speedrun.md.

    Parameters
    ----------
    text
        Where tinyshakespeare.txt is; default: it is downloaded once.
    seeds
        Trainings: with the seeds 1, 2, …
    json
        Print one JSON object.
    """

    from gpt2lab.hardware import describe_machine
    from gpt2lab.training.speedrun import TARGET
    from gpt2lab.training.speedrun import speedrun as run_speedrun

    def show(attempt: "Attempt") -> None:
        missed = "" if attempt.loss <= TARGET else "  (missed)"
        console.print(f"seed {attempt.seed}  {attempt.seconds:6.1f} s  loss {attempt.loss:.4f}{missed}")

    with console.status("training from a cold start"):
        found = run_speedrun(text, seeds, None if json else show)
    if json:
        told = {"target": found.target, "median_seconds": found.median_seconds, "reached": found.reached}
        print_json(told | {"attempts": [asdict(attempt) for attempt in found.attempts]})
        return 0
    seconds = [attempt.seconds for attempt in found.attempts]
    console.print(
        f"median {found.median_seconds:.1f} s ({min(seconds):.1f} – {max(seconds):.1f}); "
        f"{found.reached} of {seeds} reached {TARGET}\n{describe_machine()}",
    )
    return 0
