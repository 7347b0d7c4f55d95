// What is chosen now, and what has to be drawn again when it changes.

const data = JSON.parse(byId("data").textContent);
const state = { step: null, response: null, estimator: 0, hovered: null, focused: null };

function chooseStep(index) {
  const name = state.step?.estimators[state.estimator]?.name;
  state.step = data.steps[index];
  state.response = undefined; // neither one nor none
  state.estimator = Math.max(0, state.step.estimators.findIndex((each) => each.name === name));
  showSource(state.step);
  showOverview(state.step);
  showPrompts(state.step, showOnlyPrompt);
  showResponses(state.step);
  chooseResponse(firstToRead(state.step));
  revealChosen();
}

// The one that shows most: praise and blame within one response, turns, estimators that disagree, some length.
function firstToRead(step) {
  const parted = (row) => typeof row === "string" || row.length > 2;
  const interest = (response) =>
    (3 * response.inner + 2 * parted(response.mask) + (Number(response.split) > 0) + response.counts) *
    Math.min(1, response.tokens / 20);
  const best = (found, response) => (found === null || interest(response) > interest(found) ? response : found);
  return table.rows.reduce(best, null);
}

function showSource(step) {
  const { responses, prompts, tokens } = step.counts;
  const facts = [step.source, step.step === null ? null : `step ${step.step}`];
  facts.push(`${count(responses, "response")} to ${count(prompts, "prompt")}`, count(tokens, "token"));
  write(empty(byId("source")), facts.filter(Boolean).join(" · "));
}

function chooseResponse(response) {
  if (response === state.response) return;
  state.response = response;
  markChosen();
  byId("about").closest("section").hidden = response === null;
  if (response === null) return;
  response.rows ??= decodeResponse(response);
  showAbout(state.step, response);
  showTracks(state.step, response, { estimator: chooseEstimator, hover: hoverToken, token: focusToken });
  showTokens(response);
  state.hovered = state.focused = null;
  chooseEstimator(state.estimator);
  byId("previous").disabled = neighbour(-1) === null;
  byId("next").disabled = neighbour(1) === null;
}

function decodeResponse(response) {
  return {
    mask: decode(response.mask),
    rewards: decode(response.rewards),
    values: response.values === undefined ? null : decode(response.values),
    advantages: response.advantages.map(decode),
  };
}

function chooseEstimator(index) {
  state.estimator = index;
  const { step, response } = state;
  if (step.estimators.length === 0) return;
  colourTokens(response.rows.advantages[index], Number(step.estimators[index].token_scale), response.rows.mask);
  showVerdict(step, response, index);
  showLegend(step, index, response);
  for (const cell of byId("table").tHead.rows[0].cells) {
    cell.classList.toggle("current", cell.dataset.key === String(index));
  }
  showToken();
}

function hoverToken(token) {
  state.hovered = token;
  showToken();
}

// A token is focused: by keyboard, by a click on it, or on its place in a line.
function onTokenFocus(token) {
  state.focused = token;
  if (token !== null) {
    const facts = factsOf(state.step, state.response, state.estimator, token);
    label(view.spans[token], [spoken(state.response.pieces[token]), ...facts].join(", "));
  }
  showToken();
}

function showToken() {
  const token = state.hovered ?? state.focused;
  showTokenInTracks(token, state.response.pieces.length);
  pointAt(token);
  showTip(state.step, state.response, state.estimator, token);
}

function goTo(offset) {
  const response = neighbour(offset);
  if (response === null) return;
  const inTokens = byId("tokens").contains(document.activeElement);
  chooseResponse(response);
  revealChosen();
  if (inTokens) focusToken(0);
}

function chooseTheme(event) {
  const { value } = event.target;
  document.documentElement.style.colorScheme = value === "system" ? "" : value;
}

function setUp() {
  write(byId("title"), data.title);
  for (const input of document.querySelectorAll("input[name=theme]")) input.addEventListener("change", chooseTheme);
  byId("previous").addEventListener("click", () => goTo(-1));
  byId("next").addEventListener("click", () => goTo(1));
  setUpResponses(chooseResponse, () => focusToken(view.focused ?? 0));
  setUpTokens({ hover: hoverToken, token: onTokenFocus, response: goTo, moved: showToken });
  const choice = byId("step");
  data.steps.forEach((step, i) => choice.append(element("option", { value: i }, nameOfStep(step, i))));
  choice.addEventListener("change", () => chooseStep(Number(choice.value)));
  byId("step-choice").hidden = data.steps.length < 2;
  byId("main").hidden = false;
  chooseStep(0);
  byId("waiting").remove();
}

function nameOfStep(step, i) {
  return step.step === null ? `${i + 1}: ${plain(step.source)}` : String(step.step);
}

setUp();
