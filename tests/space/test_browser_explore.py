"""The page in a real browser: features, own text, keys, links that outlive the server."""

from __future__ import annotations

import json
from typing import Any

from hf_sae.space.service import Service
from tests.space.browser import watch
from tests.space.conftest import Running, launch
from tests.space.planted import DEAD, EVIL, IMPORT, OS, SELF


FEATURE = "#hs-explore .hs-feature h2"


def shows(page: Any, feature: int) -> None:
    page.wait_for_selector(f'#hs-explore .hs-feature[data-latent="{feature}"]')


def test_the_first_visit_shows_a_feature_and_features_to_begin_with(browser: Any, running: Running):
    with watch(browser) as seen:
        seen.page.goto(running.url)
        seen.page.wait_for_selector(FEATURE)
        seen.page.wait_for_selector("#hs-gallery a")
        assert seen.page.locator("#hs-gallery a").count() >= 2
        assert "start of an import" in seen.text("#hs-gallery")
        seen.page.locator("#hs-gallery a", has_text="start of an import").click()
        shows(seen.page, IMPORT)
        seen.page.wait_for_url(f"**/?feature={IMPORT}")


def test_your_own_text_is_answered_while_typing(browser: Any, running: Running):
    with watch(browser) as seen:
        seen.page.goto(f"{running.url}/?feature={IMPORT}")
        shows(seen.page, IMPORT)
        seen.page.locator("#hs-own textarea, #hs-own input").first.press_sequentially("import os", delay=15)
        seen.page.wait_for_selector("#hs-own-strip .hs-peak")
        assert seen.text("#hs-own-strip .hs-peak").strip() == "import"


def test_keys_walk_through_features(browser: Any, running: Running):
    with watch(browser) as seen:
        seen.page.goto(f"{running.url}/?feature={OS}")
        shows(seen.page, OS)
        seen.page.keyboard.press("ArrowRight")
        shows(seen.page, OS + 1)
        seen.page.keyboard.press("ArrowLeft")
        shows(seen.page, OS)
        seen.page.goto(f"{running.url}/?feature={DEAD}")
        shows(seen.page, DEAD)
        seen.page.keyboard.press("ArrowRight")
        shows(seen.page, 0)
        seen.page.keyboard.press("/")
        seen.page.wait_for_selector("#hs-query :focus")
        seen.page.keyboard.press("r")
        assert seen.page.input_value("#hs-query textarea, #hs-query input") == "r", "keys are letters inside a box"


def test_tabs_and_scale_inside_a_feature_page_work_without_leaving_it(browser: Any, running: Running):
    with watch(browser) as seen:
        seen.page.goto(f"{running.url}/?feature={IMPORT}")
        shows(seen.page, IMPORT)
        seen.page.locator("#hs-explore .hs-tab", has_text="Not firing").click()
        assert seen.page.locator("#hs-explore .hs-panel:visible .hs-t.hs-peak").count() == 0
        nearest = seen.page.locator("#hs-explore .hs-related a").first
        wanted = int(nearest.get_attribute("data-latent") or -1)
        nearest.click()
        shows(seen.page, wanted)


def test_a_link_outlives_the_server(browser: Any, running: Running, service: Service):
    second = launch(service)
    with watch(browser) as seen:
        seen.page.goto(second.url)
        seen.page.wait_for_selector(FEATURE)
        seen.page.locator("#hs-gallery a", has_text="start of an import").click()
        shows(seen.page, IMPORT)
        seen.page.wait_for_url(f"**/?feature={IMPORT}")
        link = seen.page.url
    second.app.close()
    third = launch(service, second.port)
    try:
        with watch(browser) as seen:
            seen.page.goto(link)
            shows(seen.page, IMPORT)
    finally:
        third.app.close()


def test_text_of_data_is_text(browser: Any, running: Running):
    with watch(browser) as seen:
        seen.page.goto(f"{running.url}/?feature={SELF}")
        shows(seen.page, SELF)
        assert EVIL in seen.text("#hs-explore")
        assert "<b onclick=alert(1)>" in seen.text(FEATURE)
        assert seen.page.locator("#hs-explore img, #hs-explore script, #hs-explore b[onclick]").count() == 0


def test_hostile_links_show_the_page(browser: Any, running: Running):
    with watch(browser) as seen:
        for query in (
            "sae=%3Cimg%20src=x%20onerror=window.broken=1%3E&feature=99999999",
            "tab=search&q=%3Cimg%20src%3Dx%20onerror%3Dwindow.broken%3D1%3E%22%27",
        ):
            seen.page.goto(f"{running.url}/?{query}")
            seen.page.wait_for_selector("#hs-explore .hs-app-problem, #hs-results :text('Nothing matches')")
            assert seen.page.evaluate("window.broken") is None


def test_a_list_is_kept_in_the_browser_and_goes_out_as_json(browser: Any, running: Running):
    with watch(browser) as seen:
        seen.page.goto(f"{running.url}/?feature={IMPORT}")
        shows(seen.page, IMPORT)
        seen.page.get_by_text("Your list").click()
        seen.page.click("#hs-keep")
        seen.page.wait_for_selector("#hs-list a")
        seen.page.reload()
        shows(seen.page, IMPORT)
        seen.page.get_by_text("Your list").click()
        seen.page.wait_for_selector("#hs-list a")
        assert seen.page.get_attribute("#hs-list a", "data-latent") == str(IMPORT)
        with seen.page.expect_download() as download:
            seen.page.get_by_role("button", name="Save as file").click()
        (entry,) = json.loads(download.value.path().read_text())
        assert (entry["sae"], entry["feature"]) == ("planted", IMPORT)


def test_copying(browser: Any, running: Running):
    with watch(browser, permissions=["clipboard-read", "clipboard-write"]) as seen:
        seen.page.goto(f"{running.url}/?feature={IMPORT}")
        shows(seen.page, IMPORT)
        for button, expected in (
            ("#hs-explore-link", f"{running.url}/?feature={IMPORT}"),
            ("#hs-explore-as-python", f"dataset.feature('planted', {IMPORT})"),
            ("#hs-explore-as-command", f"--feature {IMPORT}="),
        ):
            seen.page.click(button)
            seen.page.wait_for_selector(f"{button}:has-text('Copied')")
            assert expected in seen.page.evaluate("navigator.clipboard.readText()")
