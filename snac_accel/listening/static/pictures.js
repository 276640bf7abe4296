// Spectrograms and tokens on canvases, computed from what is heard.
"use strict";

const FFT_SIZE = 1024;
const RANGE_DB = 80; // below the loudest point of the original
const SPEECH_HZ = 24000; // nothing above is drawn
const COLOURS = [[0, 0, 4], [28, 16, 68], [79, 18, 123], [129, 37, 129], [181, 54, 122], [229, 80, 100], [251, 135, 97], [254, 194, 135], [252, 253, 191]]; // magma
const TICKS_HZ = [500, 1000, 2000, 4000, 8000, 16000];

const hann = Float32Array.from({ length: FFT_SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / FFT_SIZE));
const cosines = Float32Array.from({ length: FFT_SIZE / 2 }, (_, i) => Math.cos((2 * Math.PI * i) / FFT_SIZE));
const sines = Float32Array.from({ length: FFT_SIZE / 2 }, (_, i) => Math.sin((2 * Math.PI * i) / FFT_SIZE));

const mel = (hz) => 2595 * Math.log10(1 + hz / 700);
const hertz = (m) => 700 * (10 ** (m / 2595) - 1);

// In place, length FFT_SIZE.
function fft(real, imaginary) {
  for (let i = 1, j = 0; i < FFT_SIZE; i++) {
    let bit = FFT_SIZE >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [real[i], real[j]] = [real[j], real[i]];
  }
  for (let size = 2; size <= FFT_SIZE; size *= 2) {
    const half = size / 2;
    const step = FFT_SIZE / size;
    for (let start = 0; start < FFT_SIZE; start += size) {
      for (let k = 0; k < half; k++) {
        const a = start + k;
        const b = a + half;
        const re = real[b] * cosines[k * step] + imaginary[b] * sines[k * step];
        const im = imaginary[b] * cosines[k * step] - real[b] * sines[k * step];
        real[b] = real[a] - re;
        imaginary[b] = imaginary[a] - im;
        real[a] += re;
        imaginary[a] += im;
      }
    }
  }
}

// Levels in dB, columns × bins, of a buffer.
function levelsOf(buffer, columns) {
  const audio = buffer.getChannelData(0);
  const bins = FFT_SIZE / 2;
  const levels = new Float32Array(columns * bins);
  const real = new Float32Array(FFT_SIZE);
  const imaginary = new Float32Array(FFT_SIZE);
  for (let column = 0; column < columns; column++) {
    const start = Math.round(((column + 0.5) / columns) * audio.length) - FFT_SIZE / 2;
    for (let i = 0; i < FFT_SIZE; i++) real[i] = (audio[start + i] || 0) * hann[i];
    imaginary.fill(0);
    fft(real, imaginary);
    for (let bin = 0; bin < bins; bin++) {
      levels[column * bins + bin] = 10 * Math.log10(real[bin] ** 2 + imaginary[bin] ** 2 + 1e-12);
    }
  }
  return levels;
}

const loudest = (levels) => levels.reduce((most, level) => Math.max(most, level), -120);

// Draw levels with the loudest point of the original at the top of the scale; frequencies on a mel scale up to `topHz`.
function drawSpectrogram(canvas, levels, columns, rate, top, topHz) {
  const height = canvas.height;
  const bins = FFT_SIZE / 2;
  canvas.width = columns;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, height);
  for (let y = 0; y < height; y++) {
    const hz = hertz(mel(topHz) * (1 - (y + 0.5) / height));
    const bin = Math.min(bins - 1, Math.round((hz / rate) * FFT_SIZE));
    for (let x = 0; x < columns; x++) {
      const share = Math.min(1, Math.max(0, (levels[x * bins + bin] - top + RANGE_DB) / RANGE_DB));
      image.data.set(colour(share), (y * columns + x) * 4);
    }
  }
  context.putImageData(image, 0, 0);
}

function colour(share) {
  const place = share * (COLOURS.length - 1);
  const index = Math.min(COLOURS.length - 2, Math.floor(place));
  const mix = COLOURS[index].map((value, i) => value + (COLOURS[index + 1][i] - value) * (place - index));
  return [...mix, 255];
}

// The marks of a frequency axis, as a list of {label, share from the top}.
function frequencyMarks(topHz) {
  return TICKS_HZ.filter((hz) => hz < topHz * 0.95).map((hz) => ({
    label: hz < 1000 ? `${hz} Hz` : `${hz / 1000} kHz`,
    share: 1 - mel(hz) / mel(topHz),
  }));
}

// A row for each level, a cell for each token as wide as it lasts; neighbouring numbers get different colours.
function drawTokens(canvas, levels, rates, seconds, codebookSize, columns) {
  const rowHeight = canvas.height / levels.length;
  canvas.width = columns;
  const context = canvas.getContext("2d");
  levels.forEach((codes, level) => {
    const width = columns / (seconds * rates[level]);
    codes.forEach((code, index) => {
      const lightness = 30 + 45 * (code / codebookSize);
      context.fillStyle = `hsl(${(code * 137.508) % 360} 65% ${lightness}%)`;
      context.fillRect(index * width, level * rowHeight, Math.ceil(width), rowHeight - 1);
    });
  });
}

// The tokens at a moment, coarse to fine, as words.
function tokensAt(levels, rates, seconds) {
  const codes = levels.map((level, index) => level[Math.min(level.length - 1, Math.floor(seconds * rates[index]))]);
  return codes.join(" · ");
}
