"""Markdown tables, as every page, note and report has them."""

from collections.abc import Iterable, Sequence

IN_NO_KEY = True  # shows what was measured


def markdown_table(rows: Iterable[Sequence[str]], text_columns: int | None = None) -> str:
    """The rows, the first one as head, as a Markdown table; a cell may hold line breaks and `|`.

    Args:
        text_columns: how many columns are text; those behind them are numbers and stand to the right. None is all.
    """
    head, *lines = ([cell.replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in rows)
    text = len(head) if text_columns is None else text_columns
    rule = ["---" if place < text else "---:" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
