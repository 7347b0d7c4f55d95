// What is said about the response and the token in words: verdict, legend, the numbers beside a token.

function showAbout(step, response) {
  const facts = [
    `Response ${response.row + 1} to prompt ${response.prompt + 1}`,
    `reward ${digits(response.score)}`,
    `${count(response.tokens, "token")} of its own`,
    response.truncated && "cut off",
    response.truncated === false && "finished",
    response.greedy !== undefined && `the greedy response’s reward ${digits(response.greedy)}`,
    ...(response.components ?? []).map(([name, part]) => `${name} ${digits(part)}`),
    !response.counts && "left out by the estimators",
  ];
  const items = facts.filter(Boolean).map((fact) => write(element("span", { class: "fact" }), fact));
  byId("about").replaceChildren(...items);
  const text = promptOf(step, response)?.text;
  byId("prompt").hidden = !text;
  write(empty(byId("prompt-text")), text ?? "");
}

function showVerdict(step, response, estimator) {
  const name = step.estimators[estimator].name;
  const own = Array.from(response.rows.advantages[estimator]).filter((_, i) => response.rows.mask[i]);
  write(empty(byId("verdict")), verdict(name, own, stretches(response), promptOf(step, response), response));
}

function verdict(name, own, runs, prompt, response) {
  if (own.length === 0) return "The policy wrote nothing here: there is no advantage to give.";
  const different = new Set(own);
  const turns = runs.filter((run) => run.own && !run.afterCut).length;
  if (different.size === 1) return sameForAll(name, own[0], prompt, response);
  const signs = [own.filter((a) => a > 0).length, own.filter((a) => a < 0).length];
  const split = `${signs[0]} above 0, ${signs[1]} below`;
  if (turns > 1 && different.size <= turns) {
    return `Under ${name} each turn has one number: ${different.size} for ${turns} turns (${split}). Credit goes to turns.`;
  }
  return `Under ${name} the ${own.length} tokens have ${different.size} different advantages (${split}): credit differs from token to token.`;
}

function sameForAll(name, advantage, prompt, response) {
  if (advantage !== 0) {
    const praised = advantage > 0 ? "praised" : "blamed";
    return (
      `Under ${name} every token has the same advantage, ${signed(advantage)}: the whole response is ${praised} alike, ` +
      "whichever of its tokens decided the reward."
    );
  }
  const zero = `Under ${name} every token has advantage 0: nothing is learnt from this response.`;
  if (!response.counts) return `${zero} Its reward is not a finite number, so it was left out.`;
  if (["right", "wrong", "same"].includes(prompt?.kind)) {
    return `${zero} All ${prompt.size} responses to its prompt have the reward ${digits(response.score)}, so none is better than their mean.`;
  }
  return zero;
}

function showLegend(step, estimator, response) {
  const each = step.estimators[estimator];
  const limit = Number(each.token_scale);
  const scale = element(
    "span",
    { class: "key" },
    element("span", {}, limit > 0 ? `less likely ≤ ${signed(-limit, 3)}` : "less likely"),
    element("span", { class: "ramp", "aria-hidden": "true" }),
    element("span", {}, limit > 0 ? `≥ ${signed(limit, 3)} more likely` : "more likely; here all are 0"),
  );
  const keys = [scale];
  const { rewards } = response.rows;
  if (rewards.some((r) => r !== 0)) keys.push(key("rewarded", "token", "a reward stands here"));
  if (stretches(response).some((run) => !run.own)) keys.push(key("foreign", "text", "not written by the policy"));
  keys.push(key("marks", "", "space, tab, line end"));
  response.hides ??= response.pieces.some((piece) => parts(piece).some(isHidden));
  if (response.hides) keys.push(key("", element("span", { class: "escape" }, "\\u202e"), "a character that cannot be seen"));
  byId("legend").replaceChildren(...keys);
  if (response.pieces.some((piece) => piece.includes("characters left out …]"))) {
    byId("legend").append(element("span", { class: "key" }, "long words are shortened"));
  }
}

function key(kind, sample, meaning) {
  const shown = element("span", { class: "sample " + kind, "aria-hidden": "true" }, sample);
  if (kind === "marks") {
    shown.append(...["space", "tab", "newline"].map((name) => element("span", { class: name }, name === "tab" ? "\t" : " ")));
  }
  return element("span", { class: "key" }, shown, element("span", {}, meaning));
}

// All numbers of one token, for the label that follows it and for screen readers.
function factsOf(step, response, estimator, token) {
  const { advantages, rewards, values, mask } = response.rows;
  const facts = [];
  const name = step.estimators[estimator]?.name;
  if (name !== undefined) {
    facts.push(mask[token] ? `${signed(advantages[estimator][token])} ${plain(name)}` : "no advantage: not written by the policy");
  }
  if (rewards[token] !== 0) facts.push(`reward ${signed(rewards[token])}`);
  if (values && mask[token]) facts.push(`value ${digits(values[token])}`);
  return facts;
}

function placeOf(response, token) {
  const [at, missing] = response.cut;
  const total = response.pieces.length + missing;
  return `token ${(token >= at ? token + missing : token) + 1} of ${total.toLocaleString("en")}`;
}

function showTip(step, response, estimator, token) {
  const tip = byId("tip");
  tip.hidden = token === null || !isInView(token);
  if (tip.hidden) return;
  const facts = factsOf(step, response, estimator, token);
  const [first, ...others] = facts;
  tip.replaceChildren(element("strong", {}, first ?? ""), ...[...others, placeOf(response, token)].map((fact) => element("span", {}, fact)));
  const rect = placeOnScreen(token);
  const left = Math.min(rect.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = rect.bottom + 6 + tip.offsetHeight < window.innerHeight;
  tip.style.left = Math.max(8, left) + window.scrollX + "px";
  tip.style.top = (below ? rect.bottom + 6 : rect.top - tip.offsetHeight - 6) + window.scrollY + "px";
}

// The tokens have a scrolling box of their own.
function isInView(token) {
  const [rect, box] = [placeOnScreen(token), byId("tokens").getBoundingClientRect()];
  return rect.bottom > box.top && rect.top < box.bottom;
}
