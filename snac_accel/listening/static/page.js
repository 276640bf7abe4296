// The page: what data.js says, put into the document; one player for all clips; the keyboard.
"use strict";

const COLUMNS = 900; // of pictures
const STEP_SECONDS = 1;
const KEYS = [["Space", "play or pause"], ["1 – 9", "hear a version"], ["← →", "back, forward"], ["↑ ↓", "clip before, after"], ["L", "loop"], ["A B X", "in the blind test"]];
const page = listening.page;
const $ = (id) => document.getElementById(id);

const state = { number: null, clip: null, model: 0, blind: null, choices: [], chosen: 0, strips: new Map() };
const context = new AudioContext();
const player = new Player(context);
player.onend = () => showPlaying();

const controls = {
  heading: element("h3", { id: "clip-name" }, "No clip chosen"),
  choices: element("fieldset", { class: "choices" }),
  play: element("button", { type: "button", id: "play", click: () => toggle() }, "▶ Play"),
  loop: element("input", { type: "checkbox", id: "loop", change: () => player.setLooping(controls.loop.checked) }),
  slider: element("input", { type: "range", id: "position", min: 0, max: 1, step: 0.01, value: 0, "aria-label": "position in the clip", input: () => seek(Number(controls.slider.value)) }),
  time: element("output", { id: "time", for: "position" }, "0:00.0 / 0:00.0"),
  save: element("button", { type: "button", id: "save", click: () => saveSound() }, "Save what is heard"),
  pictures: element("div", { class: "pictures" }),
  playhead: element("div", { class: "playhead", "aria-hidden": "true" }),
  tokens: element("div", { class: "tokens" }),
};
const clipTable = makeClipTable();
const blindPanel = element("div", { id: "blind", class: "panel" });

build();

function build() {
  document.title = page.title;
  $("title").textContent = page.title;
  $("subtitle").textContent = page.subtitle;
  if (page.notes.length) {
    $("notes").hidden = false;
    $("notes").append(...page.notes.map((note) => element("p", { class: "note" }, note)));
  }
  $("summary").append(...page.tables.map(summaryTable));
  if (page.curves.length) {
    $("curves").hidden = false;
    $("curves").append(element("div", { class: "figures" }, page.curves.map(curvesFigure)));
  }
  const facts = page.facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
  const keys = KEYS.flatMap(([key, what]) => [element("dt", {}, key), element("dd", {}, what)]);
  $("about").append(element("dl", {}, facts), element("h3", {}, "Keys"), element("dl", { class: "keys" }, keys));
  if (page.clips.length) buildListening();
  else $("listen").append(element("p", {}, "There are no clips on this page."));
  document.body.dataset.ready = "true";
}

function buildListening() {
  const transport = element("div", { class: "transport" }, controls.play, controls.slider, controls.time,
    element("label", {}, controls.loop, " loop"), controls.save);
  const seen = element("div", { class: "seen" }, controls.pictures, controls.tokens);
  $("listen").append(clipTable.element, blindPanel, element("div", { class: "panel", id: "player" }, controls.heading, controls.choices, transport, seen));
  showBlindSettings();
  document.addEventListener("keydown", onKey);
  requestAnimationFrame(follow);
  choose(0);
}

// The table of clips, with the metrics of one model.
function makeClipTable() {
  const holder = element("div", { id: "clips" });
  let order = page.clips.map((_, number) => number);
  let made = null;

  function fill() {
    const withSource = page.clips.some((clip) => clip.source);
    const withSpeaker = page.clips.some((clip) => clip.speaker);
    const withNote = page.clips.some((clip) => clip.note);
    const headers = ["clip", ...(withSource ? ["source"] : []), ...(withSpeaker ? ["speaker"] : []), "seconds", ...page.metrics.map(metricName), ...(withNote ? ["why it is here"] : [])];
    const rows = page.clips.map((clip, number) => [
      { text: clip.name, content: element("button", { type: "button", class: "clip", click: () => choose(number) }, clip.name) },
      ...(withSource ? [{ text: clip.source }] : []),
      ...(withSpeaker ? [{ text: clip.speaker }] : []),
      { text: clip.seconds.toFixed(1), value: clip.seconds },
      ...page.metrics.map((metric) => valueCell(fullSound(clip, state.model), clip, metric)),
      ...(withNote ? [{ text: clip.note }] : []),
    ]);
    made = sortableTable("Clips", headers, rows);
    const select = page.models.length < 2 ? null : element("label", {}, "values of ", element("select", { id: "model", change: (event) => { state.model = Number(event.target.value); fill(); mark(); } },
      page.models.map((model, number) => element("option", { value: number, selected: number === state.model }, model.label))));
    holder.replaceChildren(...[select, made.wrapper].filter(Boolean));
  }

  function mark() {
    for (const { row, place } of made.rows) {
      const current = place === state.number;
      row.classList.toggle("current", current);
      const button = row.querySelector("button");
      if (current) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  function neighbour(step) {
    order = made.order();
    return order[order.indexOf(state.number) + step];
  }

  fill();
  return { element: holder, mark, neighbour };
}

function metricName({ label, unit, better }) {
  return `${label}${unit ? ` (${unit})` : ""} ${better === "lower" ? "↓" : "↑"}`;
}

function fullSound(clip, model) {
  return clip.sounds.find((sound) => sound.model === model && sound.is_full);
}

function valueCell(sound, clip, metric) {
  const value = sound && clip.values[sound.key] ? clip.values[sound.key][metric.name] : null;
  return value === null || value === undefined ? { text: "–", value: null } : { text: round(value), value };
}

// Load a clip and show it; a later choice overtakes an earlier one that is still being decoded.
async function choose(number, announceIt = true) {
  if (!(number in page.clips)) return;
  player.load([]);
  state.number = number;
  state.top = undefined;
  state.strips = new Map();
  clipTable.mark();
  showPlaying();
  controls.play.disabled = true;
  let buffers;
  let clip;
  try {
    clip = await listening.load(number);
    buffers = await Promise.all(clip.sounds.map((sound) => context.decodeAudioData(bytesOf(sound.content).buffer)));
  } catch (error) {
    if (state.number === number) controls.heading.textContent = `This clip cannot be played: ${error.message}`;
    return;
  }
  if (state.number !== number) return;
  state.clip = clip;
  player.load(buffers);
  controls.slider.max = String(player.duration);
  controls.play.disabled = false;
  if (state.blind) showTrial();
  else showClip();
  document.body.dataset.clip = String(number);
  if (announceIt && !state.blind) announce(`${clip.name} is ready`);
}

function showClip() {
  controls.heading.textContent = state.clip.name;
  setChoices(state.clip.sounds.map((sound, index) => ({ label: sound.label, key: String(index + 1), sound: index })), Math.min(1, state.clip.sounds.length - 1));
  showPictures();
}

// What can be heard, as radio buttons: versions, or A, B and X.
function setChoices(choices, chosen) {
  state.choices = choices;
  const legend = element("legend", {}, "Hear");
  const labels = choices.map(({ label, key }, index) => {
    const input = element("input", { type: "radio", name: "version", value: index, change: () => hear(index) });
    return element("label", {}, input, element("span", {}, label), index < 9 ? element("kbd", {}, key) : null);
  });
  controls.choices.replaceChildren(legend, ...labels);
  hear(chosen, false);
}

function hear(index, isSwitch = true) {
  const choice = state.choices[index];
  if (!choice) return;
  if (state.blind && isSwitch && index !== state.chosen) state.blind.trial.switches += 1;
  state.chosen = index;
  player.switchTo(choice.sound);
  controls.choices.querySelectorAll("input").forEach((input, place) => { input.checked = place === index; });
  if (state.blind) return;
  addStrip(choice.sound);
  state.strips.forEach((strip, sound) => strip.classList.toggle("heard", sound === choice.sound));
  showTokens();
  if (isSwitch) announce(choice.label);
}

function toggle() {
  if (!player.buffers.length) return;
  if (player.playing) player.pause();
  else {
    context.resume();
    player.play();
  }
  showPlaying();
}

function seek(seconds) {
  player.seek(seconds);
  showPosition();
}

function showPlaying() {
  controls.play.textContent = player.playing ? "❚❚ Pause" : "▶ Play";
  controls.play.setAttribute("aria-pressed", String(player.playing));
  showPosition();
}

function showPosition() {
  const { position, duration } = player;
  const words = `${clock(position)} / ${clock(duration)}`;
  if (controls.time.textContent === words) return;
  controls.time.textContent = words;
  controls.slider.value = String(position);
  controls.slider.setAttribute("aria-valuetext", `${position.toFixed(1)} of ${duration.toFixed(1)} seconds`);
  if (!state.blind) showTokensNow(position);
}

function follow() {
  showPosition();
  controls.playhead.style.left = `${player.duration ? (100 * player.position) / player.duration : 0}%`;
  requestAnimationFrame(follow);
}

function saveSound() {
  const sound = state.clip && !state.blind ? state.clip.sounds[state.choices[state.chosen].sound] : null;
  if (!sound) return;
  const name = `${state.clip.name} ${sound.label}`.replace(/[^\p{L}\p{N}._ -]+/gu, "_").replace(/^[. ]+/, "");
  download(`${name.slice(0, 120)}.flac`, "audio/flac", bytesOf(sound.content));
}

function showPictures() {
  state.strips = new Map();
  controls.pictures.replaceChildren(controls.playhead);
  const original = state.clip.sounds.findIndex((sound) => sound.key === "original");
  const levels = levelsOf(player.buffers[Math.max(0, original)], COLUMNS);
  state.top = loudest(levels);
  state.clip.sounds.forEach((sound, index) => { if (sound.is_full) addStrip(index); });
  hear(state.chosen, false);
}

function addStrip(index) {
  if (state.strips.has(index) || !controls.pictures.contains(controls.playhead) || state.top === undefined) return;
  const sound = state.clip.sounds[index];
  const topHz = Math.min(SPEECH_HZ, state.clip.sounds[0].sampling_rate / 2);
  const canvas = element("canvas", { height: 160, role: "img", "aria-label": `spectrogram of ${sound.label}` });
  drawSpectrogram(canvas, levelsOf(player.buffers[index], COLUMNS), COLUMNS, context.sampleRate, state.top, topHz);
  const marks = frequencyMarks(topHz).map(({ label, share }) => {
    const mark = element("span", { class: "mark", "aria-hidden": "true" }, label);
    mark.style.top = `${100 * share}%`;
    return mark;
  });
  const picture = element("div", { class: "picture", click: (event) => seekIn(event, index) }, canvas, marks);
  const strip = element("figure", { class: "strip" }, element("figcaption", {}, sound.label), picture);
  state.strips.set(index, strip);
  const after = [...state.strips.keys()].sort((a, b) => a - b);
  const next = after[after.indexOf(index) + 1];
  controls.pictures.insertBefore(strip, next === undefined ? null : state.strips.get(next));
}

function seekIn(event, index) {
  const box = event.currentTarget.getBoundingClientRect();
  seek(((event.clientX - box.left) / box.width) * player.duration);
  hear(state.choices.findIndex((choice) => choice.sound === index));
}

// The tokens of the model that is heard; of the first one while the original is.
function showTokens() {
  const model = heardModel();
  const levels = state.clip.codes[model];
  if (!levels || controls.tokens.dataset.shown === `${state.number} ${model}`) return;
  controls.tokens.dataset.shown = `${state.number} ${model}`;
  const { label, token_rates: rates, codebook_size: size } = page.models[model];
  const canvas = element("canvas", { height: 22 * levels.length, role: "img", "aria-label": `tokens of ${label}, a row for each level, coarse to fine` });
  drawTokens(canvas, levels, rates, player.duration, size, COLUMNS);
  const names = rates.map((rate, level) => element("span", { class: "mark", "aria-hidden": "true" }, `level ${level}, ${round(rate)} Hz`));
  names.forEach((name, level) => { name.style.top = `${(100 * (level + 0.5)) / levels.length}%`; });
  const picture = element("div", { class: "picture" }, canvas, names);
  controls.tokens.replaceChildren(element("p", {}, `Tokens of ${label}, now `, element("code", { id: "tokens-now" })), picture);
  showTokensNow(player.position);
}

function heardModel() {
  const sound = state.clip.sounds[state.choices[state.chosen].sound];
  return sound.model === null ? 0 : sound.model;
}

function showTokensNow(position) {
  const now = $("tokens-now");
  if (!now || !state.clip) return;
  const model = heardModel();
  now.textContent = tokensAt(state.clip.codes[model], page.models[model].token_rates, position);
}

// The blind test: nothing that names a version is on the page while it runs.
function showBlindSettings(message = "") {
  const sounds = page.clips[0].sounds;
  const options = (chosen) => sounds.map((sound, index) => element("option", { value: sound.key, selected: index === chosen }, sound.label));
  const first = element("select", { id: "blind-first" }, options(0));
  const second = element("select", { id: "blind-second" }, options(Math.min(1, sounds.length - 1)));
  const trials = element("input", { type: "number", id: "blind-trials", min: 1, max: 100, value: 10 });
  const start = element("button", { type: "button", id: "blind-start", click: () => startBlind([first.value, second.value], Number(trials.value)) }, "Start");
  const body = [element("p", {}, "A and B are the two versions, in an order that changes; X is one of them. Say which."),
    element("div", { class: "row" }, element("label", {}, "compare ", first), element("label", {}, "with ", second), element("label", {}, "trials ", trials), start)];
  const results = message ? [element("p", { id: "blind-verdict" }, message)] : [];
  if (state.answers && state.answers.answers.length) {
    results.push(element("button", { type: "button", id: "blind-csv", click: () => saveAnswers() }, "Download the answers (CSV)"));
  }
  blindPanel.replaceChildren(element("details", { open: Boolean(message) }, element("summary", {}, "Blind test (A/B/X)"), ...results, ...body));
}

function startBlind(keys, trials) {
  if (keys[0] === keys[1]) return showBlindSettings("Choose two different versions.");
  const test = new BlindTest(page.clips, keys, Math.min(100, Math.max(1, Math.round(trials) || 1)));
  if (!test.order.length) return showBlindSettings("No clip has both versions.");
  state.blind = test;
  hideNames(true);
  choose(test.number);
}

function hideNames(hidden) {
  document.body.classList.toggle("is-blind", hidden);
  for (const part of [$("notes"), $("summary"), $("curves"), $("about"), clipTable.element, controls.pictures, controls.tokens, controls.save]) part.hidden = hidden;
  if (!hidden) {
    $("notes").hidden = !page.notes.length;
    $("curves").hidden = !page.curves.length;
  }
  for (const emptied of [controls.pictures, controls.tokens]) emptied.replaceChildren();
  delete controls.tokens.dataset.shown;
  state.top = undefined;
  document.title = hidden ? "Blind test" : page.title;
  $("title").textContent = hidden ? "Blind test" : page.title;
  $("subtitle").textContent = hidden ? "" : page.subtitle;
  $("announcer").textContent = "";
  controls.choices.replaceChildren();
  controls.heading.textContent = "";
}

function showTrial() {
  const test = state.blind;
  const words = `Trial ${test.answers.length + 1} of ${test.order.length}`;
  controls.heading.textContent = words;
  setChoices(["A", "B", "X"].map((letter) => ({ label: letter, key: letter.toLowerCase(), sound: test.soundOf(letter) })), 0);
  const answers = ["A", "B"].map((letter) => element("button", { type: "button", id: `answer-${letter.toLowerCase()}`, click: () => answerBlind(letter) }, `X is ${letter}`));
  const end = element("button", { type: "button", id: "blind-end", click: () => endBlind() }, "End the test");
  blindPanel.replaceChildren(element("p", {}, "Listen to A, B and X as often as you like, then answer."), element("div", { class: "row" }, answers, end));
  announce(words);
}

function answerBlind(letter) {
  state.blind.answer(letter);
  if (state.blind.finished) endBlind();
  else choose(state.blind.number);
}

function endBlind() {
  state.answers = state.blind;
  state.blind = null;
  hideNames(false);
  const message = state.answers.verdict();
  showBlindSettings(message);
  announce(message);
  choose(state.number, false);
}

function saveAnswers() {
  download("blind_test.csv", "text/csv", state.answers.csv());
  state.saved = state.answers;
}

window.addEventListener("beforeunload", (event) => {
  const answers = state.blind || state.answers;
  if (answers && answers.answers.length && answers !== state.saved) event.preventDefault();
});

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { target } = event;
  const typing = target.matches("select, textarea, input[type=number], input[type=text]");
  const moves = event.key.startsWith("Arrow") && target.matches("input, select, .scroller");
  const presses = event.key === " " && target.matches("button, summary, a, input[type=checkbox]");
  if (typing || moves || presses) return;
  const action = actionOf(event.key);
  if (!action) return;
  event.preventDefault();
  action();
}

function actionOf(key) {
  const letter = key.toLowerCase();
  const choice = state.choices.findIndex((one) => one.key === letter);
  if (choice >= 0) return () => hear(choice);
  if (letter === "l") return () => controls.loop.click();
  const moves = { ArrowLeft: -STEP_SECONDS, ArrowRight: STEP_SECONDS };
  if (key in moves) return () => seek(player.position + moves[key]);
  const steps = { ArrowUp: -1, ArrowDown: 1 };
  if (key in steps && !state.blind) return () => choose(clipTable.neighbour(steps[key]));
  return key === " " ? toggle : null;
}
