"""Export: what there is of a suite, in the formats of other people's tools."""

from collections.abc import Iterator
from pathlib import Path

from core.errors import ConfigError, JumpsuiteError
from storage.catalogue import Catalogue
from tasks import delphi, neuronpedia
from tasks.contexts import HeldOutText

FORMATS = {"neuronpedia": neuronpedia.export, "delphi": delphi.export}


def write(catalogue: Catalogue, form: str, to: Path) -> Iterator[str]:
    """Write every dictionary that is trained, or for Neuronpedia explained, and give where each lies.

    Args:
        form: one of `FORMATS`.

    Raises:
        JumpsuiteError: there is none.
        ConfigError: the folder cannot be made.
    """
    specs = [spec for specs in catalogue.sites.values() for spec in specs if catalogue.folder(spec).done]
    if form == "neuronpedia":
        specs = [spec for spec in specs if catalogue.explanations(spec).summary()]
    if not specs:
        if form != "neuronpedia":
            raise JumpsuiteError(f"{catalogue.suite.name} has no trained dictionary yet; expected one; run the suite first")
        raise JumpsuiteError(f"{catalogue.suite.name} has nothing explained yet; expected explanations; run jumpsuite explain first")
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--to is {str(to)!r}, which cannot be written ({error.strerror}); expected a folder; correct it") from None
    for spec in specs:
        limit = catalogue.folder(spec).facts["inputs"]["norm_limit"]
        yield str(to / FORMATS[form](catalogue, spec, HeldOutText(catalogue, spec.site, limit), to))
