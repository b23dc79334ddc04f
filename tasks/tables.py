"""Tables: what was measured, a row a dictionary, for terminals, Markdown and Parquet."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.selection import off_target
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
            **_measures(card),
            "dictionary": card["dictionary"],
            "commit": card["code"]["commit"],
        }
        for spec, card in scored
    ]


def _measures(card: dict[str, Any]) -> dict[str, float | None]:
    """The numbers of a scorecard, flat."""
    return {
        **_with_interval("l0", card["l0"], card["l0_interval"]),
        **_with_interval("fvu", card["fvu"], card["fvu_interval"]),
        "fvu_all_rows": card["fvu_all_rows"],
        "fvu_added_by_bfloat16": card["sample_in_bfloat16"]["fvu"] - card["sample"]["fvu"],
        **_with_interval("delta_loss", card["loss"]["delta"], card["loss"]["delta_interval"]),
        "delta_loss_zero_ablation": card["loss"]["delta_zero"],
        "delta_loss_mean_ablation": card["loss"]["delta_mean"],
        "intact_loss": card["loss"]["intact"],
        **_with_interval("divergence", card["loss"]["divergence"], card["loss"]["divergence_interval"]),
        "divergence_zero_ablation": card["loss"]["divergence_zero"],
        "divergence_mean_ablation": card["loss"]["divergence_mean"],
        "cosine": card["cosine"],
        "relative_norm": card["relative_norm"],
        "relative_bias": card["relative_bias"],
        **_with_interval("uniformity", card["uniformity"]["mean"], card["uniformity"]["interval"]),
        "dead": card["dead"],
        **{f"dense_{frequency}": share for frequency, share in card["dense"].items()},
        "rows": card["rows"],
    }


def _with_interval(name: str, value: float | None, interval: list[float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


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
        _give_or_take(row, "delta_loss", 3),
        f"{row['delta_loss_mean_ablation']:.2f}",
        f"{row['delta_loss_zero_ablation']:.2f}",
        f"{100 * row['dead']:.1f}",
    )


def _give_or_take(row: dict[str, Any], column: str, digits: int) -> str:
    """A value with half of its interval."""
    value, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    return "–" if value is None else f"{value:.{digits}f}" + (f" ± {(high - low) / 2:.{digits}f}" if low is not None else "")


def compared_line(site: str, name: str, width: int, card: dict[str, Any]) -> tuple[str, ...]:
    """What is shown of a dictionary beside anybody's: site, name, width, L0, FVU, delta loss, KL, cosine, relative norm, dead."""
    row = _measures(card)
    return (
        site,
        name,
        f"{width:,}",
        f"{card['l0']:.1f}",
        *(_give_or_take(row, column, 3) for column in ("fvu", "delta_loss", "divergence")),
        f"{card['cosine']:.3f}",
        f"{card['relative_norm']:.3f}",
        f"{100 * card['dead']:.1f}",
    )


def further_lines(scored: Scored) -> list[tuple[str, ...]]:
    """What else was measured of each dictionary, for a page that has room; the head first."""
    head = ("site", "width", "L0", "KL", "mean-abl. KL", "cosine", "relative norm", "uniformity", "> 1%", "> 10%", "bfloat16")
    return [
        head,
        *(
            (
                row["site"],
                f"{row['width']:,}",
                _give_or_take(row, "l0", 1),
                _give_or_take(row, "divergence", 3),
                f"{row['divergence_mean_ablation']:.2f}",
                f"{row['cosine']:.3f}",
                f"{row['relative_norm']:.3f}",
                _give_or_take(row, "uniformity", 2),
                f"{row['dense_0.01']:.2%}",
                f"{row['dense_0.1']:.2%}",
                f"{row['fvu_added_by_bfloat16']:+.4f}",
            )
            for row in rows_of(scored)
        ),
    ]


FURTHER_LEGEND = (
    "KL: divergence of the predictions with the dictionary spliced in from the model's own, in nats a token (mean-abl.: with the site's mean in "
    "its place).  Cosine: of a row and its reconstruction.  Relative norm: of the reconstruction; below one it shrinks.  Uniformity: r_L0, how "
    "evenly a row's active latents share their effect on the next token, from one over their number to one (arXiv:2408.05147, C.3).  > 1%, > 10%: "
    "latents that fire on more than that share of the rows.  bfloat16: what FVU gains when weights and rows are."
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


def markdown(lines: Sequence[tuple[str, ...]]) -> str:
    """The same table in Markdown."""
    head, *rest = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


OFF_TARGET = 0.05
"""From which an L0 counts as off its target."""


def missed_targets(scored: Scored) -> list[str]:
    """A line for each dictionary whose held-out L0 is off its target."""
    return [
        f"{spec}: L0 {card['l0']:.1f} missed the target of {spec.target_l0:g}; train longer or raise training.target_l0_coefficient"
        for spec, card in scored
        if off_target(spec, card) > OFF_TARGET
    ]


LEGEND = (
    "L0: active latents a token.  FVU: fraction of variance unexplained.  Delta loss: nats a token added by splicing the dictionary in\n"
    "(±: half of the 95% interval, by bootstrap over sequences); mean-abl., deleted: the same with the site's mean, or zeros, in its place.\n"
    "All on held-out text."
)


def parquet(scored: Scored, left_out: Mapping[DictionarySpec, str] | None = None) -> bytes:
    """The suite's scorecards as one Parquet table.

    Args:
        left_out: of a release, why a dictionary is not in it: a column more.
    """
    rows = rows_of(scored)
    if left_out is not None:
        rows = [row | {"left_out": left_out.get(spec)} for row, (spec, _) in zip(rows, scored, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()
