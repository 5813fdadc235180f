// One listener for the whole page. Data never brings code: what can be clicked says so by data attributes.
(() => {
  "use strict";

  const box = (id) => document.querySelector(`#${id} textarea, #${id} input`);
  let count = 0;

  // Puts a value into one of Gradio's boxes as if it had been typed.
  function send(id, value) {
    const target = box(id);
    if (!target) return;
    const kind = target.tagName === "TEXTAREA" ? HTMLTextAreaElement : HTMLInputElement;
    Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(target, value);
    target.dispatchEvent(new Event("input", { bubbles: true }));
  }

  const press = (id) => document.getElementById(id)?.click();
  const shown = (id) => Boolean(document.getElementById(id)?.offsetParent);

  // A number that counts up makes every click another value.
  const message = (facts) => JSON.stringify({ ...facts, click: ++count });

  function follow(element) {
    const { latent, sae, position, row } = element.dataset;
    const around = element.closest("[data-sae]");
    if (latent !== undefined) send("hs-goto", message({ feature: Number(latent), sae: sae || around?.dataset.sae || "" }));
    else if (position !== undefined && element.closest("#hs-grid")) send("hs-sort", message({ position: Number(position) }));
    else if (position !== undefined && element.closest("#hs-streams"))
      send("hs-token", message({ position: Number(position), row: Number(row ?? element.closest("[data-row]")?.dataset.row ?? 0) }));
    else return false;
    return true;
  }

  // Views name latents on whole articles and rows, too: what acts is a link or button, a cell of the grid, or a card.
  function clicked(target) {
    if (target.closest("summary, label, input")) return null;
    const handle = target.closest("a[data-latent], button[data-latent], a[data-position], button[data-position], [role=button][data-position]");
    if (handle || target.closest("a, button")) return handle;
    return target.closest("#hs-grid [data-latent], .hs-card[data-latent]");
  }

  document.addEventListener("click", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey || !event.target.closest) return;
    if (String(getSelection())) return;
    const element = clicked(event.target);
    if (element && follow(element)) event.preventDefault();
  });

  function typing(element) {
    return element?.closest?.("input, textarea, select, [contenteditable], [role=tab], [role=listbox]");
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const focused = event.target.closest?.("[role=button][data-position]");
    if (focused && (event.key === "Enter" || event.key === " ")) {
      if (follow(focused)) event.preventDefault();
      return;
    }
    if (typing(event.target)) return;
    const keys = { ArrowLeft: "hs-previous", ArrowRight: "hs-next", r: "hs-random" };
    if (event.key === "/") {
      event.preventDefault();
      window.hfsae.search();
    } else if (keys[event.key] && shown("hs-explore")) {
      event.preventDefault();
      press(keys[event.key]);
    }
  });

  async function copy(text, button) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    const target = button && document.getElementById(button);
    if (!target) return;
    const before = target.textContent;
    target.textContent = "Copied";
    setTimeout(() => { target.textContent = before; }, 1200);
  }

  let waiting = 0;
  let begun = false; // until the address was read, nothing may be written there

  window.hfsae = {
    send,
    message,
    begin() {
      begun = true;
    },
    // What the page shows, in the address bar: a reload and a link bring it back. News of a tab that nobody looks at is no
    // news; one that is about to be shown is waited for.
    remember(query, patience = 10) {
      if (!begun) return;
      clearTimeout(waiting);
      const tab = new URLSearchParams(query).get("tab") || "explore";
      if (document.getElementById("hs-tab-explore") && !shown(`hs-tab-${tab}`)) {
        if (patience) waiting = setTimeout(() => window.hfsae.remember(query, patience - 1), 100);
        return;
      }
      const keep = new URLSearchParams(location.search);
      const theme = keep.get("__theme");
      const parts = [query, theme ? `__theme=${encodeURIComponent(theme)}` : ""].filter(Boolean).join("&");
      history.replaceState(history.state, "", parts ? `?${parts}` : location.pathname);
    },
    copyLink: (button) => copy(location.href, button),
    copy,
    search() {
      for (const tab of document.querySelectorAll("[role=tab]")) if (tab.textContent.trim() === "Search") tab.click();
      setTimeout(() => box("hs-query")?.focus(), 60);
    },
    save(items) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([JSON.stringify(items ?? [], null, 1)], { type: "application/json" }));
      link.download = "features.json";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    },
  };
})();
