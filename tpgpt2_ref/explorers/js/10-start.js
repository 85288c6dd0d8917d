// The book's explorers: what their answers and their drawings share. Classic scripts, joined into one file in the order
// of their numbers; each adds to `tpgpt2`. Files 1x answer without a page (node runs them too), 2x draw, 3x are explorers.
"use strict";
globalThis.tpgpt2 = { data: globalThis.tpgpt2 && globalThis.tpgpt2.data, explorers: {} };

// A mistake in what was asked: Python's UserError, with the same words.
tpgpt2.UserError = class extends Error {};

tpgpt2.least = function (things, key) {
  // Python's min(things, key=...): the first of the least; undefined of nothing
  return things.reduce((best, t) => (best === undefined || tpgpt2.before(key(t), key(best)) ? t : best), undefined);
};

tpgpt2.before = function (a, b) {
  // a < b, number by number where they are lists, as Python compares tuples
  if (!Array.isArray(a)) return a < b;
  for (let i = 0; i < Math.min(a.length, b.length); i++) {
    if (tpgpt2.before(a[i], b[i])) return true;
    if (tpgpt2.before(b[i], a[i])) return false;
  }
  return a.length < b.length;
};

tpgpt2.sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
tpgpt2.padded = (n, multiple) => Math.ceil(n / multiple) * multiple;
