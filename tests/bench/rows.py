"""Rows to time and train on: those of a harvest's site, or made ones whose norms are heavy-tailed like a residual stream's."""

import torch
from torch import Tensor


def heavy_tailed_rows(num: int, dimensions: int, seed: int = 0) -> Tensor:
    """Sums of about 40 of 8 x dimensions unit features, with exponential coefficients, on rows whose scale is log-normal (sigma 0.5)."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(8 * dimensions, dimensions, generator=generator))
    pieces = []
    for first in range(0, num, 4_096):
        rows = min(4_096, num - first)
        # Features differ in how often they fire, as words do: feature k in proportion to 1 / (k + 10).
        chance = 1 / (torch.arange(len(features)) + 10.0)
        fires = torch.rand(rows, len(features), generator=generator) < 40 * chance / chance.sum()
        codes = fires * -torch.rand(rows, len(features), generator=generator).clamp_(min=1e-6).log_()
        pieces.append(torch.randn(rows, 1, generator=generator).mul_(0.5).exp_() * (codes @ features))
    return torch.cat(pieces)


def main() -> None:
    # Imported here, for the peers' environment has none of it and needs only what is above.
    import argparse
    from pathlib import Path

    import numpy as np

    from core.site import Site
    from core.suite_file import parse_suite
    from storage.catalogue import Catalogue
    from tasks.train import rows_within, site_inputs

    parser = argparse.ArgumentParser(description="Write a site's training rows, those within the suite's maximum norm, to a .npy file.")
    parser.add_argument("suite", type=Path)
    parser.add_argument("site", type=Site.parse)
    parser.add_argument("out", type=Path)
    parser.add_argument("--store", default="runs")
    args = parser.parse_args()
    catalogue = Catalogue(parse_suite(args.suite.read_text()), args.store)
    part = catalogue.harvest.part("train")
    kept = rows_within(part, args.site, site_inputs(catalogue, args.site)[1]["norm_limit"])
    np.save(args.out, torch.cat([batch.float() for batch in part.batches(args.site, kept)]).numpy())


if __name__ == "__main__":
    main()
