"""The Gradio app: tabs over the service, the same functions as an API and as MCP tools."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from . import present
from .links import Link, read_link
from .page import FAST, HIDDEN, HOST, PRIVATE, Page, public, with_request
from .service import Service
from .tabs.about import About
from .tabs.explore import Explore
from .tabs.inspect import Inspect
from .tabs.search import MODES, Search
from .tabs.steer import Steer
from .theme import head, make_theme, style


if TYPE_CHECKING:
    import gradio as gr

TITLE = "Feature explorer"
ENDPOINTS = (
    "list_saes",
    "search_features",
    "get_feature",
    "inspect_text",
    "top_features_for_prompt",
    "contrast_texts",
    "steer",
)


def build_app(service: Service) -> gr.Blocks:
    """The page; [`launch_options`] has what goes with it.

    Args:
        service ([`Service`]): answers.
    """
    import gradio as gr

    with gr.Blocks(title=TITLE, analytics_enabled=False) as app:
        page = _head(service)
        with page.tabs:
            with gr.Tab("Explore", id="explore", elem_id="hs-tab-explore") as explore_tab:
                explore = Explore(page)
            with gr.Tab("Search", id="search", elem_id="hs-tab-search") as search_tab:
                search = Search(page)
            with gr.Tab("Inspect text", id="inspect", elem_id="hs-tab-inspect") as inspect_tab:
                inspect = Inspect(page)
            with gr.Tab("Steer", id="steer", elem_id="hs-tab-steer") as steer_tab:
                steer = Steer(page)
            with gr.Tab("About", id="about", elem_id="hs-tab-about") as about_tab:
                about = About(page)
        for parts, tab in (
            (explore, explore_tab),
            (search, search_tab),
            (inspect, inspect_tab),
            (steer, steer_tab),
            (about, about_tab),
        ):
            parts.wire(tab)
        _wire(app, page, explore, search, inspect, steer)
        for name in ENDPOINTS:
            gr.api(public(getattr(service, name)), api_name=name, concurrency_limit=4)
    return app.queue(max_size=64, default_concurrency_limit=4, api_open=False)


def launch_options() -> dict[str, Any]:
    """Arguments of `launch()`: the look, and nothing open that need not be."""
    return {
        "theme": make_theme(),
        "css": style(),
        "head": head(),
        "allowed_paths": [],
        "enable_monitoring": False,
        "footer_links": ["api"],
        "max_file_size": "1mb",
        "mcp_server": importlib.util.find_spec("mcp") is not None,
        "run_history": False,  # prompts may be private: nothing of them is kept but in the address
        "show_error": False,
        "ssr_mode": False,
    }


def _head(service: Service) -> Page:
    import gradio as gr

    names = [served.name for served in service.catalog.served()]
    with gr.Row(elem_id="hs-head", equal_height=True):
        gr.HTML(f"<h1>{TITLE}</h1>")
        sae = gr.Dropdown(
            names,
            value=names[0] if names else None,
            label="Autoencoder",
            info="or user/repo of the Hub" if service.catalog.visitors else None,
            allow_custom_value=service.catalog.visitors,
            elem_id="hs-sae",
        )
    status = gr.HTML(present.status(service, ""), elem_id="hs-status")
    goto = gr.Textbox(elem_id="hs-goto", **HIDDEN)
    # outside the tabs: what is not on the page yet would forget what the browser keeps
    kept = gr.BrowserState([], storage_key="hf-sae-features", secret="hf-sae")
    return Page(service, sae, gr.Tabs(selected="explore", elem_id="hs-tabs"), gr.State(""), goto, status, kept)


def _wire(app: gr.Blocks, page: Page, explore: Explore, search: Search, inspect: Inspect, steer: Steer) -> None:
    """What concerns several tabs: links, the choice of an autoencoder, and news from the loading thread."""
    import gradio as gr

    names = [served.name for served in page.service.catalog.served()]

    def open_link(request: gr.Request) -> list[Any]:
        return _opened(read_link(dict(request.query_params)), None if page.service.catalog.visitors else names)

    opened = app.load(
        with_request(open_link),
        None,
        [page.asked, page.sae, page.tabs, explore.feature, search.mode, search.query, search.against, inspect.text],
        **PRIVATE,
        queue=False,
    )
    _follow(opened, page, explore, search, inspect)
    opened.then(steer.opened, [page.asked, page.sae], steer.settings, **PRIVATE, queue=False)
    picked = [page.sae, steer.edits, explore.feature]
    explore.steer.click(steer.from_feature, picked, [*steer.edited, page.tabs], **PRIVATE, queue=False)
    news = gr.Timer(1.0)
    seen = gr.State("")
    gr.on(
        [app.load, news.tick],
        lambda sae, before: _news(page.service, explore, sae, before),
        [page.sae, seen],
        [page.status, explore.gallery, news, seen],
        **PRIVATE,
        queue=False,
    )
    chosen = page.sae.input(lambda: None, None, explore.feature, **PRIVATE, queue=False)
    chosen.then(explore.show, [page.sae, explore.feature, explore.own], explore.view, **PRIVATE, **FAST).then(
        lambda: gr.Timer(active=True), None, news, **PRIVATE, queue=False
    )
    app.load(explore.listed, page.kept, explore.list, **PRIVATE, queue=False)


def _follow(opened: Any, page: Page, explore: Explore, search: Search, inspect: Inspect) -> None:
    """Runs what the address of a page asks for: the tab that it names, and the feature behind it."""
    import gradio as gr

    def find(asked: str, *values: Any) -> Any:
        link = read_link(asked)
        return search.search(*values) if link.tab == "search" and link.q else [gr.skip()] * len(search.view)

    def read(asked: str, *values: Any) -> Any:
        link = read_link(asked)
        return inspect.read(*values) if link.tab == "inspect" and link.prompt else [gr.skip()] * len(inspect.view)

    opened.then(None, js="() => hfsae.begin()")
    opened.then(explore.show, [page.sae, explore.feature, explore.own], explore.view, **PRIVATE, **FAST)
    opened.then(find, [page.asked, *search.inputs], search.view, **PRIVATE, **HOST)
    opened.then(read, [page.asked, *inspect.inputs], inspect.view, **PRIVATE, **HOST)


def _opened(link: Link, allowed: list[str] | None) -> list[Any]:
    """What the address of the page asks for; an autoencoder that is not `allowed` is not."""
    import gradio as gr

    if allowed is not None and link.sae not in allowed:
        link = link.at(sae="")
    modes = [value for _, value in MODES]
    return [
        link.query(),
        link.sae or gr.skip(),
        gr.Tabs(selected=link.tab) if link.tab != "explore" else gr.skip(),  # somebody may have turned to another
        link.feature,
        link.mode if link.mode in modes else "words",
        link.q,
        link.against,
        link.prompt or gr.skip(),
    ]


def _news(service: Service, explore: Explore, sae: str, before: str) -> list[Any]:
    """What the loading thread has brought; the clock stops when all is there."""
    import gradio as gr

    states = present.states(service, sae)
    if states == before:
        return [gr.skip()] * 4
    done = "loading" not in states and "waiting" not in states
    return [present.status(service, sae), present.gallery(service, sae), gr.Timer(active=not done), states]
