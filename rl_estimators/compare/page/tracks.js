// One line an estimator over the tokens of a response: the same text, another credit. Choosing a line colours the text.

const HEIGHT = 24;

// `response.rows` are its decoded numbers, see page.js. `actions`: estimator(i), hover(token or null), token(token).
function showTracks(step, response, actions) {
  const lines = [];
  const { rewards, values } = response.rows;
  if (rewards.some((r) => r !== 0)) lines.push(plainTrack("reward", rewardPlot(rewards), rewards, signed, "sum " + digits(response.score, 3)));
  if (values) lines.push(plainTrack("critic’s value", valuePlot(values, response), values, digits, ""));
  step.estimators.forEach((each, i) => lines.push(estimatorTrack(each, i, response, actions)));
  byId("tracks").replaceChildren(...lines);
  for (const plot of byId("tracks").querySelectorAll(".plot")) followPointer(plot, response.pieces.length, actions);
}

function followPointer(plot, length, actions) {
  const at = (event) => {
    const box = plot.getBoundingClientRect();
    return Math.max(0, Math.min(length - 1, Math.floor(((event.clientX - box.left) / box.width) * length)));
  };
  if (length === 0) return;
  plot.addEventListener("pointermove", (event) => actions.hover(at(event)));
  plot.addEventListener("pointerleave", () => actions.hover(null));
  plot.addEventListener("click", (event) => actions.token(at(event)));
}

function plainTrack(name, plot, row, shown, otherwise) {
  const number = element("span", { class: "number" });
  const line = element("div", { class: "track" }, element("span", { class: "name" }, name), plot, number);
  line.showToken = (token) => (number.textContent = token === null ? otherwise : shown(row[token], 4));
  line.showToken(null);
  return line;
}

function estimatorTrack(each, i, response, actions) {
  const input = element("input", { type: "radio", name: "estimator", value: i });
  input.checked = i === state.estimator;
  input.addEventListener("change", () => actions.estimator(i));
  const number = element("span", { class: "number" });
  const row = response.rows.advantages[i];
  const plot = advantagePlot(row, Number(each.token_scale), response);
  const name = element("span", { class: "name" }, input, write(element("span", {}), each.name));
  const line = element("label", { class: "track choice" }, name, plot, number);
  line.showToken = (token) => {
    const text = token === null ? "mean " + signed(response.means[i], 3) : signed(row[token], 4);
    number.textContent = token !== null && !response.rows.mask[token] ? "none" : text;
  };
  line.showToken(null);
  return line;
}

function plotOf(length, ...shapes) {
  const box = { viewBox: `0 0 ${Math.max(length, 1)} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" };
  return element("span", { class: "plot" }, drawing("svg", box, ...shapes));
}

function advantagePlot(row, scale, response) {
  const middle = HEIGHT / 2;
  const height = (a) => strength(a, scale) * (middle - 1);
  const above = columnsPath(row, (a) => a > 0, (a) => [middle - height(a), middle]);
  const below = columnsPath(row, (a) => a < 0, (a) => [middle, middle + height(a)]);
  return plotOf(
    row.length,
    ...holes(response),
    drawing("path", { class: "above", d: above }),
    drawing("path", { class: "below", d: below }),
    drawing("path", { class: "axis", d: `M0 ${middle}H${row.length}` }),
    ...borders(response),
  );
}

// Neighbours of one height are one rectangle: fewer shapes, no seams.
function columnsPath(row, wanted, edges) {
  let path = "";
  for (let i = 0, j; i < row.length; i = j) {
    for (j = i + 1; j < row.length && row[j] === row[i]; ) j++;
    if (!wanted(row[i])) continue;
    const [top, bottom] = edges(row[i]);
    path += `M${i} ${top.toFixed(2)}H${j}V${bottom.toFixed(2)}H${i}Z`;
  }
  return path;
}

function rewardPlot(rewards) {
  const largest = Math.max(...Array.from(rewards, (r) => (Number.isFinite(r) ? Math.abs(r) : 0)));
  const width = Math.max(1, rewards.length / 200); // one token of many would be a hair
  let path = "";
  rewards.forEach((r, i) => {
    if (r === 0) return;
    const size = Number.isFinite(r) ? strength(r, largest) * (HEIGHT / 2 - 1) : HEIGHT / 2 - 1;
    const left = Math.min(i, rewards.length - width);
    path += `M${left} ${HEIGHT / 2}h${width}v${r < 0 ? size : -size}h${-width}Z`;
  });
  const axis = drawing("path", { class: "axis", d: `M0 ${HEIGHT / 2}H${rewards.length}` });
  return plotOf(rewards.length, axis, drawing("path", { class: "reward-mark", d: path }));
}

function valuePlot(values, response) {
  const known = Array.from(values).filter((v, i) => response.rows.mask[i] && Number.isFinite(v));
  const [low, high] = [Math.min(0, ...known), Math.max(0, ...known)];
  const y = (v) => (HEIGHT - 2 - ((v - low) / (high - low || 1)) * (HEIGHT - 4)).toFixed(2);
  let path = "";
  values.forEach((v, i) => {
    if (!response.rows.mask[i] || !Number.isFinite(v)) return;
    path += path !== "" && response.rows.mask[i - 1] ? `V${y(v)}H${i + 1}` : `M${i} ${y(v)}H${i + 1}`;
  });
  const axis = drawing("path", { class: "axis", d: `M0 ${y(0)}H${values.length}` });
  return plotOf(values.length, ...holes(response), axis, drawing("path", { class: "line", d: path }), ...borders(response));
}

function holes(response) {
  return stretches(response)
    .filter((stretch) => !stretch.own)
    .map(({ from, to }) => drawing("rect", { class: "hole", x: from, y: 0, width: to - from, height: HEIGHT }));
}

function borders(response) {
  const lines = stretches(response).slice(1).map(({ from }) => drawing("path", { class: "border", d: `M${from} 0V${HEIGHT}` }));
  const [at, missing] = response.cut;
  if (missing > 0) lines.push(drawing("path", { class: "cut", d: `M${at} 0V${HEIGHT}` }));
  return lines;
}

// Runs of tokens that the policy wrote, and of those it did not; a place where tokens are left out ends a run.
function stretches(response) {
  return (response.stretches ??= findStretches(response));
}

function findStretches(response) {
  const { mask } = response.rows;
  const [at, missing] = response.cut;
  const found = [];
  for (let i = 0; i < mask.length; i++) {
    const last = found[found.length - 1];
    const own = mask[i] > 0;
    if (last && last.own === own && !(missing > 0 && i === at)) last.to = i + 1;
    else found.push({ from: i, to: i + 1, own, afterCut: missing > 0 && i === at });
  }
  return found;
}

function showTokenInTracks(token, length) {
  const box = byId("tracks");
  box.classList.toggle("reading", token !== null);
  if (token !== null) box.style.setProperty("--at", (100 * (token + 0.5)) / length + "%");
  for (const line of box.children) line.showToken(token);
}
