from __future__ import annotations

import pytest

from hf_sae.views import page
from tests.views.everything import everything


HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_pages_fit_and_ask_for_nothing(browser, tmp_path, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    opened, wrong = context.new_page(), []
    opened.on("console", lambda message: wrong.append(message.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("dialog", lambda dialog: (wrong.append("dialog"), dialog.dismiss()))
    opened.on("request", lambda request: request.url.startswith("file:") or wrong.append(request.url))
    for name, body in (everything(HOSTILE) | everything("long" * 200)).items():
        file = tmp_path / f"{name}.html"
        file.write_text(page(name, body), encoding="utf-8")
        opened.goto(file.as_uri())
        assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    ink = opened.evaluate("getComputedStyle(document.querySelector('.hs')).color")
    assert ink == ("rgb(27, 30, 34)" if scheme == "light" else "rgb(228, 231, 235)")
    opened.evaluate("document.body.className = 'gradio-container dark'")
    assert opened.evaluate("getComputedStyle(document.querySelector('.hs')).color") == "rgb(228, 231, 235)"
    opened.evaluate("document.body.className = 'gradio-container'")
    assert opened.evaluate("getComputedStyle(document.querySelector('.hs')).color") == "rgb(27, 30, 34)"
    assert wrong == []
    context.close()


def test_tabs_and_the_scale_switch_without_a_script(browser, tmp_path):
    file = tmp_path / "feature.html"
    file.write_text(
        page("feature", everything("a", 8.0)["feature"] + everything("b", 8.0)["feature"]), encoding="utf-8"
    )
    opened = browser.new_page()
    opened.goto(file.as_uri())
    first, second = opened.locator(".hs-feature").all()
    shown = [panel.is_visible() for panel in first.locator(".hs-panel").all()]
    assert shown == [True, False, False, False, False, False]
    first.locator(".hs-tab1").click()
    assert first.locator(".hs-panel1").is_visible()
    assert not first.locator(".hs-panel0").is_visible()
    assert second.locator(".hs-panel0").is_visible(), "each page has tabs of its own"
    weak = first.locator(".hs-panel1 .hs-t[data-position='2']").first
    before = weak.evaluate("e => getComputedStyle(e).backgroundColor")
    first.locator(".hs-s1").click()
    assert first.locator(".hs-full-r").is_visible()
    assert weak.evaluate("e => getComputedStyle(e).borderBottomStyle") == "dashed"
    assert before == weak.evaluate("e => getComputedStyle(e).backgroundColor"), "here the row holds the maximum"
    opened.close()
