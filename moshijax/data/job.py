"""Long jobs over recordings or texts, shard by shard: resumable, and nothing half-written looks finished.

`run_job` is the local runner. Another one (`moshijax.data.on_beam`) maps `settle` over the shards that `begin` does not
return, and hands all results to `finish`; shards and index are the same.

A shard is bound to the files that it was made of: when one of them changes, the same job makes that shard again.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import moshijax
from moshijax import files, lock
from moshijax.data import buckets, records, sources
from moshijax.data.findings import Report
from moshijax.data.isolation import Isolated, Lost
from moshijax.data.shards import ShardPlan, ShardResult, Work, WorkList, make_shard, shards_of
from moshijax.errors import ConfigError, DataError, MoshijaxError

RECORDINGS = "recordings_sha256"
#: Called with items done, items in all, and the report so far.
Progress = Callable[[int, int, Report], None]


class Job(NamedTuple):
    """What a job returns.

    Attributes:
      index: content of the index file.
      report: of all items.
      written: how many shards were written this time.
    """

    index: dict[str, Any]
    report: Report
    written: int


class Runner(Protocol):
    """What goes through a job: `run_job`, or another with the same result."""

    def __call__(
        self, manifest: WorkList, out_dir: Path, plan: ShardPlan, progress: Progress | None = None, /
    ) -> Job: ...


def run_job(
    manifest: WorkList, out_dir: Path, plan: ShardPlan, progress: Progress | None = None, workers: int = 1
) -> Job:
    """Make the shards that are not there yet or whose files have changed, and at last the index that binds all.

    Args:
      manifest: of the recordings or texts.
      out_dir: folder of shards and index.
      plan: how they are made.
      progress: called after every item; after every shard where several are made at once.
      workers: processes that make shards. With 1 it is this one. The result is the same for any number.

    Returns:
      The index `{format_version, moshijax, plan, shards, report, sha256, ...}`, the report of accepted and rejected
      items, and the number of shards that were written.

    Raises:
      ConfigError: `out_dir` holds something else.
      DataError: nothing is usable, a strict plan met a rejected item, or `out_dir` holds (the start of) another job.
      MoshijaxError: a file cannot be written, another process works in `out_dir`, or a worker died twice at a shard.
    """
    with owned(out_dir):
        standing, shards = begin(manifest, out_dir, plan), shards_of(manifest, plan)
        if len(standing) == len(shards) and (out_dir / plan.index_name).exists():
            index = records.read_index(out_dir, plan.index_name)
            return Job(index, Report.from_json(index["report"]), 0)
        shown, passed = Report(), 0

        def watch(found: Report, items: int = 1) -> None:
            nonlocal passed
            shown.merge(found)
            passed += items
            if progress is not None:
                progress(passed, len(manifest.items), shown)

        results, waiting = dict(standing), {}
        for name, items in shards:
            if name in standing:
                watch(standing[name].report, len(items))
            else:
                waiting[name] = items
        if plan.strict:
            shown.require_usable(manifest.path, strict=True)
        for result in _made(plan, waiting, out_dir, watch, workers):
            results[result.file] = result
            if plan.strict:
                shown.require_usable(manifest.path, strict=True)
        ordered = [results[name] for name, _ in shards]
        return Job(*finish(manifest, out_dir, plan, ordered), len(shards) - len(standing))


def _made(
    plan: ShardPlan,
    waiting: dict[str, Sequence[Work]],
    out_dir: Path,
    watch: Callable[..., None],
    workers: int,
) -> Iterator[ShardResult]:
    """Make shards, and yield each result when it is there; no shard is begun once nobody asks for more."""
    if workers == 1:
        for name, items in waiting.items():
            yield settle(plan, items, out_dir, name, watch)
        return
    workers = max(1, min(workers, len(waiting)))
    # In this order, so that at an error or Ctrl-C the processes end first and no thread waits for them.
    with ThreadPoolExecutor(workers, thread_name_prefix="shards") as pool, Isolated(workers) as isolated:
        futures = {
            pool.submit(isolated, settle, plan, items, out_dir, name, seconds=threading.TIMEOUT_MAX): name
            for name, items in waiting.items()
        }
        for future in as_completed(futures):
            name = futures[future]
            try:
                result = future.result()
            except Lost as error:
                raise MoshijaxError(
                    f"the process that made {out_dir / name} {error}: use fewer workers if memory is short; what is "
                    "complete is kept"
                ) from error
            watch(result.report, len(waiting[name]))
            yield result


def settle(
    plan: ShardPlan, items: Sequence[Work], out_dir: Path, name: str, watch: Callable[[Report], None] | None = None
) -> ShardResult:
    """Make a shard of a job that has begun, and note its result beside it, where the job finds it when it continues.

    Raises:
      MoshijaxError: see `make_shard`.
    """
    result = make_shard(plan, items, out_dir / name, watch)
    files.write_json(_result_path(out_dir, name), result.to_json())
    return result


def settled(out_dir: Path, name: str) -> ShardResult:
    """Return the result of a shard that `settle` has made.

    Raises:
      DataError: it cannot be read.
    """
    return ShardResult.from_json(_read(_result_path(out_dir, name)))


@contextlib.contextmanager
def owned(out_dir: Path) -> Iterator[None]:
    """Make a folder if it is not there, and be the only process in it; an empty one is removed again at the end.

    A bucket has no folders and no locks. Two processes that do the same job there write the same bytes, and another job
    is refused by what the first has begun.

    Raises:
      MoshijaxError: it cannot be made, or another process works in it.
    """
    if not buckets.is_here(out_dir):
        yield
        return
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(out_dir, error) from error
    try:
        with lock.inside(out_dir):
            yield
    finally:
        with contextlib.suppress(OSError):
            out_dir.rmdir()


def begin(manifest: WorkList, out_dir: Path, plan: ShardPlan) -> dict[str, ShardResult]:
    """Claim a folder for a job.

    Returns:
      By file name, the results of the shards that are complete and whose files are what they were.

    Raises:
      ConfigError: the folder holds something else.
      DataError: it holds (the start of) another job, or files that it was made of are no longer there.
    """
    done, begun = out_dir / plan.index_name, out_dir / records.BEGUN
    identity = _identity(manifest, plan)
    claim = {"plan": identity, "recordings": [item.id for item in manifest.items]}
    if done.exists():
        old = records.read_index(out_dir, plan.index_name)["plan"]
        known = {result.file: result for result in map(ShardResult.from_json, _read(out_dir / records.SOURCES))}
        ids = [name for result in known.values() for name in result.sources]
    elif begun.exists():
        content = _read(begun)
        old, ids = content["plan"], content["recordings"]
        known = {}
        there = set(buckets.listed(out_dir))
        for name, _ in shards_of(manifest, plan):
            if _result_path(out_dir, name).name in there:
                known[name] = settled(out_dir, name)
    else:
        others = [name for name in buckets.listed(out_dir) if not name.startswith(".")]
        if others:
            raise ConfigError(f"{out_dir} holds other files, such as {others[0]}: choose a new or empty folder")
        files.write_json(begun, claim)
        return {}
    _require_same(out_dir, plan.unit, old, identity, ids, claim["recordings"])
    standing = _standing(manifest, out_dir, plan, known)
    if not done.exists() or len(standing) < len(shards_of(manifest, plan)):
        for result in standing.values():
            files.write_json(_result_path(out_dir, result.file), result.to_json())
        files.write_json(begun, claim)
        done.unlink(missing_ok=True)
        for path in out_dir.glob("shard-*"):  # of a file that had more or fewer pieces
            if path.name.partition(".")[0] not in {Path(name).stem for name, _ in shards_of(manifest, plan)}:
                path.unlink()
    return standing


def _require_same(
    out_dir: Path, unit: str, old: dict[str, Any], new: dict[str, Any], old_ids: Sequence[str], new_ids: Sequence[str]
) -> None:
    """Raise DataError where two jobs differ."""
    remedy = "choose another folder, or delete this one"
    for key in new:
        if old.get(key) == new[key]:
            continue
        if key != RECORDINGS:
            raise DataError(
                f"{out_dir} was made with {key} = {str(old.get(key))[:100]!r}, now it is {str(new[key])[:100]!r}: "
                f"{remedy}"
            )
        added, removed = sorted(set(new_ids) - set(old_ids)), sorted(set(old_ids) - set(new_ids))
        parts = [f"{sources.listed(names)} {what}" for names, what in ((added, "added"), (removed, "removed")) if names]
        raise DataError(
            f"{out_dir} was made of other {unit}: "
            f"{' and '.join(parts) or 'the same in another order, or with other suffixes or durations'}; {remedy}"
        )


def _standing(
    manifest: WorkList, out_dir: Path, plan: ShardPlan, known: dict[str, ShardResult]
) -> dict[str, ShardResult]:
    """Return the known results whose shards are there and whose files are what they were."""
    standing, gone, there = {}, [], set(buckets.listed(out_dir))
    for name, items in shards_of(manifest, plan):
        if name not in known or name not in there:
            continue
        seen = known[name].sources
        files_of = [
            (file, seen.get(item.id, {}).get(file.name), item.span) for item in items for file in plan.reads(item)
        ]
        changed = sources.changed(files_of)
        gone += [file for file in changed if not file.exists()]
        if not changed and seen.keys() == {item.id for item in items}:
            standing[name] = known[name]
    if gone:
        raise DataError(
            f"files that {out_dir} was made of are no longer there: {sources.listed(map(str, gone))}; put them back, "
            "or make the rest in another folder"
        )
    return standing


def finish(
    manifest: WorkList, out_dir: Path, plan: ShardPlan, results: Sequence[ShardResult]
) -> tuple[dict[str, Any], Report]:
    """Write the index over the results of all shards, in order.

    Raises:
      DataError: nothing is usable, and the shards are removed; or a strict plan met a rejected item.
    """
    report = Report()
    for result in results:
        report.merge(result.report)
    temporary = [*(_result_path(out_dir, result.file) for result in results), out_dir / records.BEGUN]
    if not report.usable:
        for path in [*(out_dir / result.file for result in results), *temporary, out_dir / records.SOURCES]:
            path.unlink(missing_ok=True)
    report.require_usable(manifest.path, strict=plan.strict)
    identity = _identity(manifest, plan)
    shards = [{"file": r.file, "records": len(r.notes), "sha256": r.sha256, plan.noted: list(r.notes)} for r in results]
    index = {
        "format_version": records.FORMAT_VERSION,
        "moshijax": moshijax.__version__,
        "plan": identity,
        "shards": shards,
        "report": report.to_json(),
        "sha256": records.digest(identity, shards),
        **plan.about(),
    }
    files.write_json(out_dir / records.SOURCES, [result.to_json() for result in results])
    files.write_json(out_dir / plan.index_name, index)
    for path in temporary:
        path.unlink(missing_ok=True)
    return index, report


def recordings_sha256(manifest: WorkList) -> str:
    """Return what two manifests have in common that name the same recordings in the same order."""
    found: list[list[Any]] = []
    for item in manifest.items:
        if not found or item.identity != found[-1]:
            found.append(item.identity)
    return records.digest(found)


def _identity(manifest: WorkList, plan: ShardPlan) -> dict[str, Any]:
    """Return what must be equal for two jobs to be the same, as JSON gives it back."""
    found = {
        **plan.deciding(),
        "shard_items": plan.shard_items,
        "strict": plan.strict,
        RECORDINGS: recordings_sha256(manifest),
        "format_version": records.FORMAT_VERSION,
    }
    return json.loads(json.dumps(found))


def _result_path(out_dir: Path, shard: str) -> Path:
    return (out_dir / shard).with_suffix(".report.json")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): copy the folder again, or choose another one") from error
