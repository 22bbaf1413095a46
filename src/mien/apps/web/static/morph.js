export function morph(root) { root.textContent = ''; return {}; }
