"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // Light and dark: the system's until the reader chooses.
  const theme = document.getElementById("theme");
  const isDark = () =>
    (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const nameTheme = () => { theme.textContent = isDark() ? "Light mode" : "Dark mode"; };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
  nameTheme();

  // Tables: a column's heading sorts, by numbers where a cell has one; empty cells stay last.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const bodies = [...table.tBodies].map((body) => {
      const rows = [...body.rows];
      return { body, fixed: rows.filter((r) => r.className === "group"), rows: rows.filter((r) => r.className !== "group") };
    });
    const key = (row, i) => row.cells[i].dataset.sort ?? row.cells[i].textContent.trim();
    const sort = (i, order) => {
      for (const { body, fixed, rows } of bodies) {
        const sorted = order === "none" ? rows : rows.toSorted((a, b) => {
          const [x, y] = [key(a, i), key(b, i)];
          if (x === "" || y === "") return (x === "") - (y === "");
          const both = Number(x) - Number(y);
          const up = Number.isNaN(both) ? x.localeCompare(y) : both;
          return order === "ascending" ? up : -up;
        });
        body.append(...fixed, ...sorted);
      }
      heads.forEach((head, j) => head.setAttribute("aria-sort", i === j ? order : "none"));
    };
    heads.forEach((head, i) => {
      const first = head.dataset.first || "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const next = { none: first, [first]: second, [second]: "none" };
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sort(i, next[head.getAttribute("aria-sort")]));
    });
  }

  // Charts: a point says its value under the pointer, a finger or the arrow keys.
  const tip = document.getElementById("tip");
  const hide = () => {
    tip.hidden = true;
    document.querySelectorAll(".point.near").forEach((point) => point.classList.remove("near"));
  };
  const show = (point) => {
    hide();
    point.classList.add("near");
    tip.textContent = point.getAttribute("aria-label");
    tip.hidden = false;
    const at = point.getBoundingClientRect();
    const x = at.left + at.width / 2 - tip.offsetWidth / 2;
    const y = at.top - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(4, Math.min(x, root.clientWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${y < 4 ? at.bottom + 6 : y}px`;
  };
  addEventListener("pointerdown", (event) => { if (!event.target.closest("svg.plot")) hide(); });
  for (const chart of document.querySelectorAll("figure.chart")) {
    const plot = chart.querySelector("svg.plot");
    const points = () => [...plot.querySelectorAll(".mark:not(.off) .point")];
    const nearest = (event) => {
      let best = null, least = 30;
      for (const point of points()) {
        const at = point.getBoundingClientRect();
        const far = Math.hypot(at.left + at.width / 2 - event.clientX, at.top + at.height / 2 - event.clientY);
        if (far < least) [best, least] = [point, far];
      }
      if (best) show(best); else hide();
    };
    plot.addEventListener("pointermove", nearest);
    plot.addEventListener("pointerdown", nearest);
    // A finger that is lifted leaves, and its value is to stay: until the next touch elsewhere.
    plot.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") hide(); });
    plot.addEventListener("focusin", (event) => { if (event.target !== plot) show(event.target); });
    plot.addEventListener("focusout", hide);
    plot.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      // Methods first, then the points of their curves.
      const small = (point) => point.classList.contains("small");
      const all = points().toSorted((a, b) => small(a) - small(b));
      if (!step || !all.length) return;
      event.preventDefault();
      const now = all.indexOf(document.activeElement);
      all[now < 0 ? (step > 0 ? 0 : all.length - 1) : (now + step + all.length) % all.length].focus();
    });
    for (const box of chart.querySelectorAll(".legend input")) {
      const apply = () => plot.querySelectorAll(".mark").forEach((mark) => {
        if (mark.dataset.series === box.value) mark.classList.toggle("off", !box.checked);
      });
      box.addEventListener("change", apply);
      apply();
    }
  }

  // Copying works without a network and, by the older command, where the clipboard is refused.
  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      let done = true;
      try {
        await navigator.clipboard.writeText(source.innerText);
      } catch {
        getSelection().selectAllChildren(source);
        done = document.execCommand("copy");
      }
      document.getElementById(button.getAttribute("aria-describedby")).textContent =
        done ? "Copied." : "The text is selected: copy it with Ctrl+C.";
    });
  }

  // On paper all folds are open, those too of which the screen has one open at a time.
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => {
    one.removeAttribute("name");
    one.open = true;
  }));
})();
