"""What the Prefect UI shows of a run beside its logs and its progress: a table of scores, a suite's summary with its picture."""

import base64
import re

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from core.site import Site
from storage.catalogue import Catalogue
from tasks.live import in_a_run
from tasks.tables import LEGEND, Scored, markdown, table_lines


def show_scorecards(catalogue: Catalogue, site: Site, scored: Scored) -> None:
    """A table of a site's dictionaries."""
    if not (scored and in_a_run()):
        return
    head, *lines = table_lines(scored)
    table = [dict(zip(head, line, strict=True)) for line in lines]
    create_table_artifact(table, key=_key(f"{catalogue.suite.name} {site}"), description=f"Dictionaries at {site}.  {LEGEND}")


def show_suite(catalogue: Catalogue, scored: Scored, failed: list[str]) -> None:
    """A page of all dictionaries: what failed, where everything lies, the picture, the table."""
    if not in_a_run():
        return
    suite, where = catalogue.suite, catalogue.store.where
    total = sum(map(len, catalogue.all_sites.values()))
    page = [f"# {suite.release.title or suite.name}", f"{len(scored)} of {total} dictionaries on {suite.model.source} are trained and scored."]
    page += [f"- failed: {line}" for line in failed]
    page += [f"Report: `{where(suite.name)}/pareto.png`, `metrics.parquet`. Release: `{where(f'{suite.name}/release')}`."]
    if scored:
        picture = base64.b64encode(catalogue.store.get(f"{suite.name}/pareto.png")).decode()
        page += [f"![L0 against fraction of variance unexplained, and against delta loss](data:image/png;base64,{picture})"]
        page += [markdown(table_lines(scored)), LEGEND]
    create_markdown_artifact("\n\n".join(page), key=_key(f"{suite.name} summary"), description=f"Suite {suite.name}")


def _key(words: str) -> str:
    """As Prefect wants them: lower-case letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", words.lower()).strip("-")
