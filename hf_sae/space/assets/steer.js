// The table of edits: what is typed goes to a hidden box as JSON; rows come and go by messages to the server.
(() => {
  "use strict";

  const { send, message } = window.hfsae;

  // As the visitor has filled it in.
  function edits() {
    return [...document.querySelectorAll("#hs-edit-table [data-edit]")].map((row) => {
      const field = (name) => row.querySelector(`[data-field=${name}]`);
      const [when, strength] = [field("when").value.trim(), Number(field("strength").value)];
      return {
        feature: Number(row.dataset.feature),
        operation: field("operation").value,
        strength: Number.isFinite(strength) ? strength : 0,
        unit: field("unit").value,
        on: field("on").checked,
        sae: row.dataset.of,
        when: /^\d+$/.test(when) ? Number(when) : null,
      };
    });
  }

  function edited(event) {
    const row = event.target.closest?.("#hs-edit-table [data-edit]");
    if (!row) return;
    const said = edits()[Number(row.dataset.edit)];
    const raw = row.querySelector(".hs-edit-raw");
    const inMaxima = said.unit === "max" && !["scale", "ablate"].includes(said.operation) && raw.dataset.max;
    raw.textContent = inMaxima ? `= ${Number((said.strength * Number(raw.dataset.max)).toPrecision(3))}` : "";
    send("hs-edits", JSON.stringify(edits()));
  }
  document.addEventListener("input", edited);
  document.addEventListener("change", edited);

  document.addEventListener("click", (event) => {
    const remove = event.target.closest?.("[data-remove]");
    const add = event.target.closest?.("[data-add]");
    if (remove) send("hs-edit-change", message({ remove: Number(remove.dataset.remove) }));
    if (add) send("hs-edit-change", message({ add: Number(add.dataset.add), sae: add.dataset.of || "" }));
  });
})();
