// All versions of a clip run at once, sample by sample together; only one of them is heard. Switching is a change of gains.
"use strict";

const FADE_SECONDS = 0.008; // long enough not to click, too short to hear

class Player {
  constructor(context, destination = context.destination) {
    this.context = context;
    this.output = context.createGain();
    this.output.connect(destination);
    this.looping = false;
    this.onend = () => {};
    this.load([]);
  }

  // Take the versions of another clip (AudioBuffer); the first is heard.
  load(buffers) {
    this.stop();
    this.buffers = buffers;
    this.active = 0;
    this.offset = 0;
    this.duration = buffers.length ? Math.min(...buffers.map((buffer) => buffer.duration)) : 0;
  }

  get playing() {
    return Boolean(this.voices);
  }

  get position() {
    if (!this.playing) return this.offset;
    const run = this.offset + Math.max(0, this.context.currentTime - this.startedAt);
    return this.looping ? run % this.duration : Math.min(run, this.duration);
  }

  play(from = this.offset, when = this.context.currentTime + 0.02) {
    if (!this.buffers.length) return;
    this.stop();
    this.offset = from >= this.duration - 0.01 ? 0 : Math.max(0, from);
    this.startedAt = when;
    this.voices = this.buffers.map((buffer, index) => this.voice(buffer, index === this.active ? 1 : 0));
    for (const { source } of this.voices) source.start(when, this.offset);
    const mine = this.voices;
    mine[0].source.onended = () => {
      if (this.voices !== mine) return;
      this.stop();
      this.offset = 0;
      this.onend();
    };
  }

  voice(buffer, volume) {
    const source = this.context.createBufferSource();
    const gain = this.context.createGain();
    source.buffer = buffer;
    source.loop = this.looping;
    source.loopEnd = this.duration;
    gain.gain.value = volume;
    source.connect(gain).connect(this.output);
    return { source, gain };
  }

  stop() {
    if (!this.voices) return;
    const voices = this.voices;
    this.voices = null;
    for (const { source, gain } of voices) {
      source.onended = null;
      source.stop();
      source.disconnect();
      gain.disconnect();
    }
  }

  pause() {
    const position = this.position;
    this.stop();
    this.offset = position;
  }

  seek(seconds) {
    const position = Math.min(Math.max(0, seconds), this.duration);
    if (this.playing) this.play(position);
    else this.offset = position;
  }

  setLooping(looping) {
    const position = this.position; // under the former rule
    this.looping = looping;
    if (this.playing) this.play(position);
  }

  // Hear another version from now on, at the same position: both gains add up to 1 all the time.
  switchTo(index, when = this.context.currentTime) {
    if (index === this.active || !(index in this.buffers)) return;
    this.active = index;
    if (!this.voices) return;
    this.voices.forEach(({ gain }, voice) => {
      const from = gain.gain.value;
      gain.gain.cancelScheduledValues(when);
      gain.gain.setValueAtTime(from, when);
      gain.gain.linearRampToValueAtTime(voice === index ? 1 : 0, when + FADE_SECONDS);
    });
  }
}
