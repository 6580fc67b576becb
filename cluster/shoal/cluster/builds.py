"""Who has versions of indexes built, and what becomes of a build?

    start ─> BUILDING ─> train ─> encode each shard ─> verify ─> READY (and in force, if promoted)
                │                                        │
                └─────────── a step failed ──────────────┴─────> FAILED

One task of the controller's for each build; its steps run where the platform places them. The
writer's catalogue is the truth about versions: what is known here is how far the builds are that
this process has begun. A build that the controller does not know was begun by an earlier life of
it, whose steps died with it; `abandon` has the writer say so. Where another model is to encode the
passages first, that is done by `passages.py`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
from shoal.cluster.config import BuildLimits
from shoal.cluster.index_plan import Building
from shoal.cluster.passages import PASSAGES_PART, PassageEncoding
from shoal.cluster.steps import StepFailedError, StepRunner
from shoal.internal.v1.topology_pb2 import Build
from shoal.internal.v1.writer_pb2 import (
    AdoptVectorsRequest,
    BeginVersionRequest,
    BeginVersionResponse,
    CatalogEntry,
    FinishVersionRequest,
)
from shoal.rpc.errors import InvalidFieldError, ServiceError, service_error_of
from shoal.rpc.index_goals import target_in_force
from shoal.shard.build_job import PROGRESS, BuildJob, StepProgress, Verified
from shoal.shard.kind_names import name_of, number_of
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import BuildProgress, IndexVersion, IndexVersionState
from shoal.v1.search_pb2 import SearchKind
from shoal.writer.config import WriterSettings
from shoal.writer.encoding_job import BundleFacts, EncodingJob

if TYPE_CHECKING:
    from shoal.internal.v1.writer_pb2_grpc import WriterServiceAsyncStub

_log = logging.getLogger(__name__)

WRITER_TIMEOUT_S: Final = 10.0
# For vectors of many passages, which are written into the table's files.
ADOPT_TIMEOUT_S: Final = 3600.0
# Between two attempts to tell the writer how a build ended: it may be restarting, or its disk full.
TELL_AGAIN_S: Final = 1.0
# Parts of a build's time that training and encoding take, for want of better: 500,000 vectors.
_TRAINING_PART: Final = 0.4
_ENCODING_PART: Final = 0.4

# Answers for which telling the writer again does not help: somebody else has decided meanwhile.
_DECIDED: Final = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INVALID_ARGUMENT,
    }
)


@dataclass(frozen=True)
class _Running:
    """A build that runs."""

    number: int
    # None until the writer has given it a number.
    job: BuildJob | None = None
    # Set where another model is to encode the passages first.
    passages: PassageEncoding | None = None


class Builds:
    """The builds that this controller has begun."""

    def __init__(
        self,
        limits: BuildLimits,
        runner: StepRunner,
        writer: Callable[[], WriterServiceAsyncStub],
        *,
        clock: Callable[[], float],
        on_entry: Callable[[CatalogEntry], None],
        reading: WriterSettings,
        train_at_passages: int,
    ) -> None:
        """writer: raises ServiceError while there is none. on_entry: told what the writer has.

        reading: how the writer shows passages to encoders. train_at_passages: below so many, a
        version of another model is searched exactly.
        """
        self._reading, self._train_at_passages = reading, train_at_passages
        self._limits, self._runner, self._writer = limits, runner, writer
        self._clock, self._on_entry = clock, on_entry
        self._running: dict[str, _Running] = {}
        self._failed: dict[str, Building] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Of all builds together: those of many indexes wait for one another.
        self._alone = asyncio.Semaphore(1)
        self._encoding = asyncio.Semaphore(limits.encode_tasks)

    def seen(self) -> Mapping[str, Building]:
        """For each index with a build that runs, or failed: what `plan` must know of it."""
        return {**self._failed, **dict.fromkeys(self._running, Building())}

    async def start(
        self,
        entry: CatalogEntry,
        shard_count: int,
        *,
        promote: bool,
        recall_target: float = 0.0,
        kind: int = 0,
        encoder_bundle: str = "",
        space: str = "",
    ) -> IndexVersion:
        """Begin a build, and return its version. Raises ServiceError.

        recall_target, kind: as the protos number it; 0 means the index's. encoder_bundle: of the
        model that is to encode it; empty means the one in force. space: that it is for, a new one
        if there is a bundle; empty means the default one.
        """
        facts = await self._facts(encoder_bundle)
        own = not space and facts.model in ("", entry.encoder_model)
        if kind == SearchKind.SEARCH_KIND_EXACT and own:
            raise InvalidFieldError(
                "kind", "is EXACT: version 0 is exact search by the index's own model: promote that"
            )
        uid = entry.uid
        mine = uid not in self._running
        if mine:
            self._running[uid] = _Running(0)
        try:
            response = await self._begin(
                BeginVersionRequest(
                    uid=uid,
                    promote=promote,
                    encoder_model=facts.model,
                    encoder_bundle=encoder_bundle,
                    dimension=facts.dimension,
                    space=space,
                )
            )
        except BaseException:
            if mine:
                del self._running[uid]
            raise
        version = _find(response.entry, response.version)
        job = BuildJob(
            table_uri=entry.table_uri,
            folder=response.folder,
            index_uid=uid,
            index_version=response.version,
            shard_count=shard_count,
            dimension=version.dimension or entry.dimension,
            encoder_model=version.encoder_model,
            encoder_bundle=version.encoder_bundle,
            recall_target=target_in_force(recall_target or response.entry.recall_target),
            threads=self._limits.threads,
            kind=name_of(kind or response.entry.kind),
            memory_bytes=self._limits.memory_bytes,
            exact_below=self._exact_below(version, kind),
        )
        passages = self._passages(job, response.vectors_folder)
        self._running[uid] = _Running(response.version, job, passages)
        self._failed.pop(uid, None)
        self._on_entry(response.entry)
        _log.info("version %d of %s is being built", response.version, entry.name)
        self._spawn(self._build(entry.name, job, passages))
        return version

    async def _facts(self, bundle: str) -> BundleFacts:
        """What a bundle makes, as a machine that builds reads it. Raises InvalidFieldError."""
        if not bundle:
            return BundleFacts("", 0)
        try:
            facts: BundleFacts = await self._runner.run_step("inspect_bundle", bundle)
        except StepFailedError as error:
            raise InvalidFieldError("encoder_bundle", f"cannot be used: {error}") from error
        return facts

    def _exact_below(self, version: IndexVersion, kind: int) -> int:
        """Passages below which a version is searched exactly: only where version 0 cannot be.

        kind: that was asked for, as the protos number it; 0 if none was.
        """
        if not version.encoder_bundle:
            return 0
        if kind == SearchKind.SEARCH_KIND_EXACT:
            return sys.maxsize
        return self._train_at_passages if kind == 0 else 0

    def _passages(self, job: BuildJob, vectors_folder: str) -> PassageEncoding | None:
        if not job.encoder_bundle:
            return None
        reading = self._reading
        encoding = EncodingJob(
            table_uri=job.table_uri,
            model=job.encoder_model,
            bundle=job.encoder_bundle,
            vectors_folder=vectors_folder,
            progress_folder=str(Path(job.folder) / PROGRESS),
            tokenizer="" if reading.tokenizer is None else str(reading.tokenizer),
            title_tokens=reading.title_tokens,
            title_chars=reading.passage_chars,
        )
        return PassageEncoding(encoding, self._runner, self._encoding, self._clock)

    def start_by_itself(self, entry: CatalogEntry, shard_count: int) -> None:
        """Begin the first build of an index that has grown large enough, and promote it."""

        async def begin() -> None:
            try:
                await self.start(entry, shard_count, promote=True)
            except ServiceError as error:
                _log.warning("a build of %s cannot begin: %s", entry.name, error)
                self._failed[entry.uid] = Building(self._clock(), str(error))

        # Running from now on, so that it is not begun again meanwhile.
        self._failed[entry.uid] = Building()
        self._spawn(begin())

    def abandon(self, entry: CatalogEntry, number: int) -> None:
        """Have the writer say that a build has failed which an earlier life of ours had begun."""
        if entry.uid in self._running:
            return
        self._running[entry.uid] = _Running(number)
        _log.warning("the build of version %d of %s was interrupted", number, entry.name)
        message = "the controller was restarted in the middle of the build: build another one"
        ended = _failure(number, message)

        async def tell() -> None:
            try:
                await self._tell(entry.uid, ended)
            finally:
                del self._running[entry.uid]

        self._spawn(tell())

    async def progress(self) -> list[Build]:
        """How far the builds are."""
        running = list(self._running.items())
        return [
            Build(
                index_uid=uid,
                version=each.number,
                progress=await asyncio.to_thread(_progress_of, each.job, each.passages),
            )
            for uid, each in running
            if each.job is not None
        ]

    async def close(self) -> None:
        """Stop minding the builds; the writer is told by the next life of the controller."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _begin(self, request: BeginVersionRequest) -> BeginVersionResponse:
        try:
            return await self._writer().BeginVersion(request, timeout=WRITER_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise service_error_of(error) from error
        except asyncio.CancelledError:
            require_running()  # The writer's channel was closed under the call: it moved.
            raise not_ready("the writer has just moved: look whether the build began") from None

    async def _build(self, name: str, job: BuildJob, passages: PassageEncoding | None) -> None:
        number, uid = job.index_version, job.index_uid
        codebook_uri = ""
        try:
            if passages is not None:
                await passages.run(lambda: self._adopt(uid, number))
            verified = await self._run_steps(job)
            ended, codebook_uri = _success(job, verified), verified.codebook_uri
        except Exception as error:  # noqa: BLE001  # whatever it was, it is shown
            unexpected = not isinstance(error, StepFailedError)
            _log.warning("version %d of %s failed: %s", number, name, error, exc_info=unexpected)
            ended = _failure(number, str(error) or type(error).__name__)
            self._failed[uid] = Building(self._clock(), str(error))
        try:
            if await self._tell(uid, ended, codebook_uri):
                _log.info("version %d of %s has ended: %s", number, name, ended.message or "ready")
            else:
                await self._runner.run_step("discard", job)
        except StepFailedError as error:
            _log.warning("files of version %d of %s may be left: %s", number, name, error)
        finally:
            del self._running[uid]

    async def _adopt(self, uid: str, number: int) -> int:
        """Have the writer take what was encoded; returns how many passages have no vector yet."""
        request = AdoptVectorsRequest(uid=uid, version=number)
        while True:
            try:
                response = await self._writer().AdoptVectors(request, timeout=ADOPT_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                if error.code() in _DECIDED:
                    raise StepFailedError(str(error.details())) from error
                _log.warning("the writer cannot take vectors yet: %s", error.details())
            except ServiceError as error:
                _log.info("the writer is away: %s", error)
            except asyncio.CancelledError:
                require_running()  # The writer's channel was closed under the call: it moved.
            else:
                return int(response.missing)
            await asyncio.sleep(TELL_AGAIN_S)

    async def _run_steps(self, job: BuildJob) -> Verified:
        async with self._alone:
            if job.exact_below and not await self._runner.run_step("needs_codebook", job):
                counted: Verified = await self._runner.run_step("count", job)
                return counted
            await self._runner.run_step("train", job)
        await self._encode(job)
        async with self._alone:
            verified: Verified = await self._runner.run_step("verify", job)
        return verified

    async def _encode(self, job: BuildJob) -> None:
        """Encode all shards. If one fails no other is begun, and those that run are waited for.

        Otherwise they would go on to write files after those of the build were removed.
        """
        # One thread each: as many run at once as there are cores to spare.
        alone = replace(job, threads=1)
        failures: list[StepFailedError] = []

        async def encode(shard: int) -> None:
            async with self._encoding:
                if failures:
                    return
                try:
                    await self._runner.run_step("encode", alone, shard)
                except StepFailedError as error:
                    failures.append(error)

        await asyncio.gather(*(encode(shard) for shard in range(job.shard_count)))
        if failures:
            raise failures[0]

    async def _tell(self, uid: str, ended: IndexVersion, codebook_uri: str = "") -> bool:
        """Tell the writer how a build ended, until it has heard. False if it does not want it."""
        request = FinishVersionRequest(uid=uid, version=ended, codebook_uri=codebook_uri)
        while True:
            try:
                response = await self._writer().FinishVersion(request, timeout=WRITER_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                if error.code() in _DECIDED:
                    _log.info("the writer does not take version %d: %s", ended.number, error)
                    return False
                _log.warning("the writer cannot note a build's end yet: %s", error.details())
            except ServiceError as error:
                _log.info("the writer is away: %s", error)
            except asyncio.CancelledError:
                require_running()  # The writer's channel was closed under the call: it moved.
            else:
                self._on_entry(response.entry)
                return True
            await asyncio.sleep(TELL_AGAIN_S)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def require_running() -> None:
    """Go on being cancelled if this task was; return if a call in it was, by a closed channel."""
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise asyncio.CancelledError


def not_ready(message: str) -> ServiceError:
    """What a caller is told while the controller lacks what a build needs."""
    return ServiceError(Reason.REASON_CONTROLLER_UNAVAILABLE, message)


def _find(entry: CatalogEntry, number: int) -> IndexVersion:
    return next(each for each in entry.versions if each.number == number)


def _success(job: BuildJob, verified: Verified) -> IndexVersion:
    return IndexVersion(
        number=job.index_version,
        state=IndexVersionState.INDEX_VERSION_STATE_READY,
        table_version=verified.table_version,
        document_count=verified.document_count,
        passage_count=verified.passage_count,
        shard_count=job.shard_count,
        size_bytes=verified.size_bytes,
        recall=verified.recall,
        recall_target=job.recall_target,
        kind=number_of(verified.kind),
    )


def _failure(number: int, message: str) -> IndexVersion:
    state = IndexVersionState.INDEX_VERSION_STATE_FAILED
    return IndexVersion(number=number, state=state, message=message)


def _progress_of(job: BuildJob, passages: PassageEncoding | None) -> BuildProgress:
    progress = _steps_progress(job)
    if passages is None:
        return progress
    if not passages.done:
        return passages.progress()
    progress.done = PASSAGES_PART + (1 - PASSAGES_PART) * progress.done
    return progress


def _steps_progress(job: BuildJob) -> BuildProgress:
    folder = Path(job.folder)
    stage, trained = StepProgress(folder, "train").read()
    encoded = [
        StepProgress(folder, f"encode-{shard:04}").read()[1] for shard in range(job.shard_count)
    ]
    part = sum(encoded) / job.shard_count
    if part >= 1.0:
        return BuildProgress(stage="verifying", done=_TRAINING_PART + _ENCODING_PART)
    if part > 0.0:
        finished = sum(each >= 1.0 for each in encoded)
        stage = f"encoding, {finished} of {job.shard_count} shards done"
    done = _TRAINING_PART * trained + _ENCODING_PART * part
    return BuildProgress(stage=stage or "waiting for a machine", done=done)
