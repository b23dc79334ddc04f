"""A site: one place in the model, a layer and a kind, written `L09.resid_post`."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

Kind = Literal["resid_post", "mlp_out", "attn_z"]
"""`resid_post`: output of the block. `mlp_out`: output of the MLP, after its post-norm where the model has one.
`attn_z`: the attention heads concatenated, the input of the output projection (arXiv:2408.05147, section 3.1)."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, order=True)
class Site:
    layer: int
    """Zero-based block."""
    kind: Kind

    def __str__(self) -> str:
        return f"L{self.layer:02d}.{self.kind}"

    def matches(self, glob: str) -> bool:
        """Whether a shell-style pattern such as `L09.*` names this site."""
        return fnmatchcase(str(self), glob)

    @classmethod
    def parse(cls, text: str) -> "Site":
        """The site that `str` wrote.

        Raises:
            ValueError: the text is not of the form `L09.resid_post`.
        """
        found = re.fullmatch(r"L(\d+)\.(\w+)", text)
        if not found or found[2] not in KINDS:
            raise ValueError(f"{text!r} is not a site; one is written L09.resid_post")
        return cls(int(found[1]), found[2])
