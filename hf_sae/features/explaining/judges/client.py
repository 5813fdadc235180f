"""A judge behind an API: any provider of `huggingface_hub.InferenceClient`, or any server that speaks its chat protocol."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ....errors import ConfigError
from .cache import ResponseCache
from .protocol import Batch, Message


KEY = "HF_SAE_JUDGE_KEY"  # environment variable: the key of a server at base_url
_LONGEST_WAIT = 60.0  # seconds, whatever a server asks for
_TRY_AGAIN = (408, 429, 500, 502, 503, 504, 529)


class InferenceClientJudge:
    """A model behind an API. Answers are kept on disk, so that a run that was interrupted pays for nothing twice.

    The key is that of `hf auth login` or `HF_TOKEN` for the Hub's providers. It is not sent to a server at `base_url`,
    which gets what the environment variable `HF_SAE_JUDGE_KEY` holds, or no key.

    Args:
        model (`str`): Hub id, or what the server calls it.
        provider (`str`, *optional*): which of the Hub's inference providers. Default: the Hub chooses.
        base_url (`str`, *optional*): of a server of TGI, vLLM, llama.cpp or the like, such as `http://127.0.0.1:8000/v1`.
        revision (`str`, *optional*): recorded beside labels, where the server says which it runs.
        cache ([`ResponseCache`], *optional*): where answers are kept.
        workers (`int`): requests at the same time.
        retries (`int`): further tries of a request to a server that is busy or failing, after 1, 2, 4, … seconds.
        first_wait (`float`): seconds before the first of them.
        timeout (`float`): seconds for one request.

    Raises:
        ConfigError: for a provider together with a `base_url`, and counts that cannot be.
    """

    def __init__(
        self,
        model: str,
        provider: str | None = None,
        base_url: str | None = None,
        revision: str | None = None,
        cache: ResponseCache | None = None,
        workers: int = 8,
        retries: int = 5,
        first_wait: float = 1.0,
        timeout: float = 120.0,
    ) -> None:
        if provider is not None and base_url is not None:
            raise ConfigError(f"provider={provider!r} and base_url= are both given: name one of them.")
        if workers < 1 or retries < 0 or not base_url_is_one(base_url):
            raise ConfigError(
                f"workers={workers}, retries={retries}, base_url={base_url!r}: give at least 1, at least 0, and http(s)://…"
            )
        self.name, self.revision, self.provider, self.base_url = model, revision, provider, base_url
        self.cache, self.workers, self.retries = cache or ResponseCache(), workers, retries
        self.first_wait, self.timeout = first_wait, timeout
        self._lock = threading.Lock()
        self._used = {"requests": 0, "cached": 0, "retries": 0, "tokens_in": 0, "tokens_out": 0}

    def usage(self) -> dict[str, Any]:
        """Requests that were sent, answers from the cache, and tokens as the server counted them."""
        with self._lock:
            return dict(self._used)

    def generate(
        self, messages_batch: Batch, max_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str | None]:
        """An answer to each conversation; `None` where the server sent an empty one.

        Raises:
            OSError: if the server refuses, or is still busy or failing after the last try. What was answered is in the cache.
        """
        params = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        if not messages_batch:
            return []
        with ThreadPoolExecutor(min(self.workers, len(messages_batch))) as pool:
            waiting = [pool.submit(self._answer, messages, params) for messages in messages_batch]
            try:
                return [one.result() for one in waiting]
            except BaseException:
                for one in waiting:
                    one.cancel()
                raise

    def _answer(self, messages: Sequence[Message], params: dict[str, Any]) -> str | None:
        where = {"provider": self.provider, "base_url": self.base_url}
        key = self.cache.key(self.name, self.revision, messages, params | where)
        answer = self.cache.get(key)
        if answer is not None:
            self._add(cached=1)
            return answer["text"] or None
        answer = self._ask(messages, params)
        self.cache.put(key, answer)
        self._add(tokens_in=answer["tokens_in"], tokens_out=answer["tokens_out"])
        return answer["text"] or None

    def _ask(self, messages: Sequence[Message], params: dict[str, Any]) -> dict[str, Any]:
        """The answer of the server; tries again where that can help."""
        from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled

        from ....models.pinning import no_answer

        wait = self.first_wait
        for attempt in range(self.retries + 1):
            try:
                self._add(requests=1)
                return self._request(messages, params)
            except HfHubHTTPError as error:
                status, asked = error.response.status_code, error.response.headers.get("retry-after")
                failure = f"answered {status}"
            except OfflineModeIsEnabled:
                status, asked, failure = 0, None, "cannot be asked"
            except (InferenceTimeoutError, *no_answer()) as error:
                status, asked, failure = 503, None, f"did not answer ({type(error).__name__})"
            if status not in _TRY_AGAIN or attempt == self.retries:
                break
            self._add(retries=1)
            time.sleep(min(_seconds(asked, wait), _LONGEST_WAIT))
            wait *= 2
        # outside the handlers: the client's error holds the request, and the request the key
        raise OSError(f"the judge {self.name!r} {failure}{_advice(status, self.base_url)}")

    def _request(self, messages: Sequence[Message], params: dict[str, Any]) -> dict[str, Any]:
        out = self._client().chat_completion([dict(message) for message in messages], model=self.name, **params)
        text = out.choices[0].message.content if out.choices else None
        used = out.usage
        return {
            "text": (text or "").strip(),
            "tokens_in": int(used.prompt_tokens) if used else 0,
            "tokens_out": int(used.completion_tokens) if used else 0,
        }

    def _client(self) -> Any:
        from huggingface_hub import InferenceClient

        if self.base_url is None:
            return InferenceClient(provider=self.provider, timeout=self.timeout)  # ty: ignore[invalid-argument-type]
        # without a key of its own the client would send that of the Hub, wherever the server is
        return InferenceClient(base_url=self.base_url, api_key=os.environ.get(KEY) or "none", timeout=self.timeout)

    def _add(self, **more: int) -> None:
        with self._lock:
            for name, count in more.items():
                self._used[name] += count


def base_url_is_one(url: str | None) -> bool:
    """Whether it is none at all, or the address of a server."""
    return url is None or url.startswith(("http://", "https://"))


def _seconds(asked: str | None, otherwise: float) -> float:
    """What a server asks to wait; some give a date instead."""
    try:
        return max(float(asked or ""), 0.0)
    except ValueError:
        return otherwise


def _advice(status: int, base_url: str | None) -> str:
    if not status:
        return ": HF_HUB_OFFLINE is set, and then no server is reached, not even one on this machine. Unset it."
    if status in (401, 403):
        where = "run `hf auth login`, or set HF_TOKEN" if base_url is None else f"set the environment variable {KEY}"
        return f": it wants a key that it knows. To give one, {where}."
    if status == 402:
        return ": the account has no credit left."
    if status in (400, 404, 422):
        return ": it does not know the model, or not such a request. Check the name and the address."
    return ". Run the same again later: what was answered is kept."
