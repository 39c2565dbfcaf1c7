"""``gpt2lab retrofit``."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpt2lab.cli.options import given, with_flags
from gpt2lab.cli.screen import console
from gpt2lab.retrofit.settings import RetrofitSettings
from gpt2lab.runs.settings import DataSettings, TrainerConfig


@with_flags({"Switches": RetrofitSettings, "Training": TrainerConfig, "Text": DataSettings}, ("out", "max_epochs"))
def retrofit(source: Path, /, *, out: Path, options: object = None) -> int:
    """Give a trained model shared key/value heads, rotary positions or a window, and train it a little further.

    It tells the loss before, right after and along the further training. The folder --out is a run like others.

    Parameters
    ----------
    source
        Run folder, or one that `gpt2lab import` wrote.
    out
        Folder for the run with the new switches.
    """
    from gpt2lab.retrofit.run import PICTURE
    from gpt2lab.retrofit.run import retrofit as retrofit_run

    found = retrofit_run(source, out=out, **given(options))
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("validation loss, nats per token")
    for column in ("loss", "against before"):
        table.add_column(column, justify="right")
    rows: dict[str, float | None] = {"before": found.before}
    rows |= {f"right after: {name.replace('_', '-')}": loss for name, loss in found.damaged.items()}
    rows |= {"after further training": found.after, "trained further as it was": found.unconverted}
    rows |= {"the new switches from scratch": found.scratch}
    for name, loss in rows.items():
        if loss is not None:
            table.add_row(name, f"{loss:.4f}", f"{loss - found.before:+.4f}")
    console.print(table)
    console.print(f"picture  {found.run / PICTURE}\nwrite    gpt2lab generate {found.run}")
    return 0
