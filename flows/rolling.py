"""Rolling: harvest and training by turns, for suites whose activations never fit on a disk at once.

While every site trains on one window of the harvest, one after another, the next window is made; then the first is removed. A site
leaves off with a checkpoint and goes on from it, so what comes out is what a harvest that is kept whole gives. Where a run left off is
read from the checkpoints; a window that a site still needs is made again, for that site alone.
"""

import itertools

from prefect.states import State

from core.site import Site
from flows.site import site_flow
from storage.catalogue import Catalogue
from tasks.harvest import harvest_blocks
from tasks.tokenise import tokenise
from tasks.train import been_through, enter


def roll(catalogue: Catalogue, ended: dict[Site, State]) -> None:
    """Train and score every site of the catalogue, and note how each one ended.

    Raises:
        JumpsuiteError: another run rolls the same harvest; a harvest fails.
    """
    suite, store = catalogue.suite, catalogue.store
    with store.lock(f"{catalogue.harvest.prefix}/windows", owns=[]):
        tokenise(catalogue)
        for site in catalogue.sites:
            for spec in catalogue.sites[site]:
                catalogue.folder(spec).forget_failure()
        part = catalogue.harvest.part("train")
        for turn in itertools.count():
            going_on = [site for site in catalogue.sites if _unfinished(catalogue, site) and not _failed(ended.get(site))]
            if not going_on:
                break
            here = [site for site in going_on if not been_through(catalogue, site, turn)]
            if not here:
                continue
            part.keep_only([*suite.window(turn), *suite.window(turn + 1)])
            harvest_blocks(catalogue.of(here), turn)
            after = [site for site in here if enter(catalogue, site, turn)]
            ahead = harvest_blocks.submit(catalogue.of(after), turn + 1) if after else None
            for site in here:
                name = f"site {site}, window {turn + 1}"
                ended[site] = site_flow.with_options(flow_run_name=name)(suite, str(site), store.address, turn, return_state=True)
            if ahead:
                ahead.result()
        part.keep_only([])
    for site in catalogue.sites:
        if site not in ended:
            ended[site] = site_flow(suite, str(site), store.address, return_state=True)


def _failed(state: State | None) -> bool:
    return state is not None and not state.is_completed()


def _unfinished(catalogue: Catalogue, site: Site) -> bool:
    return any(not (folder.done or folder.failure) for folder in map(catalogue.folder, catalogue.sites[site]))
