// What gradio's page lacks for keyboards and screen readers.
() => {
  const shown = { frame: "Your picture: what counts is bright", glimpse: "A quick look at this step" };
  const mend = () => {
    for (const [id, words] of Object.entries(shown)) {
      for (const picture of document.querySelectorAll(`#${id} img`)) {
        picture.alt = words;
        picture.closest("button")?.setAttribute("disabled", ""); // pressing it does nothing: no key stops at it
      }
    }
    // One stop for a row of choices, and arrows within; but not through domains, each of which may take minutes
    for (const group of document.querySelectorAll(".stage fieldset:not(#brush *, #domain)")) {
      const choices = group.querySelectorAll("input[type=radio]");
      for (const choice of choices) choice.name = choices[0].name;
    }
  };
  new MutationObserver(mend).observe(document.body, { subtree: true, childList: true });
  mend();
}
