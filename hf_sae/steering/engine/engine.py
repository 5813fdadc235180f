"""`SteeringEngine`: many people steer one host at once, each as rows of the same batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ...errors import DataError, EngineBusyError
from ...hosts.fingerprints import warn_of_another_host
from ..delta import BoundEdits
from ..placed import places_of
from .batches import Batch
from .forward import HostForward, Output
from .job import Branch, Job
from .probe import fitting_batch
from .request import SteeringRequest
from .rows import Row
from .run import SteeringRun
from .streams import Stream
from .worker import Worker


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ...models.modeling_sae import SAE


T = TypeVar("T")


class SteeringEngine:
    """One thread that owns a host and its autoencoders, and decodes the texts of all requests in lock-step.

    Requests join the running batch when they come and leave it when they end; rows of different requests share every forward pass,
    each edited by its own plan. The host is put into evaluation mode. Hooks are there during a pass only.

    Args:
        host (`PreTrainedModel`): a causal language model, wherever its weights lie.
        tokenizer: its tokenizer.
        saes (`dict` of [`SAE`]): by the names that plans use; their order is that of edits at one place.
        max_rows (`int`): rows of the shared batch. A variant takes one, and one more for its gauge.
        max_waiting (`int`): requests that may wait for room.

    Example:
        ```python
        with SteeringEngine(host, tokenizer, {"": sae}) as engine:
            plan = SteeringPlan({"": add({3: OfMax(2)})})
            variants = (Variant("Baseline"), Variant("Steered", plan))
            for streams in engine.start(SteeringRequest("import ", variants)):
                print([stream.text for stream in streams])
        ```
    """

    def __init__(
        self,
        host: PreTrainedModel,
        tokenizer: Any,
        saes: Mapping[str, SAE] | None = None,
        *,
        max_rows: int = 96,
        max_waiting: int = 64,
    ) -> None:
        self.host, self.tokenizer, self.max_rows, self.max_waiting = host.eval(), tokenizer, max_rows, max_waiting
        self.saes: dict[str, SAE] = {}
        self._forward = HostForward(host, tokenizer, self.saes)
        self._batch: Batch | None = None
        self._jobs: list[Job] = []
        self._waiting: deque[Job] = deque()
        self._worker = Worker(self._work, "hf-sae-engine")
        for name, sae in (saes or {}).items():
            self.add(name, sae)

    def add(self, name: str, sae: SAE) -> None:
        """Makes an autoencoder known, or another one under a name that is known.

        Raises:
            HookPointError: if the host has no such place, or it has another width than the autoencoder.
        """
        places_of(self.host, sae)
        warn_of_another_host(sae, self.host, self.tokenizer)
        self.saes[name] = sae

    def start(self, request: SteeringRequest) -> SteeringRun:
        """Takes a request; its streams grow from now on.

        Raises:
            DataError: for a prompt that is empty or too long, or a chat that the host has no template for.
            EngineBusyError: if too many requests wait.
            ValueError: for an autoencoder, latent or strength that does not exist, or more variants than rows.
        """
        return self._worker.call(lambda: self._accept(request))

    def generate(self, request: SteeringRequest, timeout: float | None = None) -> tuple[Stream, ...]:
        """The finished streams of a request; as [`SteeringEngine.start`] and [`SteeringRun.result`]."""
        with self.start(request) as run:
            return run.result(timeout)

    def call(self, function: Callable[[], T]) -> T:
        """Runs a function that uses the host, between two steps, and returns what it returns.

        Everything that touches the host while the engine is open goes through here: the host is not made for two callers at once.

        Raises:
            Exception: what the function raises.
        """
        return self._worker.call(function)

    @property
    def n_rows(self) -> int:
        """Rows in the shared batch now."""
        batch = self._batch
        return 0 if batch is None else len(batch.rows)

    @property
    def shares_a_cache(self) -> bool:
        """Whether rows share a cache; without one every text is read from its start at each step."""
        from .batches import CachedBatch

        return self.call(lambda: self._kind) is CachedBatch

    def close(self) -> None:
        """Stops all requests and ends the thread."""
        for job in [*self._jobs, *self._waiting]:
            job.run.stop()
        self._worker.close()

    @cached_property
    def _kind(self) -> type[Batch]:
        return fitting_batch(self._forward)

    def _accept(self, request: SteeringRequest) -> SteeringRun:
        if len(self._waiting) >= self.max_waiting:
            raise EngineBusyError(f"{len(self._waiting)} requests are waiting already. Try again in a moment.")
        for plan in request.plans():
            for name, edits in plan.edits.items():
                if name not in self.saes:
                    raise ValueError(f"the plan edits {name!r}, and the engine has {', '.join(map(repr, self.saes))}.")
                BoundEdits(self.saes[name], edits)  # says what is impossible
        job = Job(request, self.tokenizer, self._ends)
        if len(job.rows) > self.max_rows:
            raise ValueError(
                f"the request needs {len(job.rows)} rows, and the batch has {self.max_rows}. Ask for fewer variants, or gauge=False."
            )
        limit = getattr(self.host.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and job.longest + request.max_new_tokens > limit:
            raise DataError(
                f"the prompt has {job.longest} tokens, and with max_new_tokens={request.max_new_tokens} the host would have to read "
                f"more than its {limit}. Give a shorter prompt or ask for fewer tokens."
            )
        self._waiting.append(job)
        return job.run

    @cached_property
    def _ends(self) -> frozenset[int]:
        config = getattr(self.host, "generation_config", None)
        given = [getattr(config, "eos_token_id", None), self.tokenizer.eos_token_id]
        several = [each if isinstance(each, (list, tuple)) else [each] for each in given]
        return frozenset(index for each in several for index in each if index is not None)

    def _work(self) -> bool:
        """One step: lets go of what was stopped, admits what waits, reads one token of every row."""
        try:
            self._release()
            self._admit()
            if self._batch is not None and self._batch.rows:
                self._step(self._batch)
        except Exception as error:  # the thread lives on, whatever happens
            for job in self._jobs:
                job.run.fail(error)
            self._jobs, self._batch = [], None
        return bool(self._jobs or self._waiting)

    def _release(self) -> None:
        self._waiting = deque(job for job in self._waiting if not job.run.stopped)
        self._jobs = [job for job in self._jobs if not job.run.stopped and job.branches]
        wanted = {row for job in self._jobs for row in job.rows}
        batch = self._batch
        if batch is not None and len(batch.rows) > len(wanted):
            places = [place for place, row in enumerate(batch.rows) if row in wanted]
            self._batch = batch.part(places) if places else None

    def _admit(self) -> None:
        while self._waiting and self.n_rows + len(self._waiting[0].rows) <= self.max_rows:
            job = self._waiting.popleft()
            if job.run.stopped:
                continue
            self._jobs.append(job)
            begun = self._read([(job, b) for b in job.branches], lambda rows: self._kind.begin(self._forward, rows))
            self._tell([job], begun)
            going = set(job.rows)
            for batch, _ in begun:
                self._join(batch.part([place for place, row in enumerate(batch.rows) if row in going]))

    def _step(self, batch: Batch) -> None:
        def read(rows: Sequence[Row]) -> tuple[Batch, Output]:
            part = batch if len(rows) == len(batch.rows) else batch.part([batch.rows.index(row) for row in rows])
            return part, part.step()

        parts = self._read([(job, branch) for job in self._jobs for branch in job.branches], read)
        self._batch = None
        for part, _ in parts:
            self._join(part)
        self._tell(list(self._jobs), parts)

    def _read(
        self, branches: Sequence[tuple[Job, Branch]], read: Callable[[Sequence[Row]], tuple[Batch, Output]]
    ) -> list[tuple[Batch, Output]]:
        """Reads rows together; after an exception one variant after another, so that only the one that raises it ends."""
        try:
            return [read([row for _, branch in branches for row in branch.rows])]
        except Exception as error:
            if len(branches) == 1:
                ((job, branch),) = branches
                job.drop(branch, error)
                return []
        return [part for one in branches for part in self._read([one], read)]

    def _join(self, batch: Batch) -> None:
        if self._batch is None:
            self._batch = batch
        else:
            self._batch.absorb(batch)

    def _tell(self, jobs: Sequence[Job], parts: Sequence[tuple[Batch, Output]]) -> None:
        """Gives every job what the host said after its rows."""
        heard = {
            row: (output.logits[place], output.traces[place])
            for batch, output in parts
            for place, row in enumerate(list(batch.rows)[: len(output.logits)])
        }
        for job in jobs:
            try:
                job.take(heard)
            except Exception as error:
                job.run.fail(error)
                job.branches.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
