"""``gpt2lab speedrun``."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from gpt2lab.cli.screen import console, print_json

if TYPE_CHECKING:
    from gpt2lab.comparison.speedrun import Attempt


def speedrun(
    record: Path | None = None,
    /,
    *,
    config: Annotated[list[Path] | None, Parameter(negative=())] = None,
    text: Path | None = None,
    seeds: int = 5,
    check: Path | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Reach a validation loss of 1.88 nats per character on tinyshakespeare as soon as possible.

    Every seed is trained in a process of its own, with empty caches. The clock runs from the start of the process until
    the loss on the whole last tenth of the text is known. An entry is a YAML file with options of `gpt2lab train`.
    Rules, records, and how to enter: docs/records.md.

    With --check a seed of a record is trained again. Exit code 1: its loss is not one that the record lets expect.

    Parameters
    ----------
    record
        File that is written after every attempt, as JSON; `gpt2lab judge` reads it.
    config
        Entry to be trained; several are trained in turn (--config record.yaml --config mine.yaml). Default: the entry
        that holds the record.
    text
        Where tinyshakespeare.txt is; default: it is downloaded once.
    seeds
        Trainings of every entry: with the seeds 1, 2, …
    check
        A record that was written before.
    json
        Print one JSON object. (With a file, it is written there.)
    """
    from gpt2lab.comparison.speedrun import TARGET, check_record
    from gpt2lab.comparison.speedrun import speedrun as run_speedrun
    from gpt2lab.errors import InputError

    if check is not None:
        if record is not None or config:
            raise InputError("--check repeats what a record holds; leave out --config and the file to write to")
        with console.status("training from a cold start"):
            checks = check_record(check, text)
        if json:
            print_json([asdict(one) | {"fits": one.fits} for one in checks])
        else:
            for one in checks:
                console.print(
                    f"{one.recorded.arm}, seed {one.recorded.seed}: loss {one.repeated.loss:.4f}, "
                    f"recorded {one.recorded.loss:.4f}; "
                    f"it {'fits' if one.fits else 'does not fit'}: another training of this entry is between "
                    f"{one.low:.4f} and {one.high:.4f} in 95 of 100 cases\n"
                    f"{one.repeated.seconds:.1f} s here, {one.recorded.seconds:.1f} s recorded"
                )
        return 0 if all(one.fits for one in checks) else 1

    def show(attempt: "Attempt") -> None:
        missed = "" if attempt.loss <= TARGET else "  (missed)"
        console.print(f"{attempt.arm}  seed {attempt.seed}  {attempt.seconds:6.1f} s  loss {attempt.loss:.4f}{missed}")

    with console.status("training from a cold start"):
        found = run_speedrun(text, seeds, None if json and record is None else show, config=config or (), record=record)
    if json and record is None:
        print_json(found.to_dict())
        return 0
    for arm in found.entries:
        seconds = [attempt.seconds for attempt in found.of(arm)]
        console.print(
            f"{arm}: median {found.median_seconds(arm):.1f} s ({min(seconds):.1f} – {max(seconds):.1f}), mean loss "
            f"{found.mean_loss(arm):.4f}; {found.reached(arm)} of {seeds} reached {TARGET}"
        )
    console.print(found.machine)
    return 0
