// Files of a drop, with those of dropped folders. `relativePath` of a file starts with the name of its folder.

export async function takeDroppedFiles(transfer) {
  // the list of items is empty after the first pause, so all entries are taken before
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const roots = items.map((item) => [item.webkitGetAsEntry?.(), item.getAsFile()]);
  const files = [];
  for (const [entry, file] of roots) {
    if (entry?.isDirectory) files.push(...(await readFolder(entry)));
    else if (file) files.push(file);
  }
  return files;
}

async function readFolder(folder) {
  const files = [];
  for (const entry of await listFolder(folder)) {
    if (entry.isDirectory) files.push(...(await readFolder(entry)));
    else if (!entry.name.startsWith(".")) files.push(await takeFile(entry));
  }
  return files;
}

async function listFolder(folder) {
  const reader = folder.createReader();
  const entries = [];
  for (;;) {
    const part = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (!part.length) return entries.sort((first, second) => (first.name < second.name ? -1 : 1));
    entries.push(...part); // browsers list at most 100 entries in a call
  }
}

async function takeFile(entry) {
  const file = await new Promise((resolve) => entry.file(resolve, () => resolve(new File([], entry.name))));
  return Object.assign(file, { relativePath: entry.fullPath.replace(/^\//, "") });
}
