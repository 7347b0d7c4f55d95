// The tokens of one response, coloured by their advantage, walked through by keyboard.

const MANY_REWARDS = 12; // more labels than this would hide the text

// `spans[i]` is token i's element; `actions`: hover(token or null), token(token or null), response(offset), moved().
const view = { spans: [], focused: null, actions: null };

function setUpTokens(actions) {
  view.actions = actions;
  const box = byId("tokens");
  box.addEventListener("keydown", walkTokens);
  box.addEventListener("pointerover", (event) => actions.hover(indexOf(event.target)));
  box.addEventListener("pointerleave", () => actions.hover(null));
  box.addEventListener("click", (event) => {
    const token = indexOf(event.target);
    if (token !== null) focusToken(token);
  });
  box.addEventListener("focusin", (event) => actions.token(indexOf(event.target)));
  box.addEventListener("focusout", () => actions.token(null));
  box.addEventListener("scroll", actions.moved, { passive: true });
}

function indexOf(target) {
  const span = target.closest(".token");
  return span ? Number(span.dataset.i) : null;
}

function showTokens(response) {
  const labelled = rewardsWithLabels(response.rows.rewards);
  view.spans = response.pieces.map((piece, i) => tokenSpan(piece, i, response, labelled));
  view.focused = null;
  const several = stretches(response).some((stretch) => !stretch.own);
  let turn = 0;
  const blocks = stretches(response).map((stretch) => {
    if (stretch.own && !stretch.afterCut) turn++;
    return block(stretch, turn, several, response);
  });
  if (response.pieces.length === 0) blocks.push(element("p", { class: "note" }, "This response has no tokens."));
  byId("tokens").replaceChildren(...blocks);
  if (view.spans.length > 0) view.spans[0].tabIndex = 0;
}

function block(stretch, turn, several, response) {
  const name = stretch.own ? `turn ${turn}, written by the policy` : "not written by the policy: no advantage";
  const box = element("div", { class: stretch.own ? "turn" : "turn foreign", role: "group", "aria-label": name });
  if (stretch.afterCut) {
    box.append(element("div", { class: "cut-note" }, `${count(response.cut[1], "token")} left out of this page`));
  }
  if (several) box.append(element("div", { class: "turn-name", "aria-hidden": "true" }, name));
  box.append(...view.spans.slice(stretch.from, stretch.to));
  return box;
}

function tokenSpan(piece, i, response, labelled) {
  const span = element("span", { class: "token", role: "option", "aria-selected": "false", tabindex: -1, "data-i": i });
  const reward = response.rows.rewards[i];
  writeToken(span, piece);
  if (reward !== 0) span.classList.add("rewarded");
  if (labelled.has(i)) {
    const tag = element("span", { class: "reward-tag", "aria-hidden": "true" }, "reward " + signed(reward, 3));
    const end = span.lastChild?.className === "newline" ? span.lastChild : null;
    span.insertBefore(tag, end);
  }
  return span;
}

// All of them if they are few, else the largest.
function rewardsWithLabels(rewards) {
  const places = Array.from(rewards.keys()).filter((i) => rewards[i] !== 0);
  if (places.length <= MANY_REWARDS) return new Set(places);
  const size = (i) => (Number.isFinite(rewards[i]) ? Math.abs(rewards[i]) : Infinity);
  const least = Math.max(...places.map(size)) / 2;
  const large = places.filter((i) => size(i) >= least);
  return new Set(large.length <= MANY_REWARDS ? large : []);
}

function colourTokens(row, scale, mask) {
  view.spans.forEach((span, i) => {
    const value = row[i];
    span.classList.toggle("above", value > 0);
    span.classList.toggle("below", value < 0);
    span.classList.toggle("odd", Number.isNaN(value) && mask[i] > 0);
    span.style.setProperty("--w", (100 * strength(value, scale)).toFixed(1) + "%");
  });
}

function pointAt(token) {
  byId("tokens").querySelector(".pointed")?.classList.remove("pointed");
  view.spans[token]?.classList.add("pointed");
}

function focusToken(token) {
  const span = view.spans[token];
  if (!span) return;
  if (view.focused !== null) {
    view.spans[view.focused].tabIndex = -1;
    view.spans[view.focused].setAttribute("aria-selected", "false");
  } else view.spans[0].tabIndex = -1;
  view.focused = token;
  span.tabIndex = 0;
  span.setAttribute("aria-selected", "true");
  span.focus();
  view.actions.token(token); // a window without the focus tells of none
}

function walkTokens(event) {
  const here = indexOf(event.target);
  if (here === null || event.ctrlKey || event.metaKey || event.altKey) return;
  const { key } = event;
  const last = view.spans.length - 1;
  const offset = { PageUp: -1, PageDown: 1 }[key];
  if (key === "Escape") byId("tip").hidden = true;
  else if (offset) view.actions.response(offset);
  else if (key === "ArrowUp" || key === "ArrowDown") focusToken(onNextLine(here, key === "ArrowUp" ? -1 : 1));
  else {
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: last }[key];
    if (to === undefined) return;
    focusToken(Math.max(0, Math.min(last, to)));
  }
  event.preventDefault();
}

// A token may be broken over lines: its first part.
function placeOnScreen(token) {
  return view.spans[token].getClientRects()[0] ?? view.spans[token].getBoundingClientRect();
}

// The token above or below, by where it stands on the screen.
function onNextLine(here, direction) {
  const start = placeOnScreen(here);
  const centre = start.left + start.width / 2;
  let [best, line] = [here, null];
  for (let i = here + direction; i >= 0 && i < view.spans.length; i += direction) {
    const rect = placeOnScreen(i);
    if (Math.abs(rect.top - start.top) < rect.height / 2) continue;
    line ??= rect.top;
    if (Math.abs(rect.top - line) >= rect.height / 2) break;
    const distance = (rectangle) => Math.abs(rectangle.left + rectangle.width / 2 - centre);
    if (best === here || distance(rect) < distance(placeOnScreen(best))) best = i;
  }
  return best;
}
