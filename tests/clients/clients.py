"""Five OpenAI-compatible Python clients behind one protocol, each used in its own idiom.

A client is imported when it is made, so that one can be checked without the others.
"""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, cast

from cases import (
    FIND_ORDER,
    HELLO,
    ORDER_PROMPT,
    TEXTS,
    TIMEOUT_S,
    TOOL_PROMPT,
    Client,
    Order,
    Target,
    find_order,
)

# litellm would fetch its price list from GitHub when imported.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")


class OpenAIClient:
    """The openai package."""

    def __init__(self, target: Target) -> None:
        from openai import OpenAI

        self.target = target
        self.api: Any = OpenAI(
            base_url=target.base_url, api_key=target.api_key, timeout=TIMEOUT_S, max_retries=0
        )

    def request(self, prompt: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}]
        return {"model": self.target.model, "messages": messages, **self.target.limit}

    def chat(self) -> str:
        completion = self.api.chat.completions.create(**self.request(HELLO))
        return str(completion.choices[0].message.content)

    def stream(self) -> Sequence[str]:
        chunks = self.api.chat.completions.create(**self.request(HELLO), stream=True)
        return [c.choices[0].delta.content or "" for c in chunks if c.choices]

    def tool_call(self) -> tuple[str, Any]:
        completion = self.api.chat.completions.create(
            **self.request(TOOL_PROMPT), tools=[FIND_ORDER], tool_choice="required"
        )
        call = completion.choices[0].message.tool_calls[0].function
        return call.name, json.loads(call.arguments)

    def structured_output(self) -> Order:
        completion = self.api.chat.completions.parse(
            **self.request(ORDER_PROMPT), response_format=Order
        )
        order: Order = completion.choices[0].message.parsed
        return order

    def embeddings(self) -> Sequence[Sequence[float]]:
        answer = self.api.embeddings.create(model=self.target.embedding_model, input=TEXTS)
        return [item.embedding for item in answer.data]


class LangChainClient:
    """The langchain-openai package."""

    def __init__(self, target: Target) -> None:
        from langchain_openai import ChatOpenAI, OpenAIEmbeddings

        common: dict[str, Any] = {
            "base_url": target.base_url,
            "api_key": target.api_key,
            "timeout": TIMEOUT_S,
            "max_retries": 0,
        }
        self.llm: Any = ChatOpenAI(model=target.model, **target.limit, **common)
        # With its default, True, this sends token ids of an OpenAI vocabulary that it downloads.
        self.embedder: Any = OpenAIEmbeddings(
            model=target.embedding_model, check_embedding_ctx_length=False, **common
        )

    def chat(self) -> str:
        return str(self.llm.invoke(HELLO).content)

    def stream(self) -> Sequence[str]:
        return [str(chunk.content) for chunk in self.llm.stream(HELLO)]

    def tool_call(self) -> tuple[str, Any]:
        llm = self.llm.bind_tools([find_order], tool_choice="required")
        call = llm.invoke(TOOL_PROMPT).tool_calls[0]
        return call["name"], call["args"]

    def structured_output(self) -> Order:
        order: Order = self.llm.with_structured_output(Order).invoke(ORDER_PROMPT)
        return order

    def embeddings(self) -> Sequence[Sequence[float]]:
        vectors: list[list[float]] = self.embedder.embed_documents(TEXTS)
        return vectors


class LlamaIndexClient:
    """The llama-index-llms-openai-like and llama-index-embeddings-openai-like packages."""

    def __init__(self, target: Target) -> None:
        from llama_index.embeddings.openai_like import OpenAILikeEmbedding
        from llama_index.llms.openai_like import OpenAILike

        common: dict[str, Any] = {
            "api_base": target.base_url,
            "api_key": target.api_key,
            "timeout": TIMEOUT_S,
            "max_retries": 0,
        }
        self.llm: Any = OpenAILike(
            model=target.model,
            **target.limit,
            is_chat_model=True,  # else it calls /completions
            is_function_calling_model=True,
            should_use_structured_outputs=True,  # else a forced tool call, not a response_format
            **common,
        )
        self.embedder: Any = OpenAILikeEmbedding(model_name=target.embedding_model, **common)

    def chat(self) -> str:
        from llama_index.core.llms import ChatMessage

        return str(self.llm.chat([ChatMessage(role="user", content=HELLO)]).message.content)

    def stream(self) -> Sequence[str]:
        from llama_index.core.llms import ChatMessage

        chunks = self.llm.stream_chat([ChatMessage(role="user", content=HELLO)])
        return [chunk.delta or "" for chunk in chunks]

    def tool_call(self) -> tuple[str, Any]:
        from llama_index.core.tools import FunctionTool

        tools = [FunctionTool.from_defaults(find_order)]
        answer = self.llm.chat_with_tools(tools, user_msg=TOOL_PROMPT, tool_required=True)
        call = self.llm.get_tool_calls_from_response(answer)[0]
        return call.tool_name, call.tool_kwargs

    def structured_output(self) -> Order:
        from llama_index.core.prompts import PromptTemplate

        order: Order = self.llm.structured_predict(Order, PromptTemplate(ORDER_PROMPT))
        return order

    def embeddings(self) -> Sequence[Sequence[float]]:
        vectors: list[list[float]] = self.embedder.get_text_embedding_batch(TEXTS)
        return vectors


class LiteLLMClient:
    """The litellm package, used as a library."""

    def __init__(self, target: Target) -> None:
        import litellm

        self.target = target
        self.api = cast(Any, litellm)
        self.api.suppress_debug_info = True  # else it prints hints on stdout at an error
        self.api.DEFAULT_MAX_RETRIES = 0  # its embedding() takes max_retries=0 for unset
        self.common: dict[str, Any] = {
            "api_base": target.base_url,
            "api_key": target.api_key,
            "timeout": TIMEOUT_S,
            "max_retries": 0,
        }
        self.model = f"openai/{target.model}"
        self.embedding_model = f"openai/{target.embedding_model}"

    def complete(self, prompt: str, **options: Any) -> Any:
        messages = [{"role": "user", "content": prompt}]
        return self.api.completion(
            model=self.model, messages=messages, **self.common, **self.target.limit, **options
        )

    def chat(self) -> str:
        return str(self.complete(HELLO).choices[0].message.content)

    def stream(self) -> Sequence[str]:
        chunks = self.complete(HELLO, stream=True)
        return [c.choices[0].delta.content or "" for c in chunks if c.choices]

    def tool_call(self) -> tuple[str, Any]:
        answer = self.complete(TOOL_PROMPT, tools=[FIND_ORDER], tool_choice="required")
        call = answer.choices[0].message.tool_calls[0].function
        return call.name, json.loads(call.arguments)

    def structured_output(self) -> Order:
        answer = self.complete(ORDER_PROMPT, response_format=Order)
        return Order.model_validate_json(answer.choices[0].message.content)

    def embeddings(self) -> Sequence[Sequence[float]]:
        answer = self.api.embedding(model=self.embedding_model, input=TEXTS, **self.common)
        return [item["embedding"] for item in answer.data]


class PydanticAIClient:
    """The pydantic-ai-slim[openai] package."""

    def __init__(self, target: Target) -> None:
        from openai import AsyncOpenAI
        from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        self.target = target
        provider = OpenAIProvider(
            openai_client=AsyncOpenAI(
                base_url=target.base_url, api_key=target.api_key, timeout=TIMEOUT_S, max_retries=0
            )
        )
        self.model: Any = OpenAIChatModel(target.model, provider=provider)
        self.embedding_model: Any = OpenAIEmbeddingModel(target.embedding_model, provider=provider)

    def agent(self, output_type: Any) -> Any:
        from pydantic_ai import Agent

        settings: Any = self.target.limit
        return Agent(self.model, output_type=output_type, model_settings=settings, retries=0)

    def chat(self) -> str:
        return str(self.agent(str).run_sync(HELLO).output)

    def stream(self) -> Sequence[str]:
        with self.agent(str).run_stream_sync(HELLO) as answer:
            return list(answer.stream_text(delta=True, debounce_by=None))

    def tool_call(self) -> tuple[str, Any]:
        from pydantic_ai import ModelRequest, Tool
        from pydantic_ai.direct import model_request_sync
        from pydantic_ai.models import ModelRequestParameters

        settings: Any = {**self.target.limit, "tool_choice": "required"}
        answer = model_request_sync(
            self.model,
            [ModelRequest.user_text_prompt(TOOL_PROMPT)],
            model_settings=settings,
            model_request_parameters=ModelRequestParameters(
                function_tools=[Tool(find_order).tool_def]
            ),
        )
        call = answer.tool_calls[0]
        return call.tool_name, call.args_as_dict()

    def structured_output(self) -> Order:
        from pydantic_ai import NativeOutput

        order: Order = self.agent(NativeOutput(Order)).run_sync(ORDER_PROMPT).output
        return order

    def embeddings(self) -> Sequence[Sequence[float]]:
        from pydantic_ai import Embedder

        vectors: Sequence[Sequence[float]] = (
            Embedder(self.embedding_model).embed_documents_sync(TEXTS).embeddings
        )
        return vectors


CLIENTS: dict[str, Callable[[Target], Client]] = {
    "openai": OpenAIClient,
    "langchain": LangChainClient,
    "llama-index": LlamaIndexClient,
    "litellm": LiteLLMClient,
    "pydantic-ai": PydanticAIClient,
}
