"""Explanations of a store: of each dictionary the contexts that show what its latents do, and what was made of them.

explanations/SITE/NAME-KEY-KEY/TABLE.parquet, TABLE.json    a part of the latents each, with its checksum
                               summary.json                 what all came to, last of all
"""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.dictionaries import DictionaryFolder


class ExplanationFolder:
    """Everything a store holds of what one dictionary's latents mean.

    Args:
        key: of the configuration that explains them (`Suite.explanations_key`).
    """

    def __init__(self, folder: DictionaryFolder, key: str) -> None:
        self._store = folder.store
        self.prefix = f"{folder.prefix.replace('dictionaries', 'explanations', 1)}-{key}"

    def summary(self) -> dict[str, Any] | None:
        """Raises Corrupt when it is not what was written."""
        return self._store.get_record(f"{self.prefix}/summary.json")

    def finish(self, summary: dict[str, Any]) -> None:
        self._store.put_record(f"{self.prefix}/summary.json", summary)

    def table(self, name: str) -> pa.Table | None:
        """A part, or None where it was not made. Raises Corrupt when it is not what was written."""
        record = self._store.get_record(f"{self.prefix}/{name}.json")
        if record is None:
            return None
        return pq.read_table(io.BytesIO(self._store.get_checked(f"{self.prefix}/{name}.parquet", record["sha256"])))

    def names(self) -> list[str]:
        """Of all parts, sorted."""
        return [name for key in self._store.keys(self.prefix) if (name := key.rpartition("/")[2].removesuffix(".parquet")) + ".parquet" in key]

    def save_table(self, name: str, table: pa.Table) -> None:
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        self._store.put_record(f"{self.prefix}/{name}.json", {"sha256": self._store.put(f"{self.prefix}/{name}.parquet", sink.getvalue())})
