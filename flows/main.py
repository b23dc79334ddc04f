"""The command line. Exit codes: 0 done, 1 something failed (named), 2 bad usage or configuration."""

import argparse
import logging
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from core.errors import ConfigError, JumpsuiteError
from core.suite import Suite
from core.suite_file import parse_suite
from flows import PACKAGES
from flows.engine import fault_of, quiet, reach, settle

if TYPE_CHECKING:
    from storage.catalogue import Catalogue

DONE, FAILED, MISUSED = 0, 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Run one command and give its exit code."""
    options = _parser().parse_args(arguments)
    _log_to_terminal()
    try:
        return int(options.command(options))
    except ConfigError as error:
        _complain(str(error))
        return MISUSED
    except JumpsuiteError as error:
        _complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        _complain("stopped; everything committed is kept, and the same command goes on from there")
        return FAILED
    except BrokenPipeError:
        return FAILED
    except Exception as error:
        if fault := fault_of(error):
            _complain(fault)
            return FAILED
        where = Path(tempfile.gettempdir()) / f"jumpsuite-error-{os.getpid()}.txt"
        where.write_text(traceback.format_exc())
        what = " ".join(str(error).split()) or type(error).__name__
        _complain(f"{type(error).__name__}: {what}; expected to go on; the traceback is in {where}, please report it with that file")
        return FAILED


def entry() -> NoReturn:
    """The `jumpsuite` script. Told to end (SIGTERM, by a cluster or a container), it ends as on Ctrl-C: tidily, and with its server."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jumpsuite", description="Train, score and release suites of JumpReLU sparse autoencoders.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what)
        added.set_defaults(command=function)
        return added

    def on_suite(name: str, function: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
        added = command(name, function, what)
        added.add_argument("suite", metavar="SUITE", help="suite file, such as deployments/suites/gemma-3-270m-demo.yaml")
        added.add_argument("--store", default="runs", metavar="PLACE", help="folder or bucket of all that a run makes (default: runs)")
        added.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            dest="settings",
            help="a field of the suite file, such as training.tokens=100000",
        )
        if name != "release":
            added.add_argument("--only", default="*", metavar="GLOB", help="sites to work on, such as 'L09.*' (default: all)")
        return added

    planned = on_suite("plan", plan, "Say what would be done: dictionaries, tokens, bytes, FLOPs, memory, hours. Changes nothing.")
    planned.add_argument("--device", metavar="NAME", help="plan for a device such as h100 instead of this machine")
    planned.add_argument("--price", type=float, metavar="MONEY", help="what an hour of the device costs, for the price of it all")
    on_suite("run", run, "Do everything of a suite that is missing. Safe to repeat: retrying is running again.")
    on_suite("harvest", harvest, "Make the activations of a suite alone. Start it once on every GPU or machine: the runs share the work.")
    on_suite("status", status, "Show every site and dictionary: absent, running, failed or done, with its scores.")
    on_suite("explain", explain, "Say what latents mean, and score how far that predicts them. Does only what is missing.")
    on_suite("report", report, "Show the table of what was measured, draw the picture again, and write pages to browse.")
    rated = on_suite("ratings", ratings, "Join what people rated on the report's rating page with whose latents those were.")
    rated.add_argument("files", metavar="FILE", nargs="+", help="files that the page saved, one a rater")
    on_suite("study", study, "Train and score what of a suite is missing, and compare its architectures: table, Pareto plots, a sentence.")
    exported = on_suite("export", export, "Write what was explained for Neuronpedia, or the activations for delphi.")
    exported.add_argument("--as", required=True, choices=("neuronpedia", "delphi"), dest="format", help="whose format")
    exported.add_argument("--to", required=True, metavar="DIR", help="folder to write it in")
    compared = on_suite("evaluate", evaluate, "Measure anybody's dictionaries as the suite's own are, on its text, beside them.")
    compared.add_argument(
        "--release", required=True, metavar="PLACE", help="folder, bucket or hf://ORG/NAME[@REVISION][/FOLDER] that holds them, in any format"
    )
    release = on_suite("release", release_suite, "Package a finished suite for other people's libraries, and verify it.")
    release.add_argument("--to", metavar="PLACE", help="folder, bucket or hf://ORG/NAME of the release (default: <store>/<suite name>/release)")
    release.add_argument("--dry-run", action="store_true", help="make and verify it, and say what would be sent to a bucket or the hub")
    deployed = command(
        "deploy", deploy_suites, "Set up a Prefect server for suites on workers: work pools, deployments, automations. Safe to repeat."
    )
    deployed.add_argument("suites", metavar="SUITE", nargs="*", help="suite files that get a deployment of their own, suite/<suite name>")
    deployed.add_argument("--store", default="runs", metavar="PLACE", help="folder or bucket of all that runs make (default: runs)")
    deployed.add_argument(
        "--type", default="process", choices=("process", "docker", "kubernetes"), help="where workers start runs (default: process)"
    )
    deployed.add_argument("--cron", metavar="TIMES", help="when these suites run, such as '0 2 * * *' for two every night")
    deployed.add_argument("--notify", metavar="URL", help='where every run that fails is told of, as a JSON {"text": ...}, which chats take')
    verify = command("verify", verify_place, "Check a release: checksums, then every dictionary against its scorecard.")
    verify.add_argument("release", metavar="RELEASE", help="folder of a release, or s3://, gs://, az:// or hf://ORG/NAME")
    verify.add_argument("--loss", action="store_true", help="measure delta losses again too, which loads and runs the model")
    return parser


# Commands


def plan(options: argparse.Namespace) -> int:
    catalogue = _catalogue(options)
    from tasks.plan import describe

    print(describe(catalogue, options.device, options.price))
    _next(f"jumpsuite run {_again(options)}")
    return DONE


def run(options: argparse.Namespace) -> int:
    suite = _suite(options)
    _settle_prefect(options)
    from flows.suite import suite_flow
    from storage.catalogue import Catalogue
    from tasks.evaluate import scorecards

    catalogue, began = Catalogue(suite, options.store, options.only), time.monotonic()
    num_sites, num_dictionaries = len(catalogue.sites), sum(map(len, catalogue.sites.values()))
    _say(f"{suite.name}: {num_dictionaries} dictionaries at {num_sites} sites of {suite.model.source}, in {catalogue.store.address}")
    state = suite_flow(suite, options.store, options.only, return_state=True)
    catalogue = Catalogue(suite, options.store, options.only)  # of a text that grows there may be more now
    _show(catalogue, list(scorecards(catalogue)))
    if not state.is_completed():
        return _failed(state, f"jumpsuite run {_again(options)}    (does only what is missing)")
    minutes = (time.monotonic() - began) / 60
    if options.only == "*":
        release = _short(catalogue.store.where(f"{suite.name}/release"))
        print(f"Released and verified in {minutes:.1f} minutes: {release}")
        _next(f"jumpsuite verify {release}")
    else:
        print(f"Done in {minutes:.1f} minutes. A release needs every site.")
        _next(f"jumpsuite run {_again(options, only='*')}")
    return DONE


def harvest(options: argparse.Namespace) -> int:
    suite = _suite(options)
    _settle_prefect(options)
    from flows.harvest import harvest_flow
    from storage.catalogue import Catalogue

    state = harvest_flow(suite, options.store, options.only, return_state=True)
    if not state.is_completed():
        return _failed(state, f"jumpsuite harvest {_again(options)}    (does only what is missing)")
    catalogue = Catalogue(suite, options.store, options.only)
    print(f"Harvested {len(catalogue.sites)} sites of {suite.model.source}: {_short(catalogue.store.where(catalogue.harvest.prefix))}")
    _next(f"jumpsuite run {_again(options)}")
    return DONE


def status(options: argparse.Namespace) -> int:
    catalogue = _catalogue(options)
    from tasks.status import describe

    text, complete = describe(catalogue)
    print(text)
    _next(f"jumpsuite {'report' if complete else 'run'} {_again(options)}")
    return DONE


def explain(options: argparse.Namespace) -> int:
    suite = _suite(options)
    _settle_prefect(options)
    from flows.explain import explain_flow
    from storage.catalogue import Catalogue
    from tasks.explained import examples, legend, table

    state = explain_flow(suite, options.store, options.only, return_state=True)
    catalogue = Catalogue(suite, options.store, options.only)
    if shown := table(catalogue):
        print(f"\n{examples(catalogue)}\n\n{shown}\n\n{legend(catalogue)}")
    if not state.is_completed():
        return _failed(state, f"jumpsuite explain {_again(options)}    (does only what is missing)")
    _next(f"jumpsuite report {_again(options)}")
    return DONE


def report(options: argparse.Namespace) -> int:
    catalogue = _catalogue(options)
    from tasks.browse import write_pages
    from tasks.report import write_report

    scored = write_report(catalogue)
    if not scored:
        raise JumpsuiteError(f"{catalogue.suite.name} has no scorecard yet; expected a suite that was run; run jumpsuite run {_again(options)}")
    _show(catalogue, scored)
    print(f"Pages: open {_short(write_pages(catalogue))} in a browser")
    _next(f"jumpsuite release {_again(options)} --to DIR")
    return DONE


def ratings(options: argparse.Namespace) -> int:
    catalogue = _catalogue(options)
    from tasks.rating import joined

    print(joined(catalogue, {file: _text(file, "FILE", "what the rating page saved") for file in options.files}))
    return DONE


def export(options: argparse.Namespace) -> int:
    catalogue = _catalogue(options)
    from tasks.export import write

    for place in write(catalogue, options.format, Path(options.to)):
        print(place)
    return DONE


def study(options: argparse.Namespace) -> int:
    suite = _suite(options)
    _settle_prefect(options)
    from flows.study import study_flow
    from storage.catalogue import Catalogue
    from tasks.study import write_study

    state = study_flow(suite, options.store, options.only, return_state=True)
    catalogue = Catalogue(suite, options.store, options.only)
    if not state.is_completed():
        return _failed(state, f"jumpsuite study {_again(options)}    (does only what is missing)")
    found = write_study(catalogue)
    assert found is not None
    print(f"\n{found.table}\n")
    for sentence in found.sentences:
        print(sentence)
    print(f"Table, picture and numbers: {_short(catalogue.store.where(suite.name))}/study.md, study.svg, study.png, study.parquet")
    _next(f"jumpsuite report {_again(options)}")
    return DONE


def release_suite(options: argparse.Namespace) -> int:
    suite = _suite(options)
    _settle_prefect(options)
    from flows.outcome import MISCONFIGURED
    from flows.release import release_flow
    from storage.objects import Store

    place = _short(options.to or Store(options.store).where(f"{suite.name}/release"))
    state = release_flow(suite, options.store, options.to, options.dry_run, return_state=True)
    if not state.is_completed():
        raise (ConfigError if state.name == MISCONFIGURED else JumpsuiteError)(state.message or "the release failed")
    if options.dry_run:
        print(f"Made and verified, nothing sent: {place}")
        _next(f"jumpsuite release {_again(options, only='*')}" + (f" --to {shlex.quote(options.to)}" if options.to else ""))
        return DONE
    print(f"Released and verified: {place}")
    _next(f"jumpsuite verify {place}")
    return DONE


def evaluate(options: argparse.Namespace) -> int:
    suite = _suite(options)
    with _fetched(options.release, "--release") as folder:
        _settle_prefect(options)
        from flows.compare import compare_flow
        from tasks.tables import LEGEND

        state = compare_flow(suite, folder, options.store, options.only, return_state=True)
        if not state.is_completed():
            return _failed(state, f"jumpsuite evaluate {_again(options)} --release {shlex.quote(options.release)}")
        print(f"\n{state.message}\n\n{LEGEND}")
    return DONE


def deploy_suites(options: argparse.Namespace) -> int:
    suites = [parse_suite(_text(path), []) for path in options.suites]
    from storage.objects import Store

    store = Store(options.store)
    store.make()
    settle(store.local("prefect"))
    from flows.deploy import deploy

    reach(needed=True)
    for name in deploy(store.address, options.type, suites, options.cron, options.notify):
        print(name)
    print("\nWorkers, in a shell each: one for suites, and one a GPU, with its number:")
    print("  prefect worker start --pool jumpsuite")
    print("  CUDA_VISIBLE_DEVICES=0 prefect worker start --pool jumpsuite-gpu --limit 1 --name gpu-0")
    _next(f"prefect deployment run suite/{suites[0].name}" if suites else f"jumpsuite deploy SUITE {_store(options)}")
    return DONE


def verify_place(options: argparse.Namespace) -> int:
    with _fetched(options.release, "RELEASE") as folder:
        from tasks.verify import verify_release

        for line in verify_release(folder, options.release, options.loss):
            print(line, flush=True)
    return DONE


@contextmanager
def _fetched(place: str, argument: str) -> Iterator[Path]:
    """A release as a folder: itself, or a copy of what lies in a bucket or on a hub."""
    if "://" not in place:  # as `publishing.is_elsewhere`, before anything heavy is loaded
        if not Path(place).is_dir():
            raise ConfigError(f"{argument} is {place!r}, which is not a folder; expected one that holds a release; correct the path")
        yield Path(place)
        return
    from storage import publishing

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, publishing.name_of(place))  # for a format in whose files it is not said of what they are
        _say(f"Fetching {place}")
        yield publishing.fetch(place, folder)


# What they share


def _suite(options: argparse.Namespace) -> Suite:
    return parse_suite(_text(options.suite), options.settings)


def _text(path: str, name: str = "SUITE", what: str = "a YAML file such as deployments/suites/gemma-3-270m-demo.yaml") -> str:
    """What is in a file that an argument names."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is {path!r}, which is not text; expected {what}; correct the path") from None
    except OSError as error:
        raise ConfigError(f"{name} is {path!r}, which cannot be read ({error.strerror}); expected {what}; correct the path") from None


def _catalogue(options: argparse.Namespace) -> "Catalogue":
    suite = _suite(options)
    quiet()
    from storage.catalogue import Catalogue

    return Catalogue(suite, options.store, options.only)


def _settle_prefect(options: argparse.Namespace) -> None:
    from storage.objects import Store

    store = Store(options.store)
    store.make()
    settle(store.local("prefect"))
    reach()


def _show(catalogue: "Catalogue", scored: Any) -> None:
    from tasks.tables import LEGEND, missed_targets, table

    if scored:
        print(f"\n{table(scored)}\n\n{LEGEND}\n")
        for missed in missed_targets(scored):
            print(missed)
        print(f"Picture and table: {_short(catalogue.store.where(f'{catalogue.suite.name}/pareto.png'))}, metrics.parquet")


def _failed(state: Any, again: str) -> int:
    from flows.outcome import MISCONFIGURED

    for line in (state.message or "unknown").splitlines():
        _complain(f"failed: {line}")
    if state.name == MISCONFIGURED:
        return MISUSED
    _next(again)
    return FAILED


def _again(options: argparse.Namespace, only: str | None = None) -> str:
    """The arguments of this command, for the next one."""
    only = options.only if only is None else only
    words = [shlex.quote(options.suite)]
    words += [_store(options)] if _store(options) else []
    words += ["--only", shlex.quote(only)] if only != "*" else []
    words += [word for setting in options.settings for word in ("--set", shlex.quote(setting))]
    return " ".join(words)


def _store(options: argparse.Namespace) -> str:
    return f"--store {shlex.quote(options.store)}" if options.store != "runs" else ""


def _short(place: str) -> str:
    """A place as a user would type it: relative to where they are, if it is below."""
    here = Path.cwd()
    return str(Path(place).relative_to(here)) if Path(place).is_relative_to(here) else place


def _next(command: str) -> None:
    print(f"\nnext: {command}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _complain(text: str) -> None:
    for line in text.splitlines():
        _say(f"jumpsuite: {line}")


class _Plain(logging.Formatter):
    """The message alone: tracebacks belong in the run's log, not on a user's screen."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage()


def _log_to_terminal() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    for package in PACKAGES:
        logging.getLogger(package).handlers = [handler]


if __name__ == "__main__":
    entry()
