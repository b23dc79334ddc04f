"""Study: what the JumpReLU paper compares (arXiv:2407.14435, section 5), from the scorecards of a suite of several architectures.

Its dictionaries saw the same rows in the same order. Where a suite gives several learning rates, each architecture is shown at the one that
served it best at that sparsity, and the others are listed too.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import matplotlib
import pyarrow as pa
import pyarrow.parquet as pq

from core.spec import DictionarySpec, width_label
from storage.catalogue import Catalogue
from tasks.evaluate import scorecards
from tasks.explained import legend
from tasks.explained import table as explained_table
from tasks.meaning import sentences as meaning
from tasks.report import l0_axis
from tasks.tables import Scored, grid, markdown, rows_of

matplotlib.use("agg")
import matplotlib.pyplot as plt

# Colour-blind safe (Okabe and Ito), and a marker each.
LOOKS = {
    "jumprelu": ("#0072B2", "o"),
    "gated": ("#D55E00", "s"),
    "topk": ("#009E73", "^"),
    "batch-topk": ("#CC79A7", "D"),
    "relu-l1": ("#56B4E9", "v"),
}


@dataclass(frozen=True)
class Cell:
    """One architecture at one site, width, sparsity and learning rate: its seeds."""

    site: str
    width: int
    architecture: str
    sparsity: str
    learning_rate: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def at(self) -> tuple[Any, ...]:
        return self.site, self.width, self.architecture, self.sparsity, self.learning_rate

    @property
    def miss(self) -> float | None:
        """By which share L0 is off its target, or None without one."""
        target = self.rows[0]["target_l0"]
        return None if target is None else abs(self.mean("l0") / target - 1)

    @property
    def rank(self) -> tuple[float, float]:
        """Less is better: first L0 within a twentieth of the target, then FVU."""
        miss = self.miss or 0.0
        return miss if miss > 0.05 else 0.0, self.mean("fvu")

    def mean(self, column: str) -> float:
        return fmean(row[column] for row in self.rows)

    def spread(self, column: str) -> float | None:
        """Standard deviation over the seeds."""
        return stdev(row[column] for row in self.rows) if len(self.rows) > 1 else None

    def shown(self, column: str, digits: int = 4) -> str:
        spread = self.spread(column)
        return f"{self.mean(column):.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def cells_of(catalogue: Catalogue, scored: Scored) -> list[Cell]:
    """Every cell, in the order of the suite."""
    found: dict[tuple[Any, ...], Cell] = {}
    for (spec, card), row in zip(scored, rows_of(scored), strict=True):
        rate = spec.learning_rate or catalogue.suite.training.learning_rate
        cell = Cell(str(spec.site), spec.width, spec.architecture, _sparsity(spec), rate)
        extra = {
            "frequent": card["dense"]["0.1"],
            "ms_a_step": 1_000 * catalogue.folder(spec).pace.get("seconds_a_step", math.nan),
            "learning_rate": rate,
        }
        found.setdefault(cell.at, cell).rows.append(row | extra)
    return list(found.values())


def _sparsity(spec: DictionarySpec) -> str:
    return f"{spec.target_l0:g}" if spec.target_l0 is not None else f"λ {spec.l0_coefficient:g}"


def best(cells: list[Cell]) -> list[Cell]:
    """Of the learning rates that were tried at one sparsity, the one with the least FVU among those that met the L0 asked for.

    A rate that leaves L0 too high reconstructs better for that alone. Where none met it, the nearest is taken; without a target, all stay.
    """
    chosen: dict[tuple[Any, ...], Cell] = {}
    for cell in cells:
        at = cell.at[:-1] if cell.miss is not None else cell.at
        if at not in chosen or cell.rank < chosen[at].rank:
            chosen[at] = cell
    return list(chosen.values())


COLUMNS = ("site", "width", "architecture", "target", "rate", "seeds", "L0", "FVU", "delta loss", "dead %", "> 10 % of rows, %", "ms a step")


def table_lines(cells: list[Cell]) -> list[tuple[str, ...]]:
    """The table as text, its head first."""
    lines = [
        (
            cell.site,
            width_label(cell.width),
            cell.architecture,
            cell.sparsity,
            f"{cell.learning_rate:g}",
            str(len(cell.rows)),
            f"{cell.mean('l0'):.1f}",
            cell.shown("fvu"),
            cell.shown("delta_loss", 3),
            f"{100 * cell.mean('dead'):.1f}",
            f"{100 * cell.mean('frequent'):.2f}",
            f"{cell.mean('ms_a_step'):.0f}",
        )
        for cell in cells
    ]
    return [COLUMNS, *lines]


# The sentence


@dataclass(frozen=True)
class Comparison:
    """FVU of JumpReLU over that of another architecture at the same L0."""

    where: str
    other: str
    ratio: float
    error: float | None
    """Standard error of the ratio, from the seeds of both; None where one has a single seed."""
    l0: float

    @property
    def verdict(self) -> str:
        if self.error is None:
            return "below" if self.ratio < 1 else "above"
        if abs(self.ratio - 1) <= 2 * self.error:
            return "level"
        return "below" if self.ratio < 1 else "above"


def compare(chosen: list[Cell]) -> Iterator[Comparison]:
    """JumpReLU with every other architecture, at each of its own L0s that lies within the other's, interpolated in log FVU over log L0."""
    groups: dict[tuple[str, int], dict[str, list[Cell]]] = {}
    for cell in chosen:
        groups.setdefault((cell.site, cell.width), {}).setdefault(cell.architecture, []).append(cell)
    for (site, width), by_architecture in groups.items():
        ours = by_architecture.pop("jumprelu", [])
        for other, theirs in by_architecture.items():
            for cell in ours:
                if found := _at_l0(theirs, cell.mean("l0")):
                    fvu, relative_error = found
                    own = _relative_error(cell)
                    error = None if own is None or relative_error is None else cell.mean("fvu") / fvu * math.hypot(own, relative_error)
                    yield Comparison(f"{site} at width {width_label(width)}", other, cell.mean("fvu") / fvu, error, cell.mean("l0"))


def _relative_error(cell: Cell) -> float | None:
    spread = cell.spread("fvu")
    return None if spread is None else spread / len(cell.rows) ** 0.5 / cell.mean("fvu")


def _at_l0(cells: list[Cell], l0: float, reach: float = 0.1) -> tuple[float, float | None] | None:
    """FVU of a front at some L0 and its relative error; None further than `reach` beyond its ends."""
    points = sorted(cells, key=lambda cell: cell.mean("l0"))
    low, high = points[0].mean("l0"), points[-1].mean("l0")
    if not low * (1 - reach) <= l0 <= high * (1 + reach):
        return None
    nearest = min(points, key=lambda cell: abs(math.log(cell.mean("l0") / l0)))
    if len(points) == 1:
        return nearest.mean("fvu"), _relative_error(nearest)
    at = next((i for i in range(len(points) - 2) if l0 <= points[i + 1].mean("l0")), len(points) - 2)
    if points[at].mean("l0") == points[at + 1].mean("l0"):
        return nearest.mean("fvu"), _relative_error(nearest)
    (x0, y0), (x1, y1) = ((math.log(cell.mean("l0")), math.log(cell.mean("fvu"))) for cell in points[at : at + 2])
    return math.exp(y0 + (y1 - y0) * (math.log(l0) - x0) / (x1 - x0)), _relative_error(nearest)


def sentences(chosen: list[Cell]) -> list[str]:
    """What the data supports, a sentence for each architecture that JumpReLU stands beside."""
    lines = []
    found = list(compare(chosen))
    for place, other in dict.fromkeys((comparison.where, comparison.other) for comparison in found):
        mine = [comparison for comparison in found if (comparison.where, comparison.other) == (place, other)]
        where = ", ".join(f"{c.ratio:.3f}" + (f" ± {c.error:.3f}" if c.error is not None else "") + f" at L0 {c.l0:.0f} ({c.verdict})" for c in mine)
        above = [c for c in mine if c.verdict == "above"]
        single = any(c.error is None for c in mine)
        claim = "not worse" if not above else f"worse at {len(above)} of {len(mine)} sparsities"
        lines.append(
            f"{place}, JumpReLU is {claim} than {other}: its FVU over {other}'s at the same L0 is {where}."
            + (" With a single seed nothing is said of chance." if single else "")
        )
    return lines


# Writing it down


def picture(chosen: list[Cell], title: str, kind: str) -> bytes:
    """FVU, and delta loss, against L0: a line through the seeds' mean, a point a seed, a band of one standard deviation."""
    sites = list(dict.fromkeys((cell.site, cell.width) for cell in chosen))
    figure, axes = plt.subplots(len(sites), 2, figsize=(11, 4.6 * len(sites)), layout="constrained", squeeze=False)
    for (site, width), pair in zip(sites, axes, strict=True):
        here = [cell for cell in chosen if (cell.site, cell.width) == (site, width)]
        for axis, column, label in zip(pair, ("fvu", "delta_loss"), ("fraction of variance unexplained", "delta loss (nats a token)"), strict=True):
            for architecture in dict.fromkeys(cell.architecture for cell in here):
                _front(axis, sorted((c for c in here if c.architecture == architecture), key=lambda c: c.mean("l0")), column)
            l0_axis(axis, [row["l0"] for cell in here for row in cell.rows])
            axis.set_ylabel(label)
            if column == "fvu":
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
                axis.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            axis.set_title(f"{site}, width {width_label(width)}", fontsize=10, loc="left")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    figure.suptitle(title)
    sink = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):
        figure.savefig(sink, format=kind, dpi=130, metadata={"Software": None} if kind == "png" else {"Date": None})
    plt.close(figure)
    return sink.getvalue()


def _front(axis: Any, cells: list[Cell], column: str) -> None:
    colour, marker = LOOKS[cells[0].architecture]
    l0s, means = [cell.mean("l0") for cell in cells], [cell.mean(column) for cell in cells]
    spreads = [cell.spread(column) or 0.0 for cell in cells]
    axis.plot(l0s, means, color=colour, marker=marker, lw=1.4, ms=6, label=cells[0].architecture)
    axis.fill_between(
        l0s,
        [m - s for m, s in zip(means, spreads, strict=True)],
        [m + s for m, s in zip(means, spreads, strict=True)],
        color=colour,
        alpha=0.15,
        lw=0,
    )
    axis.plot(
        [r["l0"] for c in cells for r in c.rows], [r[column] for c in cells for r in c.rows], color=colour, marker=marker, ms=3, ls="", alpha=0.5
    )


@dataclass(frozen=True)
class Study:
    """What a study found, as a terminal shows it."""

    table: str
    sentences: list[str]


def write_study(catalogue: Catalogue) -> Study | None:
    """Write the study's table, sentences and pictures beside the suite's report; None where nothing is scored."""
    scored = list(scorecards(catalogue))
    if not scored:
        return None
    cells = cells_of(catalogue, scored)
    chosen = best(cells)
    suite, said = catalogue.suite, sentences(chosen)
    rates = [cell for cell in cells if cell not in chosen]
    parts = [f"# {suite.name}", *said, markdown(table_lines(chosen)), LEGEND, "![FVU and delta loss against L0](study.svg)"]
    if explained := explained_table(catalogue):
        kept = {row["dictionary"] for cell in chosen for row in cell.rows}
        means = list(meaning(catalogue, [(spec, card) for spec, card in scored if card["dictionary"] in kept]))
        said += means
        parts += ["## What latents mean", *means, f"```\n{explained}\n```", legend(catalogue)]
    parts += ["Learning rates that were tried and served less well:", markdown(table_lines(rates))] if rates else []
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row for cell in cells for row in cell.rows]), sink)
    title = f"{suite.name}: {suite.training.tokens:,} rows a dictionary"
    files = {
        "study.md": ("\n\n".join(parts) + "\n").encode(),
        "study.parquet": sink.getvalue(),
        "study.png": picture(chosen, title, "png"),
        "study.svg": picture(chosen, title, "svg"),
    }
    for name, data in files.items():
        catalogue.store.put(f"{suite.name}/{name}", data)
    return Study(grid(table_lines(chosen)), said)


LEGEND = (
    "L0: active latents a token. FVU: fraction of variance unexplained. Delta loss: nats a token added by splicing the dictionary in. ±: standard "
    "deviation over the seeds. Dead: latents that fired on no held-out row; > 10 %: latents that fire on more than a tenth of them. Ms a step: "
    "mean of training, all of a site's dictionaries taking turns."
)
