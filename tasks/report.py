"""Report: what was measured of a suite, as a picture, and all of it written beside its release."""

import io
from typing import Any

import matplotlib

from storage.catalogue import Catalogue
from tasks.evaluate import scorecards
from tasks.tables import TELLING_APART, Scored, parquet, rows_of

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

# Colour-blind safe (Okabe and Ito), one a kind of site; a marker a layer.
COLOURS = {"resid_post": "#0072B2", "mlp_out": "#D55E00", "attn_z": "#009E73"}
MARKERS = "osD^vPX*<>hpd"


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
