"""The catalogue of a suite: what it is made of, and where each piece of it lies in a store. It makes nothing."""

from copy import copy
from functools import cached_property
from pathlib import Path

from core.errors import ConfigError
from core.site import Site
from core.spec import DictionarySpec
from core.suite import Shape, Suite
from storage import texts
from storage.dictionaries import DictionaryFolder
from storage.explanations import ExplanationFolder
from storage.harvest import Harvest
from storage.models import ModelSource
from storage.objects import Store


class Catalogue:
    """One suite in one store.

    Args:
        only: a glob over sites; the others are left alone.

    Raises (when what it depends on is first asked for):
        ConfigError: the model or the text is not there, or lacks what the suite asks for.
    """

    def __init__(self, suite: Suite, store: str | Path, only: str = "*") -> None:
        self._given = suite
        self.store = Store(store)
        self.only = only
        self.source = ModelSource(self.store, suite.model)

    def of(self, sites: list[Site]) -> "Catalogue":
        """The same catalogue with some of its sites."""
        part = copy(self)
        part.__dict__["sites"] = {site: self.sites[site] for site in sites}
        return part

    @property
    def grows(self) -> bool:
        """Whether the suite is to have as many tokens as its text gives."""
        return self._given.text.grows and self._given.text.more_tokens is None

    @cached_property
    def suite(self) -> Suite:
        """The suite as given; where its text grows, with the tokens that it has been harvested of so far."""
        if not self.grows:
            return self._given
        written = Harvest(self.store, self._harvest_key).num_written
        return self._given.with_sequences(max(written, self._given.text.num_sequences))

    @property
    def shape(self) -> Shape:
        return self.source.shape

    @cached_property
    def all_sites(self) -> dict[Site, list[DictionarySpec]]:
        return self.suite.sites_of(self.shape)

    @cached_property
    def sites(self) -> dict[Site, list[DictionarySpec]]:
        """The sites that `only` names, each with its dictionaries."""
        found = {site: specs for site, specs in self.all_sites.items() if site.matches(self.only)}
        if not found:
            names = ", ".join(str(site) for site in self.all_sites)
            raise ConfigError(f"--only is {self.only!r}; expected a pattern that names one of {names}; write for example 'L09.*'")
        return found

    @cached_property
    def rolls(self) -> bool:
        """Whether the harvest rolls. Raises ConfigError where the quota is too small even for that."""
        return self.suite.rolls([self.shape.width_of(site) for site in self.all_sites])

    @cached_property
    def harvest(self) -> Harvest:
        return Harvest(self.store, self._harvest_key, self.suite.text.num_sequences, self.rolls)

    @cached_property
    def _harvest_key(self) -> str:
        return self._given.harvest_key(self.source.identity, texts.identity(self.store, self._given.text))

    def folder(self, spec: DictionarySpec) -> DictionaryFolder:
        return DictionaryFolder(self.store, spec, self.suite.dictionary_key(self.harvest.key, spec))

    def scorecard_key(self, spec: DictionarySpec) -> str:
        return self.suite.scorecard_key(self.folder(spec).key)

    def explanations(self, spec: DictionarySpec) -> ExplanationFolder:
        folder = self.folder(spec)
        return ExplanationFolder(folder, self.suite.explanations_key(folder.key))

    def failure(self, site: Site) -> str | None:
        """Why the last attempt at a site ended, if it failed."""
        record = self.store.get_record(self._failure(site))
        return str(record["reason"]) if record and record["of"] == self._keys(site) else None

    def set_failure(self, site: Site, reason: str | None) -> None:
        if reason is None:
            self.store.delete(self._failure(site))
        else:
            self.store.put_record(self._failure(site), {"reason": reason, "of": self._keys(site)})

    def _keys(self, site: Site) -> list[str]:
        """What was attempted: a failure says nothing of dictionaries that are configured otherwise."""
        return [self.folder(spec).key for spec in self.all_sites[site]]

    def _failure(self, site: Site) -> str:
        return f"{self.suite.name}/failures/{site}.json"
