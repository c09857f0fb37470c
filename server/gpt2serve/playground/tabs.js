// Tabs over one panel, after the ARIA Authoring Practices: arrows move, and choose at once.

/** `onChoice(tab)` is called with the tab that is chosen, and with the first one now. */
export function makeTabs(list, panel, onChoice) {
  const tabs = [...list.querySelectorAll("[role=tab]")];

  function choose(chosen) {
    for (const tab of tabs) {
      tab.ariaSelected = String(tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
    }
    panel.setAttribute("aria-labelledby", chosen.id);
    onChoice(chosen);
  }

  list.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) choose(tab);
  });
  list.addEventListener("keydown", (event) => {
    const now = tabs.indexOf(document.activeElement);
    const next = {
      ArrowRight: now + 1,
      ArrowLeft: now - 1,
      Home: 0,
      End: -1,
    }[event.key];
    if (now < 0 || next === undefined) return;
    event.preventDefault();
    const tab = tabs.at(next % tabs.length);
    tab.focus();
    choose(tab);
  });
  choose(tabs[0]);
}
