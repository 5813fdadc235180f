"""What is open to the world: seven functions and the page, and nothing else."""

from __future__ import annotations

import asyncio
import inspect
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from hf_sae.space.app import ENDPOINTS
from tests.space.conftest import Running
from tests.space.planted import IMPORT, OS, SELF


pytest.importorskip("gradio", reason="the page needs gradio: pip install 'hf-sae[space]'")
ARGUMENTS: dict[str, dict[str, Any]] = {
    "list_saes": {},
    "search_features": {"query": "start of an import"},
    "get_feature": {"feature": IMPORT},
    "inspect_text": {"text": "import os"},
    "top_features_for_prompt": {"prompt": "import import"},
    "contrast_texts": {"texts_a": ["import import"], "texts_b": ["x = y"]},
    "steer": {
        "prompt": "import os",
        "edits": [{"feature": IMPORT, "strength": 3.0}],
        "max_new_tokens": 6,
        "sweep": [0.5],
    },
}


def get(url: str, method: str = "GET", body: dict[str, Any] | None = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


@pytest.fixture(scope="module")
def client(running: Running) -> Any:
    from gradio_client import Client

    return Client(running.url, verbose=False)


@pytest.mark.parametrize("name", [name for name in ENDPOINTS if name in ARGUMENTS])
def test_every_function_answers_as_without_gradio(client: Any, running: Running, service: Any, name: str):
    given = client.predict(**ARGUMENTS[name], api_name=f"/{name}")
    assert given == getattr(service, name)(**ARGUMENTS[name])


def test_a_planted_latent_is_found_through_the_wire(client: Any):
    for name in ("search_features", "top_features_for_prompt", "contrast_texts"):
        assert client.predict(**ARGUMENTS[name], api_name=f"/{name}")["hits"][0]["feature"] == IMPORT
    found = client.predict(text="import os", api_name="/inspect_text")
    assert [[e["latent"] for e in token["latents"]] for token in found["tokens"]] == [[], [IMPORT], [OS]]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("get_feature", {"feature": 10**9}, "nothing about feature"),
        ("get_feature", {"feature": 0, "sae": "../x"}, "names no autoencoder"),
        ("search_features", {"query": "x", "limit": 10**6}, "whole number from 1 to 100"),
        ("inspect_text", {"text": "x" * 10**5}, "are read at most"),
        ("inspect_text", {"text": "a b c d " * 200}, "the host reads 256 at most"),
    ],
)
def test_an_error_arrives_in_words_without_a_traceback(client: Any, name: str, arguments: Any, message: str):
    with pytest.raises(Exception, match=message) as caught:
        client.predict(**arguments, api_name=f"/{name}")
    assert "Traceback" not in str(caught.value)


def test_an_error_that_nobody_foresaw_says_nothing_of_the_server(
    client: Any, service: Any, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr(service.catalog, "find", broken)
    with pytest.raises(Exception) as caught:
        client.predict(feature=1, api_name="/get_feature")
    assert "/secret" not in str(caught.value)


def test_no_other_endpoint_is_public(running: Running):
    info = json.loads(get(f"{running.url}/gradio_api/info?all_endpoints=true")[1])
    assert set(info["named_endpoints"]) == {f"/{name}" for name in ENDPOINTS}
    assert info["unnamed_endpoints"] == {}
    config = json.loads(get(f"{running.url}/config")[1])
    assert [d["api_name"] for d in config["dependencies"] if d.get("api_visibility") == "public"] == list(ENDPOINTS)


def test_nonsense_sent_to_what_the_page_itself_calls_breaks_nothing(running: Running, client: Any):
    """The page's own handlers have to be reachable for browsers: they bear anything."""
    config = json.loads(get(f"{running.url}/config")[1])
    sent: list[int] = []
    for dependency in config["dependencies"]:
        if dependency.get("api_visibility") != "private" or not dependency["backend_fn"]:
            continue
        for value in (None, "../../x", -(10**30), {"feature": [1]}, "\ud800" * 3):
            asked = {"data": [value] * len(dependency["inputs"])}
            status, body = get(f"{running.url}/gradio_api/call/{quote(dependency['api_name'])}", "POST", asked)
            assert status in (200, 404, 422), body
            sent.append(status)
            if status == 200:
                event = json.loads(body)["event_id"]
                answer = get(f"{running.url}/gradio_api/call/{quote(dependency['api_name'])}/{event}")[1]
                assert "Traceback" not in answer
                assert str(Path(__file__).parents[2]) not in answer
    assert len(sent) > 50
    assert 200 in sent
    assert client.predict(feature=IMPORT, api_name="/get_feature")["feature"] == IMPORT


def test_mcp_offers_the_same_functions_with_their_descriptions(running: Running):
    pytest.importorskip("mcp", reason="needs gradio[mcp]")
    from mcp import ClientSession
    from mcp.client import streamable_http

    # the name of mcp 1.30; older ones write it in one word
    connect = getattr(streamable_http, "streamable_http_client", None) or streamable_http.streamablehttp_client

    async def ask() -> tuple[list[Any], Any]:
        url = f"{running.url}/gradio_api/mcp/"
        async with connect(url) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = (await session.list_tools()).tools
            name = next(tool.name for tool in tools if tool.name.endswith("get_feature"))
            return tools, await session.call_tool(name, {"feature": SELF})

    with ThreadPoolExecutor(1) as alone:  # the browser of other tests has a loop in this thread
        tools, answer = alone.submit(asyncio.run, ask()).result()
    names = {tool.name for tool in tools}
    assert {next(name for name in names if name.endswith(endpoint)) for endpoint in ENDPOINTS} == names
    search = next(tool for tool in tools if tool.name.endswith("search_features"))
    assert search.description.startswith("Finds features")
    assert search.inputSchema["properties"]["query"]["description"].startswith("What to find")
    assert '"feature": 1' in answer.content[0].text or "'feature': 1" in answer.content[0].text


@pytest.mark.parametrize("name", ENDPOINTS)
def test_every_tool_says_what_its_arguments_are(service: Any, name: str):
    function = getattr(service, name)
    for argument in inspect.signature(function).parameters:
        assert f"{argument}: " in (function.__doc__ or ""), argument


def test_no_file_of_this_machine_is_served(running: Running, folder: Path, tmp_path: Path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    here = Path(__file__).resolve()
    for path in (secret, folder / "config.json", here, Path("/etc/passwd"), Path.cwd() / "pyproject.toml"):
        for form in (str(path), f"../../../../../../{path}", quote(str(path), safe=""), f"file://{path}"):
            status, body = get(f"{running.url}/gradio_api/file={form}")
            assert status >= 400, form
            assert "a secret" not in body
    for route in ("/monitoring", "/gradio_api/monitoring", "/gradio_api/monitoring/summary"):
        assert "requests" not in get(f"{running.url}{route}")[1][:2000] or get(f"{running.url}{route}")[0] >= 400


def test_the_page_asks_nobody_for_fonts(running: Running):
    body = get(running.url)[1] + get(f"{running.url}/theme.css")[1]
    assert "fonts.googleapis" not in body.replace('<link rel="preconnect" href="https://fonts.googleapis.com"', "")
