// What of the page cannot be hit, or not be known by its name: controls of less than 24 pixels (WCAG 2.2, 2.5.8),
// outside of the screen, or without a name; pictures without words; text that is cut off; and how many were looked at.
() => {
  const seen = element => {
    const box = element.getBoundingClientRect();
    return box.width > 1 && box.height > 1
      && element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  };
  const describe = element => `<${element.localName} ${element.closest("[id]")?.id ?? ""} ${element.className}>`;
  const named = element => element.ariaLabel || element.labels?.length || element.innerText?.trim() || element.title
    || element.getAttribute("aria-labelledby") || element.querySelector("img[alt]:not([alt=''])");
  const faults = [];
  let count = 0;
  for (const control of document.querySelectorAll("button, a[href], input, textarea")) {
    if (!seen(control) || control.closest("[disabled]")) continue;
    count += 1;
    const mark = ["radio", "checkbox"].includes(control.type);
    const box = ((mark && control.closest("label")) || control).getBoundingClientRect();
    if (box.width < 24 || box.height < 24) faults.push(`${box.width} x ${box.height}: ${describe(control)}`);
    if (box.left < 0 || box.right > innerWidth) faults.push(`at ${box.left} to ${box.right}: ${describe(control)}`);
    if (!named(control)) faults.push(`no name: ${describe(control)}`);
  }
  for (const picture of document.querySelectorAll(":is(#frame, #glimpse) img")) {
    if (!picture.alt) faults.push(`no words: ${describe(picture)}`);
  }
  for (const words of document.querySelectorAll(".filename span, .caption-label")) {
    const cut = words.clientWidth && words.scrollWidth > words.clientWidth + 1;
    if (seen(words) && cut) faults.push(`cut: ${describe(words)}`);
  }
  return { faults, count };
}
