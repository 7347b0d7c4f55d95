// The table of responses: sorted, filtered, walked through by keyboard; a row is built when it is needed.

const ROWS_AT_ONCE = 60;

// What a step's table shows now; `chosen` is a response or null.
const table = { step: null, rows: [], shown: 0, sort: { key: "prompt", down: false }, prompt: null, onChoose: null };

function setUpResponses(onChoose, onEnter) {
  table.onChoose = onChoose;
  table.onEnter = onEnter;
  byId("find").addEventListener("input", refilter);
  byId("split").addEventListener("change", refilter);
  byId("find").form.addEventListener("submit", (event) => event.preventDefault());
  byId("any-prompt").addEventListener("click", () => showOnlyPrompt(null));
  byId("table").addEventListener("keydown", walkRows);
  byId("table").addEventListener("click", (event) => {
    const row = event.target.closest("tbody tr");
    if (!row) return;
    table.onChoose(table.rows[row.sectionRowIndex]); // a window without the focus tells of none
    row.focus();
  });
  byId("table").addEventListener("focusin", (event) => {
    const row = event.target.closest("tbody tr");
    if (row) table.onChoose(table.rows[row.sectionRowIndex]);
  });
  byId("responses-scroll").addEventListener("scroll", growWhenNeeded, { passive: true });
}

function showResponses(step) {
  table.step = step;
  table.prompt = null;
  if (table.sort.key >= step.estimators.length) table.sort = { key: "prompt", down: false };
  byId("any-prompt").hidden = true;
  byId("find").value = "";
  byId("split").checked = false;
  byId("split").disabled = step.estimators.length < 2;
  byId("table").replaceChildren(tableHead(step), element("tbody"));
  refilter();
  byId("left-out").textContent = whatIsLeftOut(step);
}

function whatIsLeftOut(step) {
  const { limits, steps } = data;
  const missing = step.counts.responses - step.responses.length;
  const isCut = step.responses.some((response) => response.cut[1] > 0);
  return [
    missing > 0 &&
      `This page holds ${step.responses.length} of ${count(step.counts.responses, "response")}, to stay small enough to ` +
        "open: whole prompts, those that carry most of the signal and those on which the estimators differ most, and an " +
        "example of each kind without signal. The numbers of the overview are of all responses.",
    isCut &&
      `Of responses longer than ${count(limits.tokens, "token")} it holds the beginning and the end; means, rewards and ` +
        "lengths are of the whole.",
    limits.steps > steps.length &&
      `It holds ${steps.length} of ${count(limits.steps, "step")}, evenly spaced, the first and the last among them.`,
  ].filter(Boolean).join(" ");
}

function columns(step) {
  const names = [["row", "No."], ["prompt", "Prompt"], ["text", null], ["tokens", "Tokens"], ["score", "Reward"]];
  return [...names, ...step.estimators.map((each, i) => [i, each.name])];
}

function tableHead(step) {
  const cells = columns(step).map(([key, name]) => {
    if (name === null) return element("th", { scope: "col" }, "Text");
    const button = write(element("button", { type: "button" }), name);
    button.addEventListener("click", () => sortBy(key));
    return element("th", { scope: "col", "data-key": key, class: typeof key === "number" ? "adv" : null }, button);
  });
  return element("thead", {}, element("tr", {}, ...cells));
}

function sortBy(key) {
  const numbers = key !== "prompt" && key !== "row"; // the largest first
  table.sort = { key, down: table.sort.key === key ? !table.sort.down : numbers };
  refilter();
}

function sortValue(response, key) {
  if (typeof key === "number") return Number(response.means[key]);
  return Number(response[key]);
}

function inOrder(responses) {
  const { key, down } = table.sort;
  const compare = (a, b) => {
    const [x, y] = [sortValue(a, key), sortValue(b, key)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // last, either way
    return (down ? y - x : x - y) || a.prompt - b.prompt || a.row - b.row;
  };
  return [...responses].sort(compare);
}

function refilter() {
  const { step } = table;
  const wanted = byId("find").value.trim().toLocaleLowerCase("en");
  const split = byId("split").checked;
  const kept = step.responses.filter(
    (response) =>
      (table.prompt === null || response.prompt === table.prompt) &&
      (!split || Number(response.split) > 0) &&
      (wanted === "" || searchText(step, response).includes(wanted)),
  );
  table.rows = inOrder(kept);
  table.shown = 0;
  byId("table").tBodies[0].replaceChildren();
  for (const cell of byId("table").tHead.rows[0].cells) {
    const sorted = cell.dataset.key === String(table.sort.key);
    if (sorted) cell.setAttribute("aria-sort", table.sort.down ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  }
  grow();
  byId("table").setAttribute("aria-rowcount", String(table.rows.length + 1));
  byId("found").textContent = `${table.rows.length} of ${count(step.responses.length, "response")}`;
  markChosen();
}

function searchText(step, response) {
  response.search ??= ((promptOf(step, response)?.text ?? "") + "\n" + response.pieces.join("")).toLocaleLowerCase("en");
  return response.search;
}

function promptOf(step, response) {
  return step.prompts.find((prompt) => prompt.id === response.prompt);
}

function showOnlyPrompt(id) {
  table.prompt = id;
  const button = byId("any-prompt");
  button.hidden = id === null;
  if (id !== null) button.textContent = `Only prompt ${id + 1}: show all`;
  refilter();
  if (table.rows.length > 0 && id !== null) byId("table").tBodies[0].rows[0].focus();
}

function grow() {
  const next = table.rows.slice(table.shown, table.shown + ROWS_AT_ONCE);
  const body = byId("table").tBodies[0];
  body.append(...next.map((response, i) => tableRow(response, table.shown + i)));
  table.shown += next.length;
}

function growWhenNeeded() {
  const box = byId("responses-scroll");
  const near = box.scrollTop + 2 * box.clientHeight > box.scrollHeight;
  if (near && table.shown < table.rows.length) {
    grow();
    markChosen();
  }
}

function tableRow(response, index) {
  const { step } = table;
  const again = table.rows[index - 1]?.prompt === response.prompt && table.sort.key === "prompt";
  const prompt = element("span", { class: "clamp" }, element("span", { class: "muted" }, `${response.prompt + 1}  `));
  const text = promptOf(step, response)?.text;
  if (!again && text) write(prompt, ends(text, 90, 60));
  return element(
    "tr",
    { tabindex: -1, class: again ? null : "first", "data-row": response.row, "aria-rowindex": index + 2 },
    element("th", { scope: "row", class: "figure" }, String(response.row + 1)),
    element("td", { class: "prompt" }, prompt),
    element("td", { class: "text" }, snippet(response), ...badges(response)),
    element("td", { class: "figure" }, response.tokens.toLocaleString("en")),
    element("td", { class: "figure reward-cell" }, digits(response.score, 3)),
    ...response.means.map((mean, i) => advantageCell(Number(mean), Number(step.estimators[i].response_scale))),
  );
}

function advantageCell(mean, scale) {
  return element(
    "td",
    { class: "adv" },
    element("span", { class: mean === 0 ? "number zero" : "number" }, signed(mean, 3)),
    divergingBar(mean, scale),
  );
}

function snippet(response) {
  return write(element("span", { class: "clamp" }), ends(response.pieces.join(""), 60, 90));
}

function ends(text, head, tail) {
  return text.length <= head + tail + 3 ? text : text.slice(0, head) + " … " + text.slice(-tail);
}

function badges(response) {
  const words = [
    !response.counts && "left out",
    response.truncated && "cut off",
    Number(response.split) > 0 && "estimators disagree",
  ];
  return words.filter(Boolean).map((word) => element("span", { class: "badge" }, word));
}

function markChosen() {
  const body = byId("table").tBodies[0];
  let reachable = null;
  for (const row of body.rows) {
    const chosen = table.rows[row.sectionRowIndex] === state.response;
    row.setAttribute("aria-selected", String(chosen));
    row.tabIndex = -1;
    if (chosen) reachable = row;
  }
  reachable ??= body.rows[0];
  if (reachable) reachable.tabIndex = 0;
}

// Scrolls the table alone; the page stays where it is.
function revealChosen() {
  const index = table.rows.indexOf(state.response);
  while (table.shown <= index) grow();
  markChosen();
  const row = byId("table").tBodies[0].rows[index];
  const box = byId("responses-scroll");
  if (!row) return;
  const head = byId("table").tHead.offsetHeight;
  const above = row.offsetTop - head < box.scrollTop;
  const below = row.offsetTop + row.offsetHeight > box.scrollTop + box.clientHeight;
  if (above || below) box.scrollTop = startOfPrompt(row).offsetTop - head;
}

// The row itself, if its prompt begins far above.
function startOfPrompt(row) {
  let first = row;
  while (!first.classList.contains("first") && row.sectionRowIndex - first.sectionRowIndex < 4) {
    first = first.previousElementSibling ?? row;
  }
  return first.classList.contains("first") ? first : row;
}

function walkRows(event) {
  const row = event.target.closest("tbody tr");
  if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
  const last = table.rows.length - 1;
  const here = row.sectionRowIndex;
  const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: last, PageDown: here + 8, PageUp: here - 8 }[event.key];
  if (event.key === "Enter") table.onEnter();
  else if (to === undefined) return;
  else focusRow(Math.max(0, Math.min(last, to)));
  event.preventDefault();
}

function focusRow(index) {
  while (table.shown <= index && table.shown < table.rows.length) grow();
  const row = byId("table").tBodies[0].rows[index];
  row.focus();
  row.scrollIntoView({ block: "nearest" });
}

// The response before or after the chosen one, in the table's order.
function neighbour(offset) {
  const here = table.rows.indexOf(state.response);
  return table.rows[here + offset] ?? null;
}
