"""vLLM's `AsyncLLM` behind the engine protocol; no package but this one imports vLLM."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from cluster.config import BaseModelRef
from cluster.errors import VerificationError, one_line
from cluster.processor import precision
from cluster.records.adapter import GoldenProbe, ServedAdapter
from serve_app.config import EngineConfig
from serve_app.engine.logprobs import TokenAligner
from serve_app.engine.probes import (
    GivenTokens,
    given_differences,
    has_head,
    least_certain,
    to_give,
    written_differences,
)
from serve_app.engine.prompts import ControlTokens, conversation
from serve_app.engine.residents import ResidentAdapters
from serve_app.engine.time_slices import AdapterTimeSlices
from serve_app.protocol import (
    Delta,
    EngineFailed,
    Generation,
    GenerationRequest,
    NotSupported,
    PromptTooLong,
    Sampling,
    TokenLogprob,
)
from serve_app.schemas import enforced

logger = logging.getLogger(__name__)

_CPU_WORKER = "serve_app.engine.grouped.GroupedWorker"
#: By its full name, for vLLM turns `uni` into `mp` on a CPU: a scheduler in a process of its own,
#: which spins on the core that the rest of the node lives on while the model is computed.
_CPU_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
_PROBE_OPTIONS = 5
#: Of each probe where its answer is written: a swap waits for as many steps of the engine.
_WRITTEN_TOKENS = 4
#: Of one prompt at most, where it is given: all of its logits are held at once.
_GIVEN_AT_MOST = 128
#: How an answer may end.
_ENDS = frozenset({"stop", "length"})
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
#: The log-probability OpenAI gives to what cannot be.
_IMPOSSIBLE = -9999.0


class VLLMEngine:
    """One engine, one base model, several adapters; implements `serve_app.protocol.Engine`."""

    def __init__(self, model: BaseModelRef, config: EngineConfig, replica: str) -> None:
        self._on_cpu = on_cpu = config.num_gpus == 0
        arguments = AsyncEngineArgs(
            model=model.path,
            dtype=precision(model.dtype, gpu=not on_cpu),
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            enable_lora=config.loras,
            max_loras=config.max_loras,
            max_cpu_loras=config.max_cpu_loras,
            max_lora_rank=config.max_lora_rank,
            # It enforces what it takes of a schema and refuses the rest; the others overlook some.
            structured_outputs_config={
                "backend": "guidance",
                "disable_any_whitespace": True,
                "disable_additional_properties": True,
            },
            # Any LoRA makes vLLM run eagerly on CPU; asking for it saves the compiler's start.
            enforce_eager=on_cpu,
            worker_cls=_CPU_WORKER if on_cpu else "auto",
            distributed_executor_backend=_CPU_EXECUTOR if on_cpu else None,
            disable_log_stats=True,
            seed=0,
        )
        vllm_config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)
        with _cores(vllm_config) if on_cpu else nullcontext():
            self._llm = AsyncLLM.from_vllm_config(vllm_config, disable_log_stats=True)
        self._tokenizer: Any = self._llm.get_tokenizer()
        self._special = frozenset(self._tokenizer.all_special_ids)
        self._control = ControlTokens(_special_texts(self._tokenizer))
        self._knows_tools = "tools" in str(self._tokenizer.chat_template)
        self._max_length = config.max_model_len
        self._replica = replica
        self._base = model.path.rstrip("/").rpartition("/")[2]
        self._loras = config.loras
        self.residents = ResidentAdapters()
        self._slots = AdapterTimeSlices(config.max_loras)

    # -- generation -------------------------------------------------------------------------

    def _tokens(self, request: GenerationRequest) -> list[int]:
        ids: list[int]
        if request.chat:
            ids = self._tokenizer.apply_chat_template(
                **conversation(request, self._control, knows_tools=self._knows_tools),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
            )["input_ids"]
        else:
            text = "\n".join(m["content"] for m in request.messages)
            ids = self._tokenizer(self._control.split(text))["input_ids"]
        room = self._max_length - request.sampling.max_tokens
        if len(ids) > room:
            raise PromptTooLong(
                f"the prompt has {len(ids)} tokens and {request.sampling.max_tokens} more were "
                f"asked for; the context window is {self._max_length}"
            )
        return ids

    async def complete(self, request: GenerationRequest) -> Generation:
        """See `serve_app.protocol.Engine.complete`."""
        final: Generation | None = None
        async for item in self._run(request, RequestOutputKind.FINAL_ONLY):
            if isinstance(item, Generation):
                final = item
        assert final is not None
        return final

    def stream(self, request: GenerationRequest) -> AsyncIterator[Delta | Generation]:
        """See `serve_app.protocol.Engine.stream`."""
        return self._run(request, RequestOutputKind.DELTA)

    async def _run(
        self, request: GenerationRequest, kind: RequestOutputKind
    ) -> AsyncIterator[Delta | Generation]:
        started = time.perf_counter()
        ids = self._tokens(request)
        adapter = request.adapter
        text, tokens, reason = "", 0, "stop"
        logprobs = _Logprobs(request.sampling.top_logprobs, self._special)
        first_ms: float | None = None
        async with self._holding(adapter):
            waited = (time.perf_counter() - started) * 1000
            async for output in self._generate(request, ids, kind):
                piece = output.outputs[0]
                if first_ms is None:
                    first_ms = (time.perf_counter() - started) * 1000
                text += piece.text
                tokens += len(piece.token_ids)
                said = logprobs.add(piece)
                reason = piece.finish_reason or reason
                if kind is RequestOutputKind.DELTA and (piece.text or said):
                    yield Delta(piece.text, said, len(ids), tokens)
        _require_whole(reason, request.sampling)
        total = (time.perf_counter() - started) * 1000
        yield Generation(
            text=text,
            version=adapter.label if adapter else self._base,
            input_tokens=len(ids),
            output_tokens=tokens,
            finish_reason=reason,
            mean_logprob=logprobs.mean,
            min_logprob=logprobs.least,
            # A whole answer arrives at once: the engine does not say when its first token came.
            first_token_ms=first_ms if kind is RequestOutputKind.DELTA else None,
            total_ms=total,
            replica=self._replica,
            tokens=logprobs.tokens,
            waited_ms=waited,
        )

    @asynccontextmanager
    async def _holding(self, adapter: ServedAdapter | None) -> AsyncIterator[None]:
        """The adapter is resident, and has its turn, for the length of one request."""
        if adapter is None:
            yield
            return
        with self.residents.using(adapter):
            async with self._slots.using(adapter.int_id):
                yield

    async def _generate(
        self, request: GenerationRequest, ids: list[int], kind: RequestOutputKind
    ) -> AsyncIterator[Any]:
        """vLLM's outputs; what it refuses before the first one is the client's to mend."""
        outputs = self._llm.generate(
            {"prompt_token_ids": ids, **({"cache_salt": request.salt} if request.salt else {})},
            _parameters(request.sampling, kind),
            request_id=request.request_id,
            lora_request=self._lora(request.adapter),
        )
        async with aclosing(outputs):
            try:
                async for output in outputs:
                    yield output
            except VLLMClientError as error:
                raise NotSupported(_refusal(error, request.sampling)) from error

    # -- adapters ---------------------------------------------------------------------------

    async def load(self, adapter: ServedAdapter, *, probe: bool) -> float:
        """Load `adapter` and return its mean absolute difference from the trainer's probes.

        The version becomes resident only after its probes ran; without `probe`, it is 0.

        Raises:
            VerificationError: the engine refuses it.
        """
        try:
            if self._loras:
                await self._add(adapter)
            difference = await self._proved(adapter) if probe else 0.0
        except BaseException as error:
            dead = isinstance(error, EngineDeadError)
            if self._loras and not dead and not self.residents.holds(adapter.int_id):
                # As much of it as is there: the engine would take it for loaded the next time.
                try:
                    await self._llm.remove_lora(adapter.int_id)
                except Exception:  # must not hide why it is refused
                    logger.exception("could not clear %s from the engine", adapter.label)
            raise
        self.residents.add(adapter)
        return difference

    async def _add(self, adapter: ServedAdapter) -> None:
        try:
            await self._llm.add_lora(_lora(adapter))
        except EngineDeadError:
            raise
        except Exception as error:  # vLLM has no type for what it refuses of an adapter
            message = f"the engine refuses {adapter.label}: {one_line(error)}"
            raise VerificationError(message) from error

    async def _proved(self, adapter: ServedAdapter) -> float:
        # Its turn among the others: the engine would let it wait while all slots are busy.
        async with self._slots.using(adapter.int_id):
            try:
                return await self._probe(adapter)
            except VLLMClientError as error:
                raise VerificationError(
                    f"the engine refuses a golden probe of {adapter.label}: {error}"[:500]
                ) from error

    async def _probe(self, adapter: ServedAdapter) -> float:
        given = to_give(adapter.golden) if self._on_cpu else []
        if given and self._loras and await asyncio.to_thread(has_head, Path(adapter.path)):
            given = []
        asked = [self._give_probe(adapter, one) for one in given] or [
            self._write_probe(adapter, one) for one in adapter.golden
        ]
        # All of them to their end: one that is still under way would load the adapter again.
        results = await asyncio.gather(*asked, return_exceptions=True)
        differences = list[float]()
        for result in results:
            if isinstance(result, BaseException):
                raise result
            differences += result
        return sum(differences) / len(differences) if differences else float("inf")

    async def _give_probe(self, adapter: ServedAdapter, given: GivenTokens) -> list[float]:
        """In one step of the engine: its log-probabilities of the prompt.

        On a CPU only: vLLM's kernels for a GPU take the head's rows for those planned.
        """
        sampling = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        given = given.cut(min(_GIVEN_AT_MOST, self._max_length - 1))
        output = await self._ask(adapter, list(given.token_ids), sampling)
        return given_differences(given, output.prompt_logprobs[1:])

    async def _write_probe(self, adapter: ServedAdapter, probe: GoldenProbe) -> list[float]:
        """In a step for each token of the engine's own answer, begun with the trainer's.

        Nothing of a prompt that leaves no room for one.
        """
        prompt = list(probe.prompt_token_ids)
        target = probe.target_token_ids[: max(0, self._max_length - len(prompt))]
        if not target:
            return []
        place = least_certain(probe.logprobs[: len(target)], _WRITTEN_TOKENS)
        sampling = SamplingParams(
            max_tokens=min(_WRITTEN_TOKENS, len(target) - place),
            temperature=0.0,
            logprobs=_PROBE_OPTIONS,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            # Of an earlier load of the same version, which shows nothing of this one.
            skip_reading_prefix_cache=True,
        )
        output = await self._ask(adapter, [*prompt, *target[:place]], sampling)
        return written_differences(probe, place, output.outputs[0])

    async def _ask(self, adapter: ServedAdapter, ids: list[int], sampling: SamplingParams) -> Any:
        output = None
        async for output in self._llm.generate(  # noqa: B007 - the last one is used
            {"prompt_token_ids": ids},
            sampling,
            request_id=f"probe-{adapter.label}-{uuid.uuid4().hex}",
            lora_request=self._lora(adapter),
        ):
            pass
        assert output is not None
        return output

    def _lora(self, adapter: ServedAdapter | None) -> LoRARequest | None:
        """What the engine computes beside its model; an engine without adapters is its version."""
        return _lora(adapter) if adapter is not None and self._loras else None

    async def unload(self, int_id: int) -> bool:
        """Remove a version; whether the engine's own list confirms it."""
        self.residents.discard(int_id)
        await self._llm.remove_lora(int_id)
        return int_id not in await self._llm.list_loras()

    # -- life cycle -------------------------------------------------------------------------

    async def check_health(self) -> None:
        """Raise where the engine is dead."""
        await self._llm.check_health()

    async def close(self) -> None:
        """Stop the engine's processes."""
        await asyncio.to_thread(self._llm.shutdown)


class _Logprobs:
    """Running sum and minimum of the chosen tokens' log-probabilities; each one where asked."""

    def __init__(self, top: int | None, special: frozenset[int]) -> None:
        self._sum, self._count, self.least = 0.0, 0, 0.0
        self._top, self._special = top, special
        self._aligner = TokenAligner()
        self.tokens: list[TokenLogprob] | None = None if top is None else []

    def add(self, piece: Any) -> tuple[TokenLogprob, ...]:
        """Take in a piece; the tokens of the text that has come, where each one is kept."""
        found = list[TokenLogprob]()
        for token, options in zip(piece.token_ids, piece.logprobs or (), strict=False):
            value = _finite(options[token].logprob)
            self._sum, self._count = self._sum + value, self._count + 1
            self.least = min(self.least, value)
            if self.tokens is not None:
                found.append(
                    TokenLogprob(options[token].decoded_token or "", value, self._best(options))
                )
        if self.tokens is None:
            return ()
        ready = self._aligner.push(piece.text, found)
        if piece.finish_reason:
            ready += self._aligner.finish()
        self.tokens += ready
        return tuple(ready)

    def _best(self, options: Mapping[int, Any]) -> list[tuple[str, float]]:
        """The likeliest alternatives that are text."""
        best = sorted(options.items(), key=lambda item: -item[1].logprob)[: self._top]
        return [
            (option.decoded_token or "", _finite(option.logprob))
            for token, option in best
            if token not in self._special
        ]

    @property
    def mean(self) -> float:
        return self._sum / self._count if self._count else 0.0


def _finite(logprob: float) -> float:
    """A number also for what a schema rules out: JSON has no infinity."""
    return float(logprob) if logprob > _IMPOSSIBLE else _IMPOSSIBLE


@contextmanager
def _cores(config: VllmConfig) -> Iterator[None]:
    """Processes started meanwhile compute on the cores that vLLM's own worker would have."""
    with OMPProcessManager(config).configure_omp_envs(rank=0, local_rank=0):
        yield


def _lora(adapter: ServedAdapter) -> LoRARequest:
    return LoRARequest(adapter.label, adapter.int_id, adapter.path)


def _special_texts(tokenizer: Any) -> set[str]:
    added = tokenizer.added_tokens_decoder.values()
    return {*tokenizer.all_special_tokens, *(one.content for one in added if one.special)}


def _require_whole(reason: str, sampling: Sampling) -> None:
    """Raise unless an answer came to its own end or to its limit: anything else is an error."""
    if reason in _ENDS:
        return
    if sampling.json_schema is not None:
        raise NotSupported("the engine cannot follow this JSON schema")
    raise EngineFailed(f"the engine ended the request: {reason}"[:200])


def _refusal(error: Exception, sampling: Sampling) -> str:
    """Why vLLM takes no such request, without advice on settings that are not the caller's."""
    said = one_line(error)
    if sampling.json_schema is None:
        return f"the engine refused the request: {said}"
    why = said.partition("Grammar error: ")[2] or said
    return f"the JSON schema cannot be enforced: {why.partition('. Enable ')[0]}"


def _schema(text: str) -> str:
    """A client's schema, and how its answers are laid out: no line breaks, as `json.dumps` does."""
    return json.dumps({**enforced(json.loads(text)), "x-guidance": _LAYOUT})


def _parameters(sampling: Sampling, kind: RequestOutputKind) -> SamplingParams:
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        stop=list(sampling.stop) or None,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        structured_outputs=StructuredOutputsParams(json=_schema(sampling.json_schema))
        if sampling.json_schema
        else None,
        logprobs=sampling.top_logprobs or 0,
        output_kind=kind,
    )
