// Every visible text and control of the page whose contrast is below WCAG 2.1 AA: 4.5 to 1, for large text and
// controls 3 to 1 (1.4.3, 1.4.11); and how many were looked at.
() => {
  const dot = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const rgba = colour => { // any notation, as the browser itself paints it
    if (!known.has(colour)) {
      dot.clearRect(0, 0, 1, 1);
      dot.fillStyle = colour;
      dot.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = dot.getImageData(0, 0, 1, 1).data;
      known.set(colour, [r, g, b, a / 255]);
    }
    return known.get(colour);
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((v, i) => v * a + below[i] * (1 - a));
  const luminance = colour => {
    const [r, g, b] = colour.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, two) => {
    const [high, low] = [luminance(one), luminance(two)].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const stops = style => style.backgroundImage.match(/(?:rgba?|color|oklch|lab)\([^()]*\)/g) ?? [];
  const fills = style => [style.backgroundColor, ...stops(style)].map(rgba).filter(c => c[3] > 0);
  const behind = element => { // colours that can lie under an element's text
    if (!element) return [[255, 255, 255]];
    const mine = fills(getComputedStyle(element));
    if (mine.some(c => c[3] === 1)) return mine.filter(c => c[3] === 1).map(c => c.slice(0, 3));
    return behind(element.parentElement).flatMap(below => mine.length ? mine.map(c => over(c, below)) : [below]);
  };
  const opacity = element => element ? Number(getComputedStyle(element).opacity) * opacity(element.parentElement) : 1;
  const seen = element => {
    const box = element.getBoundingClientRect();
    return box.width > 2 && box.height > 2 && element.checkVisibility({ opacityProperty: true, visibilityProperty: true })
      && !element.closest(":disabled, [aria-disabled=true], [inert]"); // what cannot be used may be faint
  };
  const faint = [];
  let count = 0;
  const check = (what, element, colour, needed) => {
    count += 1;
    const [r, g, b, a] = rgba(colour);
    const worst = Math.min(...behind(element).map(b_ => ratio(over([r, g, b, a * opacity(element)], b_), b_)));
    if (worst < needed) faint.push(`${what}: ${worst.toFixed(2)} < ${needed} (${colour})`);
  };
  const text = (what, element, pseudo) => {
    const style = getComputedStyle(element, pseudo), size = parseFloat(style.fontSize);
    check(what, element, style.color, size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5);
  };
  const name = element => `<${element.localName} ${element.closest("[id]")?.id ?? ""} ${element.className}>`;

  const nodes = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = nodes.nextNode());) {
    const words = node.data.trim(), element = node.parentElement;
    if (words && !element.closest("script, style, option, noscript") && seen(element)) {
      text(`“${words.slice(0, 40)}” ${name(element)}`, element);
    }
  }
  const edges = element => {
    const style = getComputedStyle(element), wide = parseFloat(style.borderTopWidth) > 0;
    return wide ? [rgba(style.borderTopColor), ...(element.localName === "input" ? fills(style) : [])] : [];
  };
  for (const field of document.querySelectorAll("input, textarea")) {
    if (!seen(field) || field.type === "file") continue;
    const mark = ["checkbox", "radio"].includes(field.type);
    if (field.type === "range") continue; // computed styles do not tell of its parts
    if (!mark && field.value) text(`value of ${name(field)}`, field);
    else if (!mark && field.placeholder) text(`placeholder of ${name(field)}`, field, "::placeholder");
    let box = field; // or what is drawn as the field: whatever has an edge
    while (!mark && !edges(box).length && box.parentElement.childElementCount < 4) box = box.parentElement;
    count += 1;
    const around = behind(box.parentElement)[0];
    const best = Math.max(1, ...edges(box).map(colour => ratio(over(colour, around), around)));
    if (best < 3) faint.push(`edge of ${name(field)} ${field.type}: ${best.toFixed(2)} < 3`);
  }
  return { faint: [...new Set(faint)], count };
}
