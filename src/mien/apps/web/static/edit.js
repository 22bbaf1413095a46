export function edit(root) { root.textContent = ''; return {}; }
