// Gray bytes of an image as fastcxr resizes them. Bytes are row by row; 0 is black.

// Python rounds halves to even
function round(value) {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
}

// Resize rows to `size` pixels with Pillow's triangle filter. The result is transposed: `size` rows of `rows` pixels.
function resample(pixels, rows, columns, size) {
  const scale = columns / size, support = Math.max(scale, 1), result = new Uint8Array(size * rows);
  for (let x = 0; x < size; x++) {
    const center = (x + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(columns, Math.trunc(center + support + 0.5));
    let weights = [];
    for (let i = first; i < end; i++) weights.push(Math.max(0, 1 - Math.abs((i - center + 0.5) * (1 / support))));
    const total = weights.reduce((sum, weight) => sum + weight);
    weights = weights.map((weight) => Math.trunc((weight / total) * 2 ** 22 + 0.5)); // fixed point, as in Pillow
    for (let row = 0; row < rows; row++) {
      let sum = 2 ** 21;
      for (let i = first; i < end; i++) sum += weights[i - first] * pixels[row * columns + i];
      result[x * rows + row] = Math.min(255, Math.floor(sum / 2 ** 22));
    }
  }
  return result;
}

// The longer side becomes `size` pixels; the image is centred on black.
export function fitSquare(pixels, width, height, size) {
  const scale = size / Math.max(width, height);
  const newWidth = Math.max(1, round(width * scale)), newHeight = Math.max(1, round(height * scale));
  const resized = resample(resample(pixels, height, width, newWidth), newWidth, height, newHeight);
  const left = Math.floor((size - newWidth) / 2), top = Math.floor((size - newHeight) / 2);
  const square = new Uint8Array(size * size);
  for (let y = 0; y < newHeight; y++) {
    square.set(resized.subarray(y * newWidth, (y + 1) * newWidth), (top + y) * size + left);
  }
  return square;
}

// Gray bytes of RGBA bytes: ITU-R 601 luma in the arithmetic of Pillow, exact for equal channels.
export function convertToGray(rgba) {
  const gray = new Uint8Array(rgba.length / 4);
  for (let i = 0; i < gray.length; i++) {
    gray[i] = (rgba[4 * i] * 19595 + rgba[4 * i + 1] * 38470 + rgba[4 * i + 2] * 7471 + 32768) >> 16;
  }
  return gray;
}
