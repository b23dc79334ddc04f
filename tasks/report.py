"""Report: what was measured, as a table, a Parquet file and a picture."""

import io
from typing import Any

import matplotlib
import pyarrow as pa
import pyarrow.parquet as pq

from core.spec import DictionarySpec
from storage.catalogue import Catalogue
from tasks.evaluate import scorecards

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Scored = list[tuple[DictionarySpec, dict[str, Any]]]

# Colour-blind safe (Okabe and Ito), one a kind of site; a marker a layer.
COLOURS = {"resid_post": "#0072B2", "mlp_out": "#D55E00", "attn_z": "#009E73"}
MARKERS = "osD^vPX*<>hpd"


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


def picture(scored: Scored, title: str) -> bytes:
    """A PNG: FVU, and delta loss, against L0; dictionaries of one site and width are joined."""
    rows = rows_of(scored)
    layers = sorted({row["layer"] for row in rows})
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for axis, column, label in zip(axes, ("fvu", "delta_loss"), ("fraction of variance unexplained", "delta loss (nats a token)"), strict=True):
        _pareto(axis, rows, column, layers)
        axis.set_ylabel(label)
    handles = [plt.Line2D([], [], color=COLOURS[kind], lw=3, label=kind) for kind in COLOURS if any(row["kind"] == kind for row in rows)]
    handles += [plt.Line2D([], [], color="0.3", marker=MARKERS[i % len(MARKERS)], ls="", label=f"layer {layer}") for i, layer in enumerate(layers)]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    figure.suptitle(title)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=130, metadata={"Software": None})
    plt.close(figure)
    return sink.getvalue()


def _pareto(axis: Axes, rows: list[dict[str, Any]], column: str, layers: list[int]) -> None:
    for group in fronts(rows):
        marker = MARKERS[layers.index(group[0]["layer"]) % len(MARKERS)]
        axis.plot([r["l0"] for r in group], [r[column] for r in group], color=COLOURS[group[0]["kind"]], marker=marker, lw=1.2, ms=6, alpha=0.9)
    l0_axis(axis, [row["l0"] for row in rows])
    axis.set_ylim(bottom=min(0, min(row[column] for row in rows)))


def fronts(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows that differ in their sparsity alone, each group from sparse to dense: one line of the picture."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in ("site", "width", *TELLING_APART)), []).append(row)
    return [sorted(group, key=lambda row: row["l0"]) for group in groups.values()]


def l0_axis(axis: Axes, l0s: list[float]) -> None:
    """L0 along the bottom, on a logarithmic scale with ticks that a person would choose."""
    axis.set_xlabel("L0 (active latents a token)")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axis.set_xticks([tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000) if min(l0s) / 2 <= tick <= max(l0s) * 2])
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def write_report(catalogue: Catalogue) -> Scored:
    """Write the whole suite's table and picture beside its release, and give the scorecards of the catalogue's sites."""
    whole = Catalogue(catalogue.suite, catalogue.store.address)
    scored = list(scorecards(whole))
    if scored:
        name = catalogue.suite.name
        catalogue.store.put(f"{name}/metrics.parquet", parquet(scored))
        catalogue.store.put(f"{name}/pareto.png", picture(scored, catalogue.suite.release.title or name))
    return [(spec, card) for spec, card in scored if spec.site in catalogue.sites]
