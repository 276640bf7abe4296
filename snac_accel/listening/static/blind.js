// A blind A/B/X test: two versions are called A and B, X is one of them, and nothing on the page says which.
"use strict";

const BLIND_COLUMNS = ["trial", "clip", "a", "b", "x", "answer", "correct", "seconds", "switches", "time"];

function coin() {
  return crypto.getRandomValues(new Uint8Array(1))[0] & 1;
}

function shuffled(items) {
  const mixed = [...items];
  for (let i = mixed.length - 1; i > 0; i--) {
    const j = Math.floor((crypto.getRandomValues(new Uint32Array(1))[0] / 2 ** 32) * (i + 1));
    [mixed[i], mixed[j]] = [mixed[j], mixed[i]];
  }
  return mixed;
}

// The probability of at least so many right answers by guessing.
function guessing(right, total) {
  let sum = 0;
  let ways = 1; // total over k
  for (let k = 0; k <= total; k++) {
    if (k >= right) sum += ways;
    ways = (ways * (total - k)) / (k + 1);
  }
  return sum / 2 ** total;
}

class BlindTest {
  // `clips`: those of the page; `keys`: the two sounds that are compared.
  constructor(clips, keys, trials) {
    this.clips = clips;
    this.keys = keys;
    const able = clips.map((clip, number) => number).filter((number) => keys.every((key) => this.place(number, key) >= 0));
    this.order = [];
    while (able.length && this.order.length < trials) this.order.push(...shuffled(able));
    this.order.length = Math.min(this.order.length, trials);
    this.answers = [];
    this.next();
  }

  place(number, key) {
    return this.clips[number].sounds.findIndex((sound) => sound.key === key);
  }

  get finished() {
    return this.answers.length >= this.order.length;
  }

  get number() {
    return this.order[this.answers.length];
  }

  next() {
    const [a, b] = coin() ? this.keys : [...this.keys].reverse();
    this.trial = { a, b, x: coin() ? a : b, switches: 0, started: Date.now() };
  }

  // Which sound of the clip a letter stands for.
  soundOf(letter) {
    return this.place(this.number, this.trial[letter.toLowerCase()]);
  }

  answer(letter) {
    const { a, b, x, switches, started } = this.trial;
    const said = letter === "A" ? a : b;
    const seconds = (Date.now() - started) / 1000;
    const clip = this.clips[this.number];
    this.answers.push({ trial: this.answers.length + 1, clip: clip.name, a: this.label(a), b: this.label(b), x: this.label(x), answer: this.label(said), correct: said === x, seconds, switches, time: new Date().toISOString() });
    this.next();
  }

  label(key) {
    const clip = this.clips[this.order[0]];
    return clip.sounds.find((sound) => sound.key === key).label;
  }

  get right() {
    return this.answers.filter(({ correct }) => correct).length;
  }

  csv() {
    const rows = this.answers.map((answer) => BLIND_COLUMNS.map((column) => csvCell(answer[column])).join(","));
    return `${[BLIND_COLUMNS.join(","), ...rows].join("\r\n")}\r\n`;
  }

  verdict() {
    const total = this.answers.length;
    if (!total) return "No trial was answered.";
    const chance = guessing(this.right, total);
    const said = chance < 0.05 ? "They can be told apart." : "That may well be guessing.";
    return `${this.right} of ${total} right; by guessing, so many or more come with a probability of ${chance.toPrecision(2)}. ${said}`;
  }
}
