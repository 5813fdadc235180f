"""The Steer tab in a real browser: texts that grow, stop, links, edits, many visitors."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from hf_sae.space.links import Link, read_link
from hf_sae.space.service import Service
from hf_sae.space.steering import Ask
from hf_sae.steering.engine.forward import HostForward
from tests.space.browser import PHONE, Watched, watch
from tests.space.conftest import Running, launch
from tests.space.planted import CLASS, EVIL, IMPORT, OS, RETURN, SELF


PROMPT = "def f(self):\n   "
TOKENS = 8
MUCH = 240  # tokens, as many as the context of the host has room for


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that would need seconds for what is interrupted."""
    read = HostForward.__call__

    def slowly(self: HostForward, *args: Any) -> Any:
        time.sleep(0.02)
        return read(self, *args)

    monkeypatch.setattr(HostForward, "__call__", slowly)


def rows_in(service: Service) -> Callable[[], int]:
    engine = service.catalog.find().machine.get().engine
    return lambda: engine.n_rows


def until(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def address(running: Running, edits: list[dict[str, Any]], prompt: str = PROMPT, **options: Any) -> str:
    options = {"max_new_tokens": TOKENS} | options
    return f"{running.url}/?{Link('steer', prompt=prompt, edits=tuple(edits), options=options).query()}"


def visit(seen: Watched, running: Running, edits: list[dict[str, Any]], prompt: str = PROMPT, **options: Any) -> None:
    seen.page.goto(address(running, edits, prompt, **options))
    seen.page.wait_for_selector(f"#hs-edit-table [data-edit='{len(edits) - 1}']" if edits else "#hs-tab-steer")


def ids(page: Any, row: int) -> list[int]:
    """The tokens of a column, as its tips name them."""
    tips = page.locator(f"#hs-streams [data-row='{row}'] [data-position]").evaluate_all("es => es.map(e => e.title)")
    return [int(re.findall(r" · id (\d+) · ", tip)[-1]) for tip in tips]


def finished(page: Any, columns: int = 2, state: str = "done") -> list[list[int]]:
    page.wait_for_function(
        f"document.querySelectorAll('#hs-streams .hs-stream .hs-is-{state}').length === {columns}"
        f" && document.querySelectorAll('#hs-streams .hs-stream').length === {columns}"
    )
    return [ids(page, row) for row in range(columns)]


# the texts of the run before stay until the first ones of the next come
BEGUN = """() => {
  window.begun = false;
  const box = document.querySelector("#hs-streams");
  const look = () => { window.begun ||= Boolean(box.querySelector(".hs-is-running, .hs-is-waiting")); };
  new MutationObserver(look).observe(box, { childList: true, subtree: true, attributes: true });
}"""


def steer(page: Any, columns: int = 2) -> list[list[int]]:
    page.evaluate(BEGUN)
    page.click("#hs-steer-go")
    page.wait_for_function("window.begun")
    return finished(page, columns)


def alone(service: Service, edits: list[dict[str, Any]], prompt: str = PROMPT, **options: Any) -> list[list[int]]:
    """What the service gives for the same."""
    found = service.steer(prompt, edits, **{"max_new_tokens": TOKENS} | options)
    return [[token["id"] for token in stream["tokens"]] for stream in found["streams"]]


def written(page: Any, count: int) -> None:
    page.wait_for_function(f"document.querySelectorAll('#hs-streams [data-position]').length >= {count}")


def test_a_feature_added_by_number_steers_while_one_watches(
    browser: Any, running: Running, service: Service, slow: None
):
    with watch(browser) as seen:
        visit(seen, running, [], max_new_tokens=16)
        seen.page.locator("#hs-steer-feature input").fill(str(SELF))
        seen.page.click("#hs-steer-add")
        row = seen.page.locator("#hs-edit-table [data-edit='0']")
        row.wait_for()
        assert row.get_attribute("data-feature") == str(SELF)
        assert "self in methods <b onclick=alert(1)>bold</b>" in row.inner_text()
        seen.page.evaluate(
            "window.seen = []; setInterval(() => window.seen.push(['0', '1'].map(r => "
            'document.querySelectorAll(`#hs-streams [data-row="${r}"] [data-position]`).length)), 20)'
        )
        assert steer(seen.page) == alone(service, [{"feature": SELF, "strength": 2.0}], max_new_tokens=16)
        sizes = seen.page.evaluate("window.seen")
        for column in (0, 1):
            grown = [size[column] for size in sizes if size[column]]
            assert grown == sorted(grown)
            assert len(set(grown)) >= 5, "token by token"
        gauges = seen.page.locator("#hs-streams .hs-gauge")
        assert gauges.count() == 2
        assert re.search(
            r"(fluent|repeating|drifting|broken) perplexity \S+ over 16 tokens",
            " ".join(gauges.nth(1).inner_text().split()),
        )
        seen.page.wait_for_url("**/?tab=steer*edits=*")
        link = read_link(urlsplit(seen.page.url).query)
        assert link.edits == ({"feature": SELF, "strength": 2.0},)


def test_stop_ends_the_texts_at_once(browser: Any, running: Running, service: Service, slow: None):
    rows = rows_in(service)
    with watch(browser) as seen:
        visit(seen, running, [{"feature": SELF, "strength": 2.0}], max_new_tokens=MUCH)
        seen.page.click("#hs-steer-go")
        written(seen.page, 8)
        assert rows() == 3
        begun = time.monotonic()
        seen.page.click("#hs-steer-stop")
        found = finished(seen.page, state="stopped")
        assert time.monotonic() - begun < 1.5
        assert until(lambda: rows() == 0, 0.5)
        assert 4 <= len(found[0]) < MUCH / 2
        seen.page.wait_for_timeout(400)
        assert finished(seen.page, state="stopped") == found, "nothing more comes"
        again = steer_stopped(seen.page)
        assert again, "the button works again"


def steer_stopped(page: Any) -> bool:
    page.click("#hs-steer-go")
    page.wait_for_selector("#hs-streams .hs-is-running")
    page.click("#hs-steer-stop")
    finished(page, state="stopped")
    return True


def test_closing_the_page_frees_its_rows(browser: Any, running: Running, service: Service, slow: None):
    rows = rows_in(service)
    with watch(browser) as seen:
        other = seen.page.context.new_page()
        other.goto(address(running, [{"feature": SELF, "strength": 2.0}], max_new_tokens=MUCH))
        other.wait_for_selector("#hs-edit-table [data-edit='0']")
        other.click("#hs-steer-go")
        written(other, 4)
        assert rows() == 3
        other.close()
        assert until(lambda: rows() == 0, 3.0)


def test_two_visitors_with_opposite_plans_get_what_each_gets_alone(
    browser: Any, running: Running, service: Service, slow: None
):
    plans = [[{"feature": SELF, "strength": 3.0}], [{"feature": SELF, "strength": -3.0}]]
    wanted = [alone(service, plan, max_new_tokens=20) for plan in plans]
    assert wanted[0][1] != wanted[1][1]
    rows = rows_in(service)
    with watch(browser) as one, watch(browser) as other:
        for seen, plan in zip((one, other), plans, strict=True):
            visit(seen, running, plan, max_new_tokens=20)
        for seen in (one, other):
            seen.page.click("#hs-steer-go")
        assert until(lambda: rows() == 6, 2.0), "they share the batch"
        assert [finished(seen.page) for seen in (one, other)] == wanted


def test_a_link_outlives_the_server(browser: Any, service: Service):
    edits = [{"feature": SELF, "strength": 3.5}, {"feature": OS, "operation": "ablate", "when": IMPORT, "on": False}]
    options = {"temperature": 0.8, "seed": 5, "top_p": 0.9, "instruction": "# a class", "positions": "generated"}
    second = launch(service)
    with watch(browser) as seen:
        visit(seen, second, edits, **options)
        found = steer(seen.page, 3)
        assert found == alone(service, edits, **options)
        seen.page.wait_for_url("**/?tab=steer*edits=*")
        link = seen.page.url
    second.app.close()
    third = launch(service, second.port)
    try:
        with watch(browser) as seen:
            seen.page.goto(link)
            seen.page.wait_for_selector("#hs-edit-table [data-edit='1']")
            assert seen.page.locator("#hs-steer-prompt textarea").input_value() == PROMPT
            assert field(seen.page, 0, "strength").input_value() == "3.5"
            assert field(seen.page, 1, "operation").input_value() == "ablate"
            assert field(seen.page, 1, "when").input_value() == str(IMPORT)
            assert not field(seen.page, 1, "on").is_checked()
            assert steer(seen.page, 3) == found
    finally:
        third.app.close()


def field(page: Any, row: int, name: str) -> Any:
    return page.locator(f"#hs-edit-table [data-edit='{row}'] [data-field='{name}']")


def test_the_run_follows_what_is_typed_in_the_table(browser: Any, running: Running, service: Service):
    both = [{"feature": SELF, "strength": 2.0}, {"feature": RETURN, "strength": 1.0}]
    lower = {"feature": SELF, "strength": -1.0}
    clamped = {"feature": RETURN, "operation": "clamp", "strength": 1.0, "unit": "norm"}
    plans = (both, [lower, both[1]], [lower, clamped | {"unit": "max"}], [lower, clamped], [clamped], [lower])
    wanted = [alone(service, plan) for plan in plans]
    assert len({tuple(steered) for _, steered in wanted}) == len(plans), "every change changes the text"
    with watch(browser) as seen:
        visit(seen, running, both)
        assert steer(seen.page) == wanted[0]
        field(seen.page, 0, "strength").fill("-1")
        assert "= -1" in seen.text("#hs-edit-table [data-edit='0']"), "in latent units: the maximum is 1"
        assert steer(seen.page) == wanted[1]
        field(seen.page, 1, "operation").select_option("clamp")
        field(seen.page, 1, "unit").select_option("norm")
        assert steer(seen.page) == wanted[3]
        field(seen.page, 0, "on").uncheck()
        assert steer(seen.page) == wanted[4]
        field(seen.page, 0, "on").check()
        seen.page.click("[data-remove='1']")
        seen.page.wait_for_selector("#hs-edit-table [data-edit='1']", state="detached")
        assert field(seen.page, 0, "strength").input_value() == "-1"
        assert steer(seen.page) == wanted[5]
        seen.page.click("[data-remove='0']")
        seen.page.wait_for_selector("#hs-edit-table :text('No edits yet')")
        seen.page.click("#hs-steer-go")
        seen.page.wait_for_selector("#hs-streams :text('nothing to steer with')")


def test_a_feature_page_leads_here(browser: Any, running: Running):
    with watch(browser) as seen:
        seen.page.goto(f"{running.url}/?feature={OS}")
        seen.page.wait_for_selector(f'#hs-explore .hs-feature[data-latent="{OS}"]')
        seen.page.get_by_role("button", name="Steer", exact=True).first.click()
        seen.page.wait_for_selector(f"#hs-edit-table [data-feature='{OS}']")
        assert seen.page.locator("#hs-steer-go").is_visible()
        seen.page.wait_for_url(f"**/?tab=steer*%22feature%22%3A{OS}*")


def test_features_of_a_generated_token_can_be_added(browser: Any, running: Running, service: Service):
    edits = [{"feature": CLASS, "strength": 0.01}]
    with service.start_steering(Ask("def f(", edits, TOKENS, trace=True)) as run:
        steered = run.result(30)[1]
    strongest = [[latent for _, latent, _ in token.latents] for token in steered.tokens]
    assert [RETURN] in strongest
    with watch(browser) as seen:
        visit(seen, running, edits, "def f(")
        steer(seen.page)
        for position, latents in enumerate(strongest):
            seen.page.locator("#hs-streams [data-row='1'] [data-position]").nth(position).click()
            seen.page.wait_for_selector("#hs-token-found [data-add]" if latents else "#hs-token-found p")
            found = seen.page.locator("#hs-token-found [data-add]")
            assert found.evaluate_all("es => es.map(e => Number(e.dataset.add))") == latents
            if latents:
                break
        add = seen.page.locator("#hs-token-found [data-add]").first
        feature = add.get_attribute("data-add")
        add.click()
        seen.page.wait_for_selector(f"#hs-edit-table [data-feature='{feature}']")


def test_a_preset_of_the_author_fills_the_form(browser: Any, running: Running, service: Service):
    with watch(browser) as seen:
        seen.page.goto(running.url)
        seen.page.get_by_role("tab", name="Steer").click()
        seen.page.locator("#hs-preset input").click()
        seen.page.get_by_role("option", name="More imports").click()
        seen.page.wait_for_selector("#hs-edit-table [data-edit='1']")
        (preset,) = service.presets()
        edits = [row.to_json() for row in preset.rows]
        assert steer(seen.page) == alone(service, edits, preset.prompt, max_new_tokens=40, positions="generated")


def test_text_of_a_link_is_text(browser: Any, running: Running):
    edits = [{"feature": SELF, "strength": 2.0}]
    hostile = {"seed": "x", "temperature": 99, "top_p": -1, "sweep": 3, "positions": EVIL, "chat": EVIL, EVIL: EVIL}
    with watch(browser) as seen:
        visit(seen, running, edits, EVIL, instruction=EVIL, **hostile)
        steer(seen.page, 3)
        assert EVIL in seen.text("#hs-streams")
        assert seen.page.locator("#hs-tab-steer img, #hs-tab-steer script, #hs-tab-steer b[onclick]").count() == 0
        visit(seen, running, [{"feature": SELF, "sae": EVIL}], EVIL, max_new_tokens=EVIL)
        seen.page.click("#hs-steer-go")
        seen.page.wait_for_selector("#hs-streams :text('reads another host')")
        seen.page.goto(address(running, [{"feature": EVIL}]))
        seen.page.wait_for_selector("#hs-edit-table .hs-app-problem")
        assert seen.page.locator("#hs-tab-steer img").count() == 0


def test_a_phone_and_the_dark(browser: Any, running: Running):
    edits = [{"feature": SELF, "strength": 2.0}, {"feature": IMPORT, "operation": "clamp", "when": OS}]
    look = "e => [getComputedStyle(document.body).backgroundColor, getComputedStyle(e).color]"
    with watch(browser, viewport=PHONE) as seen:
        visit(seen, running, edits, sweep=True)
        light = seen.page.locator("#hs-edit-table .hs-edit").first.evaluate(look)
    with watch(browser, dark=True, viewport=PHONE) as seen:
        visit(seen, running, edits, sweep=True)
        steer(seen.page, 6)
        assert seen.overflow() <= 0
        first, second = (seen.page.locator(f"#hs-streams [data-row='{row}']").bounding_box() for row in (0, 1))
        assert second["y"] >= first["y"] + first["height"], "one below the other"
        for part in ("#hs-edit-table .hs-edit", "#hs-streams .hs-text"):
            dark = seen.page.locator(part).first.evaluate(look)
            assert all(one != other for one, other in zip(light, dark, strict=True)), part
    assert light[0] == "rgb(255, 255, 255)"
