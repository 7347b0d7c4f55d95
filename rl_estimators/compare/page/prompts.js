// Which prompts carry the signal: one row a prompt, its scores as dots, its share under each estimator.

const FIRST_PROMPTS = 10;

function showPrompts(step, onChoose) {
  const head = ["Prompt", "Rewards", ...step.estimators.map((each) => each.name)];
  const body = element("tbody");
  byId("prompts").replaceChildren(
    element("thead", {}, element("tr", {}, ...head.map((name) => write(element("th", { scope: "col" }), name)))),
    body,
  );
  const top = Math.max(1e-9, ...step.prompts.flatMap((prompt) => prompt.shares.map(Number)));
  const range = scoreRange(step);
  const rows = (prompts) => prompts.map((prompt) => promptRow(prompt, step, top, range, onChoose));
  body.append(...rows(step.prompts.slice(0, FIRST_PROMPTS)));
  const rest = step.prompts.slice(FIRST_PROMPTS);
  const more = byId("prompts-more");
  more.replaceChildren();
  const missing = step.counts.prompts - step.prompts.length;
  const note = missing > 0 ? ` ${count(missing, "prompt")} that carry less are left out of this page.` : "";
  if (rest.length > 0) {
    const button = element("button", { type: "button" }, `Show ${rest.length} more`);
    button.addEventListener("click", () => {
      const added = rows(rest);
      body.append(...added);
      added[0].querySelector("button")?.focus();
      button.remove();
    });
    more.append(button);
  }
  more.append(element("span", { class: "note" }, note));
}

function promptRow(prompt, step, top, range, onChoose) {
  const name = `prompt ${prompt.id + 1}`;
  const shown = step.responses.some((response) => response.prompt === prompt.id);
  const number = shown ? element("button", { type: "button", class: "link" }, name) : element("span", {}, name);
  if (shown) number.addEventListener("click", () => onChoose(prompt.id));
  const text = element("div", { class: "clamp" });
  write(text, prompt.text ?? "The file has no prompt.");
  return element(
    "tr",
    {},
    element("th", { scope: "row", class: "prompt" }, number, text),
    element("td", {}, scoreDots(prompt, range), element("span", { class: "note kind-of" }, kindOf(prompt))),
    ...prompt.shares.map((share) => {
      const cell = shareCell(share);
      cell.querySelector(".fill").style.width = (100 * Number(share)) / top + "%";
      return cell;
    }),
  );
}

function kindOf(prompt) {
  return prompt.kind === "mixed" ? "" : KINDS[prompt.kind];
}

function scoreRange(step) {
  const scores = step.prompts.flatMap((prompt) => prompt.scores.map(Number)).filter(Number.isFinite);
  return [Math.min(...scores), Math.max(...scores)];
}

// One dot a response, the fuller the higher its reward within the batch.
function scoreDots(prompt, [low, high]) {
  const dots = prompt.scores.map((score) => {
    const dot = element("span", { class: Number.isFinite(Number(score)) ? "dot" : "dot odd" });
    const fullness = high > low ? (Number(score) - low) / (high - low) : 0;
    dot.style.setProperty("--w", 100 * (fullness || 0) + "%");
    return dot;
  });
  const more = prompt.size - dots.length;
  const said = `rewards ${prompt.scores.map((score) => digits(score, 3)).join(", ")}${more > 0 ? ` and ${more} more` : ""}`;
  const box = element("span", { class: "dots", role: "img", "aria-label": said, title: said }, ...dots);
  if (more > 0) box.append(`+${more}`);
  return box;
}
