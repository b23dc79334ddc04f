"""Explanations of a store: of each dictionary the contexts that show what its latents do, and what was made of them.

explanations/SITE/NAME-KEY-KEY/TABLE.parquet, TABLE.json    a part of the latents each, with its checksum
                               summary.json                 what all came to, last of all
"""

import io
import logging
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.dictionaries import DictionaryFolder
from storage.objects import Corrupt

log = logging.getLogger(__name__)


def part_name(subject: str, what: str, first: int) -> str:
    """Of the table of what there is of a subject, from a latent on, or from an explanation."""
    return f"{subject}-{what}-{first:07d}"


class ExplanationFolder:
    """Everything a store holds of what one dictionary's latents mean.

    Args:
        key: of the configuration that explains them (`Suite.explanations_key`).
    """

    def __init__(self, folder: DictionaryFolder, key: str) -> None:
        self._store = folder.store
        self.prefix = f"{folder.prefix.replace('dictionaries', 'explanations', 1)}-{key}"

    def summary(self) -> dict[str, Any] | None:
        """What all came to, or None before that. A damaged one is reported and counts as none: it is made again from the parts."""
        try:
            return self._store.get_record(f"{self.prefix}/summary.json")
        except Corrupt as damage:
            log.warning("%s; it is made again", str(damage).partition(";")[0])
            return None

    def finish(self, summary: dict[str, Any]) -> None:
        self._store.put_record(f"{self.prefix}/summary.json", summary)

    def table(self, name: str) -> pa.Table | None:
        """A part, or None where it was not made. Raises Corrupt when it is not what was written."""
        record = self._store.get_record(f"{self.prefix}/{name}.json")
        if record is None:
            return None
        return pq.read_table(io.BytesIO(self._store.get_checked(f"{self.prefix}/{name}.parquet", record["sha256"])))

    def need(self, name: str) -> pa.Table:
        """A part that was made. Raises Corrupt when it is gone, or not what was written."""
        table = self.table(name)
        if table is None:
            raise Corrupt(
                f"{self._store.where(f'{self.prefix}/{name}.json')} is missing; expected what was written there; delete its folder and run again"
            )
        return table

    def explained(self, subject: str) -> list[dict[str, Any]]:
        """Every latent of a subject that was drawn, with what it was explained by and the scores. Raises Corrupt as `need` does."""
        beginning, end = f"{self.prefix}/{subject}-explanations-", ".parquet"
        keys = [key for key in self._store.keys(self.prefix) if key.startswith(beginning) and key.endswith(end)]
        return [row for key in keys for row in self.need(key.rpartition("/")[2].removesuffix(end)).to_pylist()]

    def save_table(self, name: str, table: pa.Table) -> None:
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        self._store.put_record(f"{self.prefix}/{name}.json", {"sha256": self._store.put(f"{self.prefix}/{name}.parquet", sink.getvalue())})
