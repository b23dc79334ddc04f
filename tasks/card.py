"""Card: the README of a release, written from its scorecards."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from core.selection import off_target
from core.spec import DictionarySpec
from core.suite import Suite
from tasks.snippets import activations_of, snippets
from tasks.tables import FURTHER_LEGEND, LEGEND, OFF_TARGET, Scored, further_lines, markdown, table_lines
from tasks.train import describe_filter


@dataclass(frozen=True)
class Card:
    """Markdown, with the front matter that the Hugging Face hub reads.

    Args:
        scored: what is released, with scorecards that say where. left_out: what is not, and why. description: of the harvest. hooks: each site's
            place as a Hugging Face hook point.
    """

    suite: Suite
    scored: Scored
    left_out: Mapping[DictionarySpec, str]
    description: dict[str, Any]
    hooks: dict[str, str]

    def markdown(self) -> str:
        title = self.suite.release.title or self.suite.name
        parts = [
            f"---\n{yaml.safe_dump(self._front(), sort_keys=False).strip()}\n---",
            f"# {_plain(title)}",
            self._what(),
            _plain(self.suite.release.notes or ""),
            self._facts(),
            "## What was measured",
            markdown(table_lines(self.scored)),
            LEGEND,
            "![FVU and delta loss against L0](pareto.png)",
            markdown(further_lines(self.scored)),
            FURTHER_LEGEND,
            *self._canonical(),
            *self._not_released(),
            "## How to load one",
            *self._loading(),
            "## How they were trained",
            self._training(),
            "## Know before use",
            "\n".join(f"- {line}" for line in self._limits()),
            "## Verify, license, cite",
            self._trust(),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _front(self) -> dict[str, Any]:
        front = {
            "license": self.suite.release.license,
            **({"library_name": "saelens"} if "saelens" in self.suite.release.formats else {}),
            "tags": ["sparse-autoencoder", "jumprelu", "interpretability"],
        }
        return front | ({"base_model": self.suite.base_model} if _on_hub(self.suite.base_model) else {})

    def _what(self) -> str:
        kinds = {spec.architecture for spec, _ in self.scored}
        what = "JumpReLU sparse autoencoders" if kinds == {"jumprelu"} else f"sparse autoencoders ({', '.join(sorted(kinds))})"
        trained, scored_by = (", ".join(sorted({card[key]["commit"] for _, card in self.scored})) for key in ("trained_by", "code"))
        return (
            f"{len(self.scored)} {what} ([arXiv:2407.14435](https://arxiv.org/abs/2407.14435)), trained by Jumpsuite at commit {trained}, "
            f"scored at {scored_by}. Configuration, machine and time of each: `provenance.json`."
        )

    def _facts(self) -> str:
        suite, text, loss = self.suite, self.suite.text, self.scored[0][1]["loss"]
        revision = f" at `{suite.model.revision}`" if suite.model.revision else ""
        source = f" (from `{suite.model.source}`)" if suite.release.base_model else ""
        sites = dict.fromkeys(str(spec.site) for spec, _ in self.scored)
        tokens = f"{text.training_tokens:,} tokens to train on, {text.held_out_tokens:,} held out"
        lines = {
            "model": f"`{suite.base_model}`{revision}{source}, run in {suite.model.dtype}",
            "text": f"`{text.source}`: {tokens}, in sequences of {text.context:,}",
            "text fingerprint": f"`{self.description['token_fingerprint'][:16]}` (SHA-256 of the tokens)",
            "sites": ", ".join(f"`{site}` (`{self.hooks[site]}`)" for site in sites),
            "intact loss": f"{loss['intact']:.3f} nats a token, over {loss['sequences']} held-out sequences",
            "formats": ", ".join(f"`{name}/`" for name in suite.release.formats),
        }
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in lines.items())])

    def _canonical(self) -> list[str]:
        chosen = [(spec, card) for spec, card in self.scored if card["canonical"]]
        if len(chosen) == len(self.scored):
            return []
        lines = [
            ("site", "width", "L0", "take"),
            *((str(spec.site), f"{spec.width:,}", f"{card['l0']:.1f}", f"`{spec.name}`") for spec, card in chosen),
        ]
        return [
            "## Which one to take",
            f"If any will do: of each site and width the one whose L0 is nearest {self.suite.release.canonical_l0:g}.",
            markdown(lines),
        ]

    def _not_released(self) -> list[str]:
        if not self.left_out:
            return []
        rules = {name: value for name, value in self.suite.release.rules.model_dump().items() if value}
        lines = [("site", "dictionary", "why"), *((str(spec.site), f"`{spec.name}`", _plain(why)) for spec, why in self.left_out.items())]
        return [
            "## Not released",
            f"Of this suite, and left out by its rules ({_plain(json.dumps(rules))}):",
            markdown(lines),
        ]

    def _loading(self) -> list[str]:
        spec, card = min(self.scored, key=lambda each: (each[0].architecture != "jumprelu", not each[1]["canonical"]))
        hook, model = self.hooks[str(spec.site)], self.suite.model
        parts = [f"`{spec.site}`, width {spec.width:,}, L0 {card['l0']:.0f}. `activations` are those of `{hook}`, raw: {RAW}"]
        for title, code in snippets(card).items():
            parts += [f"### {title}", f"```python\n{code}```"]
        if not self._unpacked or self.suite.release.base_model:
            parts += [
                "### Activations, with transformers",
                f"```python\n{activations_of(self.suite.base_model, model.revision, model.dtype, hook, self.description['bos_token'])}```",
            ]
        return parts

    def _training(self) -> str:
        every = sorted({spec.tokens for spec, _ in self.scored})
        training = self.suite.training
        told = training.identity() | {"recipe": training.recipe, "tokens": every[0] if len(every) == 1 else every}
        return f"```json\n{json.dumps(told, indent=2)}\n```"

    @property
    def _unpacked(self) -> bool:
        return self.suite.model.source.startswith("package:") or self.suite.model.source.endswith(".gguf")

    def _limits(self) -> list[str]:
        cards = [card for _, card in self.scored]
        dead, dense = _range([card["dead"] for card in cards]), _range([card["dense"]["0.1"] for card in cards])
        lines = [
            f"Dead latents: {dead} of a dictionary's fired on none of the {cards[0]['rows']:,} held-out rows; rare latents count as dead here.",
            f"Dense latents: {dense} of a dictionary's fire on more than a tenth of the rows; these seldom mean one thing.",
        ]
        targets = [(spec, card) for spec, card in self.scored if spec.target_l0 is not None]
        off = [f"`{spec.site}` `{spec.name}` ({card['l0']:.1f})" for spec, card in targets if off_target(spec, card) > OFF_TARGET]
        if off:
            lines.append(
                f"L0 is more than {OFF_TARGET:.0%} off its target at {len(off)} of {len(targets)}: {', '.join(off[:10])}{', …' * (len(off) > 10)}."
            )
        text = self.suite.text
        lines.append(
            f"They know the text they were trained on, `{text.source}`, {text.training_tokens:,} tokens; on other text expect higher FVU and delta "
            "loss."
        )
        if self._unpacked:
            lines.append("The model's weights were unpacked from a GGUF file, so they are quantised: activations of the original weights differ.")
        lines.append("BOS, EOS and padding were neither trained nor scored on, and keep their own activations when a dictionary is spliced in.")
        lines += self._filter()
        return lines

    def _filter(self) -> list[str]:
        seen = {str(spec.site): card["inputs"] for spec, card in self.scored if card["inputs"]["norm_limit"] is not None}
        if not seen:
            return ["No rows were left out for their norm."]
        sites = "\n".join(f"  - `{site}`: {describe_filter(inputs)}." for site, inputs in seen.items())
        return [f"Rows of extreme norm were left out of training and of L0, FVU and dead latents (not of delta loss):\n{sites}"]

    def _trust(self) -> str:
        return (
            "`jumpsuite verify` checks `SHA256SUMS`, loads every file, and measures L0 and FVU of every dictionary on `samples/`; with "
            "`--loss`, which runs the model, delta loss too. `metrics.parquet` has every number.\n\nThe dictionaries are under "
            f"`{self.suite.release.license}`; the terms of the model that they were made from hold beside it.\n\n"
            f"```bibtex\n{BIBTEX}```"
        )


RAW = (
    "their scale, mean and the pre-encoder bias are folded into the weights. `attn_z` takes the heads concatenated, as the input of the attention's "
    "output projection has them; for TransformerLens's `hook_z`, which has them apart, call `sae.turn_on_forward_pass_hook_z_reshaping()`."
)

BIBTEX = """\
@article{rajamanoharan2024jumping,
  title   = {Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders},
  author  = {Rajamanoharan, Senthooran and Lieberum, Tom and Sonnerat, Nicolas and Conmy, Arthur and
             Varma, Vikrant and Kram{\\'a}r, J{\\'a}nos and Nanda, Neel},
  journal = {arXiv preprint arXiv:2407.14435},
  year    = {2024}
}
"""


def _range(shares: list[float]) -> str:
    low, high = min(shares), max(shares)
    return f"{low:.1%}" if f"{low:.1%}" == f"{high:.1%}" else f"{low:.1%} to {high:.1%}"


def _plain(text: str) -> str:
    """A user's words as one Markdown paragraph that cannot open HTML, nor end a table's cell."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")


def _on_hub(source: str) -> bool:
    return ":" not in source and source.count("/") == 1 and not source.endswith(".gguf") and not source.startswith((".", "/"))
