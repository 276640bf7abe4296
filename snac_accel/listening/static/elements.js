// What the other scripts share: elements made of text that is never markup, announcements, clips loaded when they are needed.
"use strict";

const listening = {
  page: null, // what data.js says
  loading: new Map(), // clip number -> promise of its contents
  arrivals: new Map(), // clip number -> what to call with them

  begin(page) {
    listening.page = page;
  },

  // Called by clips/0000.js and its like: from the disk a page may load scripts, but not files.
  clip(contents) {
    const arrived = listening.arrivals.get(contents.number);
    if (arrived) arrived(contents);
  },

  load(number) {
    if (!listening.loading.has(number)) {
      const loaded = new Promise((resolve, reject) => {
        listening.arrivals.set(number, resolve);
        const script = document.createElement("script");
        script.src = `clips/${String(number).padStart(4, "0")}.js`;
        script.onerror = () => {
          listening.loading.delete(number);
          reject(new Error(`${script.src} cannot be loaded`));
        };
        document.head.append(script);
      });
      listening.loading.set(number, loaded);
    }
    return listening.loading.get(number);
  },
};

// An element with attributes (a function: an event's) and children; strings become text.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function announce(text) {
  const announcer = document.getElementById("announcer");
  announcer.textContent = "";
  announcer.textContent = text;
}

function clock(seconds) {
  const tenths = Math.max(0, Math.floor(seconds * 10));
  const minutes = Math.floor(tenths / 600);
  return `${minutes}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
}

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function download(name, type, content) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  const link = element("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// A value for CSV; text that a spreadsheet would take for a formula gets an apostrophe before it.
function csvCell(value) {
  let text = value === null || value === undefined ? "" : String(value);
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
