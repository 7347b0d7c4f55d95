// Elements. Children that are strings become text, never markup.

function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function drawing(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

// A bar from the middle, to the right above 0 and to the left below.
function divergingBar(value, scale) {
  const fill = element("span", { class: value > 0 ? "fill above" : "fill below" });
  fill.style.width = 50 * strength(value, scale) + "%";
  return element("span", { class: "bar diverging", "aria-hidden": "true" }, fill);
}

function shareBar(share) {
  const fill = element("span", { class: "fill" });
  fill.style.width = 100 * (Number(share) || 0) + "%";
  return element("span", { class: "bar", "aria-hidden": "true" }, fill);
}

// 0 for 0, and at least a visible trace of anything else.
function strength(value, scale) {
  const size = Math.abs(value);
  if (!(size > 0)) return 0;
  return Math.max(0.08, Math.min(1, size / scale));
}

function label(node, text) {
  node.setAttribute("aria-label", text);
  return node;
}

function empty(node) {
  node.replaceChildren();
  return node;
}
