// Texts of rollouts, written so that nothing in them is code and nothing in them is invisible.

// Controls, format characters (direction, joiners), half surrogates, private use, unassigned; line and paragraph
// separators; spaces other than the space; fillers that look like nothing.
const HIDDEN = /[\p{C}\p{Zl}\p{Zp}\u00a0\u034f\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200a\u202f\u205f\u2800\u3000\u3164\uffa0]/u;
const PARTS = new RegExp(`(\\n|\\t| +|${HIDDEN.source})`, "u");

function escaped(character) {
  const code = character.codePointAt(0);
  const named = { 0: "\\0", 13: "\\r" }[code];
  if (named) return named;
  const hex = code.toString(16);
  if (code < 256) return "\\x" + hex.padStart(2, "0");
  return code < 65536 ? "\\u" + hex.padStart(4, "0") : `\\u{${hex}}`;
}

// For attributes and labels: plain text, what is hidden escaped.
function plain(text) {
  return Array.from(text, (c) => (c !== "\n" && c !== "\t" && HIDDEN.test(c) ? escaped(c) : c)).join("");
}

// For prose: hidden characters as small labels, spaces as they are.
function write(node, text) {
  node.append(...parts(text).map((part) => (isHidden(part) ? chip(part) : part)));
  return node;
}

// For tokens: spaces, tabs and line ends can be seen, too. The text under the marks stays what it was.
function writeToken(node, text) {
  if (text === "") node.append(element("span", { class: "empty" }));
  for (const part of parts(text)) {
    if (part === "\n") node.append(element("span", { class: "newline" }, part));
    else if (part === "\t") node.append(element("span", { class: "tab" }, part));
    else if (part[0] === " ") node.append(element("span", { class: "space" }, part));
    else node.append(isHidden(part) ? chip(part) : part);
  }
}

function parts(text) {
  return text.split(PARTS).filter((part) => part !== "");
}

function isHidden(part) {
  return part !== "\n" && part !== "\t" && HIDDEN.test(part);
}

function chip(character) {
  return element("span", { class: "escape" }, escaped(character));
}

// How a token is read aloud.
function spoken(text) {
  if (text === "") return "empty";
  const said = plain(text).replaceAll("\n", " line end ").replaceAll("\t", " tab ").trim();
  return said === "" ? "space" : said;
}
