"use strict";
(() => {
  const root = document.documentElement;

  // theme: as the system has it, until the button says otherwise
  const store = {
    get: () => { try { return localStorage.getItem("kifuse-theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("kifuse-theme", value); } catch { /* not kept */ } },
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; button.setAttribute("aria-label", (dark() ? "Light" : "Dark") + " colours"); };
  const kept = store.get();
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  button.hidden = false;
  name();
  system.addEventListener("change", name);
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; store.set(root.dataset.theme); name(); });

  // tabs: sections below each other become one at a time
  document.querySelectorAll(".tabs").forEach((box, number) => {
    const panels = [...box.children].filter((child) => child.dataset.tab);
    if (panels.length < 2) return;
    const list = document.createElement("div");
    list.setAttribute("role", "tablist");
    list.setAttribute("aria-label", box.dataset.label);
    const tabs = panels.map((panel, i) => {
      const tab = document.createElement("button");
      tab.type = "button";
      tab.id = `tab-${number}-${i}`;
      tab.textContent = panel.dataset.tab;
      tab.setAttribute("role", "tab");
      panel.id = panel.id || `panel-${number}-${i}`;
      tab.setAttribute("aria-controls", panel.id);
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", tab.id);
      panel.tabIndex = 0;
      list.append(tab);
      return tab;
    });
    const choose = (chosen, focus) => {
      tabs.forEach((tab, i) => {
        tab.setAttribute("aria-selected", String(i === chosen));
        tab.tabIndex = i === chosen ? 0 : -1;
        panels[i].hidden = i !== chosen;
      });
      if (focus) tabs[chosen].focus();
    };
    list.addEventListener("click", (event) => { const i = tabs.indexOf(event.target); if (i >= 0) choose(i, false); });
    list.addEventListener("keydown", (event) => {
      const at = tabs.indexOf(document.activeElement), last = tabs.length - 1;
      const to = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at ? at - 1 : last, Home: 0, End: last }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      choose(to, true);
    });
    box.prepend(list);
    box.classList.add("ready");
    choose(0, false);
    const follow = () => { const i = panels.findIndex((panel) => location.hash === "#" + panel.id); if (i >= 0) choose(i, false); };
    addEventListener("hashchange", follow);
    follow();
  });

  // tables: a click on a head sorts, another one turns the order
  document.querySelectorAll("table[data-sortable]").forEach((table) => {
    const body = table.tBodies[0];
    if (!body || body.rows.length < 2) return;
    const heads = [...table.tHead.rows[0].cells];
    const original = [...body.rows];
    const value = (row, column) => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
    };
    const before = (a, b) => {
      const numbers = [typeof a === "number", typeof b === "number"];
      if (numbers[0] && numbers[1]) return a - b;
      if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1;
      return a.localeCompare(b, undefined, { numeric: true });
    };
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const next = now === "ascending" ? "descending" : now === "descending" ? null : "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        const rows = [...original];
        if (next) {
          head.setAttribute("aria-sort", next);
          const sign = next === "ascending" ? 1 : -1;
          // a missing value stays at the end in both orders
          rows.sort((a, b) => {
            const [x, y] = [value(a, column), value(b, column)];
            return typeof x === typeof y ? sign * before(x, y) : before(x, y);
          });
        }
        body.append(...rows);
      });
    });
  });

  // copying code
  document.querySelectorAll(".copy").forEach((button) => {
    const code = button.parentElement.querySelector("code");
    button.hidden = false;
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(code.textContent); button.textContent = "Copied"; }
      catch { getSelection().selectAllChildren(code); button.textContent = "Selected"; }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  });

  // what is under the pointer
  const tip = document.getElementById("tip");
  const cellText = (group, event) => {
    const [x, y, width, height, rows, columns, first] = group.dataset.grid.split(" ").map(Number);
    const svg = group.ownerSVGElement;
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const column = Math.floor(((event.clientX - box.left) * scale - x) / width);
    const row = Math.floor(((event.clientY - box.top) * scale - y) / height);
    const table = group.closest(".figure").querySelector(".numbers table");
    if (row < 0 || column < 0 || row >= rows || column >= columns || !table) return "";
    const cells = table.tBodies[0].rows[first + row].cells, heads = table.tHead.rows[0].cells;
    const skip = heads.length - columns;
    return `${cells[skip - 1].textContent}, ${heads[column + skip].textContent}: ${cells[column + skip].textContent}`;
  };
  const show = (event) => {
    const target = event.target instanceof Element ? event.target : null;
    const group = target && target.closest(".cells");
    const text = group ? cellText(group, event) : target && target.dataset ? target.dataset.tip : "";
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const left = Math.min(event.pageX + 12, scrollX + root.clientWidth - tip.offsetWidth - 8);
    tip.style.left = Math.max(left, scrollX + 4) + "px";
    tip.style.top = event.pageY + 16 + "px";
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerleave", () => { tip.hidden = true; });
})();
