// The whole batch: what kinds of prompts, what each estimator throws away, how far they agree.

const KINDS = {
  mixed: "better and worse responses",
  right: "all right",
  wrong: "all wrong",
  same: "all the same",
  single: "one response only",
};

function showOverview(step) {
  showKinds(step);
  byId("lessons").replaceChildren(...lessons(step).map((text) => write(element("p"), text)));
  showEstimators(step);
  byId("agreement").hidden = step.estimators.length < 2;
  const names = step.estimators.map((each) => each.name);
  showMatrix(byId("rank"), names, step.rank, (rho) => digits(rho, 2), (rho) => (1 - rho) / 2);
  showMatrix(byId("sign"), names, step.sign, percent, (share) => share);
}

function showKinds(step) {
  const present = Object.keys(KINDS).filter((kind) => step.kinds[kind] > 0);
  const segments = present.map((kind) => {
    const segment = element(
      "div",
      { class: "kind " + kind },
      element("strong", {}, count(step.kinds[kind], "prompt")),
      element("span", {}, KINDS[kind]),
    );
    segment.style.flexGrow = step.kinds[kind];
    return segment;
  });
  const total = step.counts.prompts;
  const said = present.map((kind) => `${step.kinds[kind]} ${KINDS[kind]}`).join(", ");
  label(byId("kinds"), `${count(total, "prompt")}: ${said}`).setAttribute("role", "group");
  byId("kinds").replaceChildren(...segments);
}

function lessons(step) {
  return [
    ...aboutGroups(step),
    aboutSigns(step),
    step.counts.left_out > 0 &&
      `${count(step.counts.left_out, "response has", "responses have")} a reward that is not a finite number, or no ` +
        "token that the policy wrote. Estimators leave them out: their advantages are 0.",
    !step.exact &&
      "The file holds texts without their tokens. They were split at words, so lengths and places are approximate.",
    ...step.estimators
      .filter((each) => each.odd > 0)
      .map((each) => `${each.name} returned ${count(each.odd, "number")} that are not finite: look at its inputs.`),
    ...notRun(step),
    ...step.notes,
  ].filter(Boolean);
}

// Those that lack the same are named together.
function notRun(step) {
  const names = new Map();
  for (const [name, reason] of step.not_run) names.set(reason, [...(names.get(reason) ?? []), name]);
  return Array.from(names, ([reason, those]) => `${listed(those)} could not run: ${reason}`);
}

function aboutGroups(step) {
  const { right, wrong, same, mixed } = step.kinds;
  const alike = right + wrong + same;
  if (alike === 0) {
    const every = "Every prompt with several responses got better and worse ones: each can teach something.";
    return mixed > 0 ? [every] : ["Each prompt has one response only: there is nothing to compare it with in its group."];
  }
  const kinds = ["right", "wrong", "same"].filter((kind) => step.kinds[kind] > 0);
  const split = kinds.map((kind) => `${step.kinds[kind]} ${KINDS[kind]}`);
  const text =
    `${alike} of ${count(step.counts.prompts, "prompt")} got the same reward for all their responses ` +
    `(${listed(split)}). None of these responses is better than its group’s mean, so every estimator that compares within ` +
    "a group gives all of them 0: there is nothing to learn from them, however right or wrong they are.";
  return [text, whoGivesZero(step, alike), whatRightMeans(right + wrong)];
}

function whoGivesZero(step, alike) {
  const silent = step.estimators.filter((each) => each.quiet_zero === alike).map((each) => each.name);
  const others = step.estimators.filter((each) => each.quiet_zero < alike).map((each) => each.name);
  if (silent.length === 0) return `Here all estimators compare with something else, and give them a number.`;
  const zero = `Here ${listed(silent)} ${silent.length === 1 ? "gives" : "give"} 0 to all of them`;
  if (others.length === 0) return zero + ".";
  const verbs = others.length === 1 ? "does not: it compares" : "do not: they compare";
  return `${zero}; ${listed(others)} ${verbs} with something other than the group.`;
}

function whatRightMeans(number) {
  return number > 0 && "All right: each response has the batch’s highest reward. All wrong: each has the lowest.";
}

function aboutSigns(step) {
  let most = { share: 0 };
  step.sign.forEach((row, i) =>
    row.forEach((share, j) => {
      if (i < j && Number(share) > most.share) most = { share: Number(share), i, j };
    }),
  );
  if (most.share === 0) return null;
  const [first, second] = [step.estimators[most.i].name, step.estimators[most.j].name];
  return `${first} and ${second} disagree most: one praises and the other blames ${percent(most.share)} of the responses.`;
}

const COLUMNS = [
  ["Tokens at zero", (each) => shareCell(each.zero_tokens)],
  ["Responses at zero", (each) => shareCell(each.zero_responses)],
  ["Tokens above zero", (each) => shareCell(each.positive)],
  ["Prompts with signal", (each, step) => figure(`${each.prompts} of ${step.counts.prompts}`)],
  ["Largest prompt", (each) => shareCell(each.largest)],
  ["Spread", (each) => figure(digits(each.spread, 3))],
  ["Left out", (each) => figure(String(each.excluded))],
];

function showEstimators(step) {
  const heads = ["Estimator", ...COLUMNS.map(([name]) => name)].map((name) => element("th", { scope: "col" }, name));
  const rows = step.estimators.map((each) =>
    element("tr", {}, write(element("th", { scope: "row" }), each.name), ...COLUMNS.map(([, cell]) => cell(each, step))),
  );
  byId("estimators").replaceChildren(
    element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...rows),
  );
  byId("estimators-note").textContent =
    "At zero: the update leaves it as it is. Largest prompt: the share of the signal that one prompt carries. Spread: the " +
    "standard deviation of the tokens’ advantages. Each estimator has its own unit, so compare signs, order and shares.";
}

function figure(text) {
  return element("td", { class: "figure" }, text);
}

function shareCell(share) {
  return element("td", { class: "share" }, shareBar(share), element("span", { class: "number" }, percent(share)));
}

function showMatrix(table, names, numbers, shown, difference) {
  const head = element("tr", {}, element("td"), ...names.map((name) => turned(name)));
  const rows = names.map((name, i) => {
    const cells = names.map((_, j) => matrixCell(numbers[i][j], i === j, shown, difference));
    return element("tr", {}, write(element("th", { scope: "row" }), name), ...cells);
  });
  table.replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

function turned(name) {
  return element("th", { scope: "col" }, write(element("span", { class: "turned" }), name));
}

function matrixCell(value, isItself, shown, difference) {
  if (isItself) return element("td", { class: "itself" });
  const number = Number(value);
  const cell = element("td", {}, Number.isNaN(number) ? "–" : shown(number));
  cell.style.setProperty("--w", 40 * (difference(number) || 0) + "%");
  return cell;
}
