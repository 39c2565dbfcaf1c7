"""What a comparison returns: verdicts, a table, a report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from gpt2lab.comparison.grouped import Grouped
from gpt2lab.comparison.results import Contrast, Results
from gpt2lab.comparison.statistics import estimate
from gpt2lab.comparison.verdicts import Verdict, aligned, difference_cells, html_table, sentences, text_table
from gpt2lab.files import atomic_write


@dataclass(frozen=True, repr=False)
class Comparison:
    """A comparison, as far as it has come.

    Attributes:
        folder: where it is; its cells are run folders.
        results: all that was found.
        failed: cells that failed when it ran last, such as "context-25/rope/seed-1", and why.
    """

    folder: Path
    results: Results
    failed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """One for each arm, context and quantity, against the baseline; those of the claims first."""
        return self.results.verdicts

    @property
    def contrasts(self) -> list[Contrast]:
        """The same with all that is known of each; see :class:`gpt2lab.comparison.results.Contrast`."""
        return self.results.contrasts

    def title(self) -> str:
        """What is compared, in a line."""
        design, cells = self.results.settings, self.results.cells
        losses = []
        for context in design.grid.contexts:
            each = [c.test_loss for c in cells if (c.context, c.arm) == (context, design.baseline)]
            if each:
                losses.append(f"{estimate(each, 0.95).mean:.4f} nats per token at a context of {context}")
        told = f"compared with {design.baseline}"
        return f"{told} (test loss {', '.join(losses)})" if losses else told

    def answers(self) -> list[str]:
        """What is known of the test loss of each arm, in nats per token, a sentence each."""
        told = sentences(self.verdicts, self.results.settings.grid.contexts)
        return told + [f"{arm.arm}: not trained, {arm.message}" for arm in self.results.disqualified]

    def losses(self) -> str:
        """Test loss of each arm, nats per token, and how it differs from the baseline, as a table of text."""
        rows = [["context", "arm", "test loss", "difference", "interval", "verdict"]]
        found = {(v.context, v.arm): v for v in self.verdicts if v.quantity == "test_loss"}
        for (context, arm), cells in Grouped(self.results).groups.items():
            loss = estimate([cell.test_loss for cell in cells], 0.95)
            one = found.get((context, arm))
            rows.append([str(context), arm, f"{loss.mean:.4f}", *(difference_cells(one) if one else ["", "", ""])])
        return aligned(rows)

    def __repr__(self) -> str:
        return self.table()

    def table(self) -> str:
        """The verdicts as text, and what is missing."""
        lines = [self.title(), "", text_table(self.verdicts) if self.verdicts else "nothing can be compared yet"]
        for arm in self.results.disqualified:
            lines.append(f"{arm.arm} at a context of {arm.context} was not trained: {arm.message}")
        if self.results.unfinished:
            lines.append(f"not finished: {', '.join(self.results.unfinished)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return html_table(self.verdicts, self.title())

    def report(self, path: str | Path, against: "Comparison | None" = None) -> Path:
        """Write the report as one HTML file; returns its path.

        Args:
            path: of the file.
            against: an earlier comparison; the report then also tells what changed since.
        """
        from gpt2lab.comparison.report import render

        page = render(self.results, None if against is None else against.results)
        with atomic_write(Path(path)) as file:
            file.write(page.encode())
        return Path(path)
