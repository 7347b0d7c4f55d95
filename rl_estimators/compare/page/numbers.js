// Rows of numbers as Python packed them (encode.py), and numbers as people read them.

// A row is [length, value, length, value, ...], or base64 of the upper three bytes of each float32.
function decode(row) {
  if (typeof row !== "string") return decodeRuns(row);
  const bytes = atob(row);
  const numbers = new Float32Array(bytes.length / 3);
  const view = new DataView(numbers.buffer);
  for (let i = 0; i < numbers.length; i++) {
    view.setUint8(4 * i + 1, bytes.charCodeAt(3 * i));
    view.setUint8(4 * i + 2, bytes.charCodeAt(3 * i + 1));
    view.setUint8(4 * i + 3, bytes.charCodeAt(3 * i + 2));
  }
  return Float32Array.from(numbers, (_, i) => view.getFloat32(4 * i, true));
}

function decodeRuns(runs) {
  const numbers = [];
  for (let i = 0; i < runs.length; i += 2) {
    for (let n = 0; n < runs[i]; n++) numbers.push(Number(runs[i + 1])); // Number("NaN") is NaN
  }
  return numbers;
}

// A few significant digits, with a real minus: 0.4312, −12.5, 1.2e−7.
function digits(value, significant = 4) {
  const x = Number(value);
  if (Number.isNaN(x)) return "NaN";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  const shown = String(Number(x.toPrecision(significant)));
  return shown.replaceAll("-", "−");
}

// For advantages and rewards: the sign is the point.
function signed(value, significant = 4) {
  return Number(value) > 0 ? "+" + digits(value, significant) : digits(value, significant);
}

function percent(share) {
  const x = 100 * Number(share);
  if (Number.isNaN(x)) return "–";
  if (x > 0 && x < 1) return "<1 %";
  if (x > 99 && x < 100) return ">99 %";
  return Math.round(x) + " %";
}

function count(number, one, many = one + "s") {
  return number.toLocaleString("en") + " " + (number === 1 ? one : many);
}

// "a", "a and b", "a, b and c"
function listed(words) {
  return words.length < 2 ? words.join("") : words.slice(0, -1).join(", ") + " and " + words[words.length - 1];
}
