"""Dictionaries of a store: checkpoints while they train, then the folded weights, and what was measured of them.

    dictionaries/SITE/NAME-KEY/checkpoint.json, step-N.safetensors     the latest checkpoint; gone when training is done
                               dictionary.json, dictionary.safetensors the finished dictionary
                               scorecard-KEY.json                      one for each configuration of the evaluation
                               failure.json                            why the last attempt ended, until one succeeds
    paces/SITE/NAME-KEY.json   how long a step took, where and when: of the machine and the moment, so not among what a configuration makes

The JSON record is written last and carries the checksum of the tensors: no record, no dictionary.
"""

import logging
from typing import Any

import safetensors.torch
from torch import Tensor

from core.dictionary import Dictionary
from core.spec import DictionarySpec
from storage.objects import Corrupt, Store

log = logging.getLogger(__name__)


class DictionaryFolder:
    """Everything a store holds of one dictionary.

    Args:
        key: of the configuration that makes it (`Suite.dictionary_key`).
    """

    def __init__(self, store: Store, spec: DictionarySpec, key: str) -> None:
        self.store = store
        self.spec = spec
        self.key = key
        self.prefix = f"dictionaries/{spec.site}/{spec.name}-{key}"

    # Checkpoints

    def save_checkpoint(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Replace the latest checkpoint; `values["step"]` names it."""
        name = f"step-{values['step']:09d}.safetensors"
        sha256 = self._put_tensors(name, tensors)
        self._put("checkpoint", {"tensors": name, "sha256": sha256, "values": values})
        self._drop_steps(keep=name)

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The latest checkpoint, or None. A damaged one is reported and counts as none: training begins again, to the same end."""
        try:
            record = self._get("checkpoint")
            return (self._get_tensors(record), record["values"]) if record else None
        except Corrupt as damage:
            log.warning("%s; %s is trained from the start", damage, self.spec)
            return None

    @property
    def progress(self) -> int:
        """Steps behind the latest checkpoint."""
        record = self._get("checkpoint")
        return int(record["values"]["step"]) if record else 0

    # The finished dictionary

    @property
    def done(self) -> bool:
        return self._get("dictionary") is not None

    def finish(self, dictionary: Dictionary, facts: dict[str, Any]) -> None:
        """Store a dictionary for good, and drop what it took to train it."""
        sha256 = self._put_tensors("dictionary.safetensors", dictionary.tensors())
        self._put("dictionary", facts | {"tensors": "dictionary.safetensors", "sha256": sha256})
        self.tidy()

    def tidy(self) -> None:
        """Drop what is left of the training of a finished dictionary; a run may have been killed before it did."""
        self.store.delete(f"{self.prefix}/checkpoint.json")
        self.store.delete(f"{self.prefix}/failure.json")
        self._drop_steps()

    def load(self) -> Dictionary:
        """The finished dictionary. Raises Corrupt when it is not what was written."""
        record = self._get("dictionary")
        if record is None:
            raise Corrupt(f"{self.store.where(self.prefix)} holds no finished dictionary; expected one; run the suite again")
        return Dictionary(**self._get_tensors(record), k=self.spec.k)

    @property
    def facts(self) -> dict[str, Any]:
        return self._get("dictionary") or {}

    # What was measured

    def scorecard(self, key: str) -> dict[str, Any] | None:
        return self._get(f"scorecard-{key}")

    def save_scorecard(self, key: str, scorecard: dict[str, Any]) -> None:
        self._put(f"scorecard-{key}", scorecard)

    @property
    def pace(self) -> dict[str, Any]:
        """`seconds_a_step` of training, the mean; the `hardware` it ended on, and when it `finished`; nothing where it was not noted."""
        return self.store.get_record(self._pace) or {}

    def note_pace(self, **facts: Any) -> None:
        """As `pace` gives them."""
        self.store.put_record(self._pace, facts)

    @property
    def _pace(self) -> str:
        return self.prefix.replace("dictionaries", "paces", 1) + ".json"

    # Failure

    @property
    def failure(self) -> str | None:
        record = self._get("failure")
        return str(record["reason"]) if record else None

    def forget_failure(self) -> None:
        self.store.delete(f"{self.prefix}/failure.json")

    def fail(self, reason: str) -> None:
        self._put("failure", {"reason": reason})

    def _get(self, name: str) -> dict[str, Any] | None:
        return self.store.get_record(f"{self.prefix}/{name}.json")

    def _put(self, name: str, record: dict[str, Any]) -> None:
        self.store.put_record(f"{self.prefix}/{name}.json", record)

    def _put_tensors(self, name: str, tensors: dict[str, Tensor]) -> str:
        on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        return self.store.put(f"{self.prefix}/{name}", safetensors.torch.save(on_cpu))

    def _get_tensors(self, record: dict[str, Any]) -> dict[str, Tensor]:
        return safetensors.torch.load(self.store.get_checked(f"{self.prefix}/{record['tensors']}", record["sha256"]))

    def _drop_steps(self, keep: str = "") -> None:
        for key in self.store.keys(self.prefix):
            name = key.rpartition("/")[2]
            if name.startswith("step-") and name != keep:
                self.store.delete(key)
