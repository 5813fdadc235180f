"""Search, inspect, about; phone, dark, many visitors."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from hf_sae.space.catalog import Catalog
from hf_sae.space.service import Service
from hf_sae.space.sources import Given
from tests.space.browser import PHONE, watch
from tests.space.conftest import Running, launch
from tests.space.planted import IMPORT, OS, SELF


VIEWS = {
    f"feature={SELF}": "#hs-explore .hs-feature h2",
    "tab=search&q=import": "#hs-results .hs-card",
    "tab=inspect&prompt=import%20os": "#hs-grid table",
    "tab=about": "#hs-about table",
}


def test_search_says_why_and_leads_to_the_feature(browser: Any, running: Running):
    with watch(browser) as seen:
        seen.page.goto(running.url)
        seen.page.get_by_role("tab", name="Search").click()
        seen.page.locator("#hs-query textarea, #hs-query input").first.fill("start of an import")
        seen.page.keyboard.press("Enter")
        card = seen.page.locator("#hs-results .hs-card").first
        card.wait_for()
        assert card.get_attribute("data-latent") == str(IMPORT)
        assert "Label" in card.inner_text()
        assert card.locator("mark").first.inner_text() == "start"
        seen.page.wait_for_url("**/?tab=search&q=start%20of%20an%20import")
        card.locator("a").first.click()
        seen.page.wait_for_selector(f'#hs-explore .hs-feature[data-latent="{IMPORT}"]')
        seen.page.wait_for_url(f"**/?feature={IMPORT}")


def test_other_ways_to_search(browser: Any, running: Running):
    with watch(browser) as seen:
        seen.page.goto(f"{running.url}/?tab=search&mode=prompt&q=os%20os")
        seen.page.wait_for_selector("#hs-results .hs-card")
        assert "Fires here" in seen.text("#hs-results .hs-card")
        seen.page.get_by_label("Tells two texts apart").check()
        seen.page.wait_for_selector("#hs-against textarea")
        seen.page.locator("#hs-query textarea").fill("import a\nimport b")
        seen.page.locator("#hs-against textarea").fill("x = y\nz = y")
        seen.page.click("#hs-search-go")
        seen.page.wait_for_selector("#hs-results .hs-card:has-text('Differs')")
        assert seen.page.locator("#hs-results .hs-card").first.get_attribute("data-latent") == str(IMPORT)


def test_an_empty_result_says_what_to_try(browser: Any, running: Running):
    with watch(browser) as seen:
        seen.page.goto(f"{running.url}/?tab=search&q=zebracrossing")
        seen.page.wait_for_selector("#hs-results :text('Try')")


def test_inspect_sorts_by_the_token_that_is_clicked(browser: Any, running: Running):
    with watch(browser) as seen:
        seen.page.goto(f"{running.url}/?tab=inspect&prompt=import%20os%0Aimport%20x")
        seen.page.wait_for_selector("#hs-grid table")
        row = "#hs-grid tbody tr th [data-latent]"
        assert seen.page.locator(row).first.get_attribute("data-latent") == str(IMPORT), "fires twice"
        seen.page.locator("#hs-grid thead [data-position='2']").click()
        seen.page.wait_for_selector(f"#hs-grid tbody tr:first-child [data-latent='{OS}']")
        seen.page.locator(row).first.click()
        seen.page.wait_for_selector(f'#hs-explore .hs-feature[data-latent="{OS}"]')


def test_the_card_is_read_as_text(browser: Any, running: Running):
    with watch(browser) as seen:
        seen.page.goto(f"{running.url}/?tab=about")
        seen.page.wait_for_selector("#hs-about table")
        shown = seen.text("#hs-about")
        assert "<script>window.broken=1</script>" in shown
        assert seen.page.locator("#hs-about img, #hs-about script").count() == 0
        assert seen.page.locator("#hs-about a[href^='javascript']").count() == 0
        assert seen.page.locator("#hs-about a[href='https://example.com/']").get_attribute("rel")
        seen.page.wait_for_url("**/?tab=about")
        seen.page.get_by_role("tab", name="Inspect text").click()
        seen.page.wait_for_url("**/?tab=inspect")


def test_a_phone_needs_no_sideways_scrolling(browser: Any, running: Running):
    with watch(browser, viewport=PHONE) as seen:
        for query, selector in VIEWS.items():
            seen.page.goto(f"{running.url}/?{query}")
            seen.page.wait_for_selector(selector)
            assert seen.overflow() <= 0, query


def test_dark_mode_turns_page_and_views(browser: Any, running: Running):
    light = "rgb(255, 255, 255)"
    colours = {}
    for dark in (False, True):
        with watch(browser, dark) as seen:
            seen.page.goto(f"{running.url}/?feature={SELF}")
            seen.page.wait_for_selector("#hs-explore .hs-feature h2")
            look = "e => [getComputedStyle(document.body).backgroundColor, getComputedStyle(e).color]"
            colours[dark] = seen.page.locator("#hs-explore .hs-feature").evaluate(look)
    assert colours[False][0] == light
    assert colours[True][0] != light
    assert colours[False][1] != colours[True][1]


def test_two_visitors_see_what_each_asked_for(browser: Any, running: Running):
    with watch(browser) as one, watch(browser) as other:
        one.page.goto(f"{running.url}/?feature={IMPORT}")
        other.page.goto(f"{running.url}/?feature={OS}")
        one.page.wait_for_selector(f'#hs-explore .hs-feature[data-latent="{IMPORT}"]')
        other.page.wait_for_selector(f'#hs-explore .hs-feature[data-latent="{OS}"]')
        one.page.keyboard.press("ArrowRight")
        one.page.wait_for_selector(f'#hs-explore .hs-feature[data-latent="{IMPORT + 1}"]')
        assert other.page.locator("#hs-explore .hs-feature").get_attribute("data-latent") == str(OS)


def test_where_visitors_repos_are_switched_off_links_to_them_show_what_is_there(browser: Any, folder: Path):
    catalog = Catalog([("planted", Given(str(folder)), {})], visitors=False)
    page = launch(Service(catalog))
    try:
        with watch(browser) as seen:
            seen.page.goto(f"{page.url}/?sae=user/repo&feature={IMPORT}")
            seen.page.wait_for_selector(f'#hs-explore .hs-feature[data-latent="{IMPORT}"]')
            seen.page.wait_for_url(f"**/?feature={IMPORT}")
    finally:
        page.app.close()
        catalog.close()


def test_pages_of_features_work_while_the_host_loads(browser: Any, folder: Path):
    class Slow(Given):
        def host(self, sae: Any) -> Any:
            released.wait(60)
            return super().host(sae)

    released = threading.Event()
    catalog = Catalog([("planted", Slow(str(folder)), {})])
    page = launch(Service(catalog, patience=0.2))
    try:
        with watch(browser) as seen:
            seen.page.goto(f"{page.url}/?feature={IMPORT}")
            seen.page.wait_for_selector(f'#hs-explore .hs-feature[data-latent="{IMPORT}"]')
            seen.page.wait_for_selector("#hs-status :text('The host of planted is still loading')")
            seen.page.locator("#hs-own textarea, #hs-own input").first.press_sequentially("import os", delay=10)
            seen.page.wait_for_selector("#hs-own-strip :text('is still loading')")
            released.set()
            seen.page.wait_for_selector("#hs-status :text('still loading')", state="detached")
            seen.page.locator("#hs-own textarea, #hs-own input").first.press_sequentially(" x")
            seen.page.wait_for_selector("#hs-own-strip .hs-peak")
    finally:
        released.set()
        page.app.close()
        catalog.close()
