// Values under the pointer. Everything is read back from the drawn lines, so the page carries no second copy of the numbers.
for (const svg of document.querySelectorAll('.chart svg')) {
  const [x0, x1, left, right] = svg.dataset.x.split(' ').map(Number), [y0, y1, bottom, top] = svg.dataset.y.split(' ').map(Number);
  const log = svg.dataset.log, toX = p => x0 + (p - left) / (right - left) * (x1 - x0);
  const toY = p => {
    const s = (bottom - p) / (bottom - top);
    if (log) return y0 * (y1 / y0) ** s;
    const step = (y1 - y0) / 1000;  // finer than this is not drawn
    return Math.round((y0 + s * (y1 - y0)) / step) * step;
  };
  const say = v => v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e6) ? v.toExponential(2) : v.toLocaleString('en', {maximumSignificantDigits: 3});
  let lines, tip, hair;
  const read = () => [...svg.querySelectorAll('.line:not(.raw)')].map(path => ({
    name: path.dataset.name, points: [...path.getAttribute('d').matchAll(/[ML]([\d.-]+) ([\d.-]+)/g)].map(m => [+m[1], +m[2]])}));
  const leave = () => { tip?.remove(); hair?.remove(); tip = hair = null; };
  svg.addEventListener('pointermove', event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
    if (at < left - 4 || at > right + 4) return leave();
    lines ??= read();
    if (!tip) {
      tip = document.body.appendChild(Object.assign(document.createElement('div'), {className: 'tip'}));
      hair = svg.appendChild(document.createElementNS(svg.namespaceURI, 'path'));
      hair.setAttribute('class', 'hair');
    }
    hair.setAttribute('d', `M${at} ${top}V${bottom}`);
    const found = lines.map(line => [line.name, line.points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a, [1e9, 0])]);
    tip.textContent = [`${say(toX(at))} thousand images`, ...found.filter(([, p]) => Math.abs(p[0] - at) < 12).map(([name, p]) => `${name}  ${say(toY(p[1]))}`)].join('\n');
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 6) + 'px';
    tip.style.top = Math.max(6, event.clientY - tip.offsetHeight - 12) + 'px';
  });
  svg.addEventListener('pointerleave', leave);
}
