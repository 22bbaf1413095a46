export function ablate(root) { root.textContent = ''; return {}; }
