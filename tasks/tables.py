"""Tables: what was measured, a row a dictionary, for terminals, Markdown and Parquet."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.spec import DictionarySpec

Scored = list[tuple[DictionarySpec, dict[str, Any]]]


def rows_of(scored: Scored) -> list[dict[str, Any]]:
    """One flat row for each scorecard: what tables and Parquet show."""
    return [
        {
            "site": str(spec.site),
            "layer": spec.site.layer,
            "kind": spec.site.kind,
            "name": spec.name,
            "architecture": spec.architecture,
            "width": spec.width,
            "target_l0": spec.target_l0,
            "l0_coefficient": spec.l0_coefficient,
            "learning_rate": spec.learning_rate,
            "tokens": spec.tokens,
            "seed": spec.seed,
            "l0": card["l0"],
            "fvu": card["fvu"],
            "fvu_all_rows": card["fvu_all_rows"],
            "delta_loss": card["loss"]["delta"],
            "delta_loss_standard_error": card["loss"]["delta_standard_error"],
            "delta_loss_zero_ablation": card["loss"]["delta_zero"],
            "delta_loss_mean_ablation": card["loss"]["delta_mean"],
            "intact_loss": card["loss"]["intact"],
            "dead": card["dead"],
            "rows": card["rows"],
            "dictionary": card["dictionary"],
            "commit": card["code"]["commit"],
        }
        for spec, card in scored
    ]


COLUMNS = ("site", "width", "L0", "target", "FVU", "delta loss", "mean-abl.", "deleted", "dead %")
TELLING_APART = {"architecture": "architecture", "learning_rate": "rate", "tokens": "tokens", "seed": "seed"}
"""Columns, and their heads, of what is the same for all dictionaries of most suites: shown where it is not."""


def table_lines(scored: Scored) -> list[tuple[str, ...]]:
    """The table as text, its head first."""
    rows = rows_of(scored)
    telling = [key for key in TELLING_APART if len({row[key] for row in rows}) > 1]
    head = (COLUMNS[0], *(TELLING_APART[key] for key in telling), *COLUMNS[1:])
    return [head, *((row["site"], *(_cell(row[key]) for key in telling), *_measured(row)) for row in rows)]


def _cell(value: str | float | None) -> str:
    return "recipe's" if value is None else value if isinstance(value, str) else f"{value:,}"


def _measured(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['width']:,}",
        f"{row['l0']:.1f}",
        f"{row['target_l0']:g}" if row["target_l0"] is not None else f"λ {row['l0_coefficient']:g}",
        f"{row['fvu']:.3f}",
        f"{row['delta_loss']:.3f}" + (f" ± {row['delta_loss_standard_error']:.3f}" if row["delta_loss_standard_error"] is not None else ""),
        f"{row['delta_loss_mean_ablation']:.2f}",
        f"{row['delta_loss_zero_ablation']:.2f}",
        f"{100 * row['dead']:.1f}",
    )


def table(scored: Scored) -> str:
    """The table a terminal shows."""
    return grid(table_lines(scored))


def grid(lines: list[tuple[str, ...]]) -> str:
    """Aligned columns under a ruled head, which is the first line; the first column to the left and all others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))) for line in lines]
    rule = "─" * len(text[0])
    return "\n".join([text[0], rule, *text[1:]])


def markdown(lines: list[tuple[str, ...]]) -> str:
    """The same table in Markdown."""
    head, *rest = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


def missed_targets(scored: Scored) -> list[str]:
    """A line for each dictionary whose held-out L0 is more than a twentieth off its target."""
    return [
        f"{spec}: L0 {card['l0']:.1f} missed the target of {spec.target_l0:g}; train longer or raise training.target_l0_coefficient"
        for spec, card in scored
        if spec.target_l0 is not None and abs(card["l0"] / spec.target_l0 - 1) > 0.05
    ]


LEGEND = (
    "L0: active latents a token.  FVU: fraction of variance unexplained.  Delta loss: nats a token added by splicing the dictionary in "
    "(± standard error);\nmean-abl., deleted: the same with the site's mean, or zeros, in its place.  All on held-out text."
)


def parquet(scored: Scored) -> bytes:
    """The suite's scorecards as one Parquet table."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows_of(scored)), sink)
    return sink.getvalue()
