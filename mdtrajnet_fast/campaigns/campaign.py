"""A campaign, from its settings to its results: what is left to do goes to Dask's workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .. import __version__
from ..io.lock import Lock
from .clusters import workers
from .config import CampaignConfig
from .plan import Member, batches, open_campaign
from .results import counted, write_results
from .table import append_rows, write_table
from .worker import advance

if TYPE_CHECKING:
    from distributed import Client

# Atoms predicted together, where nothing is said.
CPU_ATOMS, GPU_ATOMS = 250, 20_000


@dataclass(frozen=True)
class CampaignResult:
    """What a campaign has come to.

    folder: of the campaign. table: its CSV file. written: tables and plots of all runs together.
    complete, broken, failed: how many runs; those that broke ended there, those that failed are
    tried again when the campaign is started again. errors: of the runs that failed, by name.
    """

    folder: Path
    table: Path
    written: tuple[Path, ...]
    complete: int
    broken: int
    failed: int
    errors: dict[str, str]


def campaign(config: CampaignConfig, *, progress: bool = False) -> CampaignResult:
    """Make all runs of a campaign, or go on with what is left of them.

    config: the settings, of which :meth:`.CampaignConfig.read` reads a TOML file.
    progress: show a progress bar.

    Writes, below ``config.output``: runs/NAME, folders as those of ``mdtrajnet simulate``;
    table.csv, which gets a row when a run has ended; campaign.json; and, in the end, the results of
    all complete runs together (:func:`.results.write_results`). Every run has the bits that it
    would have alone. If it is killed, or one of its workers is, what is written stays, and the same
    call goes on from there.

    A run that breaks or cannot be made never stops the others. Raises ValueError and OSError as
    :func:`.open_campaign`, BlockingIOError while another process runs the campaign, ImportError,
    ConnectionError and ValueError as :func:`.clusters.workers`, and ConnectionError when the
    scheduler is gone.
    """
    folder = Path(config.output).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder / "campaign.json"):
        members = open_campaign(config)
        write_table(folder, members)
        left = [one for one in members if one.outcome == "unfinished"]
        if left:
            bar = tqdm(
                total=len(members),
                initial=len(members) - len(left),
                unit="run",
                disable=not progress,
            )
            with bar, workers(config) as (client, count):
                bar.set_postfix_str(f"{count} workers")
                for ended in _ended(client, _todo(config, left, count), config.reports):
                    append_rows(folder, ended)
                    bar.update(len(ended))
                    unwell = {k: counted(members)[k] for k in ("broken", "failed")}
                    bar.set_postfix({k: n for k, n in unwell.items() if n}, refresh=False)
        table = write_table(folder, members)  # in the order of the plan
        written = tuple(write_results(folder, members))
    found = counted(members)
    errors = {one.folder.name: one.error for one in members if one.error is not None}
    return CampaignResult(
        folder, table, written, found["complete"], found["broken"], found["failed"], errors
    )


def _todo(config: CampaignConfig, left: list[Member], count: int) -> list[list[Member]]:
    """Batches for so many workers: as large as is said, else such that all work to the end."""
    if config.batch_atoms:
        return batches(left, config.batch_atoms)
    most = CPU_ATOMS if config.device == "cpu" else GPU_ATOMS
    count = max(1, count)  # those of a scheduler may be to come
    share = sum(one.atoms for one in left) // (12 * count)
    return batches(left, max(1, min(most, share)), count)


def _ended(client: Client, todo: Iterable[list[Member]], reports: bool) -> Iterable[list[Member]]:
    """Batches as they come to their end, whatever that is."""
    from distributed import as_completed
    from distributed.client import FutureCancelledError
    from distributed.scheduler import KilledWorker

    def submit(some: list[Member]) -> Any:
        folders = [str(one.folder) for one in some]
        future = client.submit(advance, folders, __version__, reports, pure=False)
        going[future.key] = some
        return future

    going: dict[Any, list[Member]] = {}  # by the keys of their futures
    futures = as_completed([submit(some) for some in todo])
    for future in futures:
        some = going.pop(future.key)
        try:
            for one, (said, error) in zip(some, future.result(), strict=True):
                one.said, one.error = said, error
        except FutureCancelledError as error:
            raise ConnectionError(
                "Dask's scheduler is gone; what is written stays: start the campaign again, and it "
                "goes on from there"
            ) from error
        except KilledWorker as error:
            if len(some) > 1:  # which of them it was, halves will tell
                half = len(some) // 2
                futures.update([submit(some[:half]), submit(some[half:])])
                continue
            some[0].error = f"its workers were killed again and again: {error}"
        except Exception as error:  # of the worker, not of one of its runs
            for one in some:
                one.error = f"{type(error).__name__}: {error}"
        yield some
