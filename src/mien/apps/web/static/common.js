// What every tab uses: questions to the server, of which the newest wins, and the pieces that panels are built from.

const key = document.querySelector('meta[name=mien-key]').content;
const page = Math.random().toString(36).slice(2);
let asked = 0;

export class Superseded extends Error {}

// One question; `panel` says whose: the server drops the earlier ones of the same panel. Throws an Error whose message is a sentence.
export async function ask(name, body = {}, {panel, signal} = {}) {
  const upload = body instanceof Blob;
  const headers = {'X-Mien-Key': key, 'Content-Type': upload ? 'application/octet-stream' : 'application/json'};
  if (panel) headers['X-Mien-Turn'] = `${page}/${panel} ${++asked}`;
  let told;
  try {
    const response = await fetch(`api/${name}`, {method: 'POST', headers, body: upload ? body : JSON.stringify(body), signal});
    told = await response.json();
  } catch (error) {
    if (error.name === 'AbortError') throw new Superseded();
    throw new Error('The app does not answer: is it still running? Its terminal may say more.');
  }
  if (told.superseded) throw new Superseded();
  if (told.error) throw new Error(told.error);
  return told;
}

export const pictureOf = (run, nimg) =>
  `api/picture?${new URLSearchParams({run, ...(nimg === undefined ? {} : {nimg}), key})}`;

// Asks while a control is being moved: one question under way, and of those that come meanwhile only the last.
// A question about another model, or one that takes long, does not wait: the one under way is dropped.
// An answer takes back what was complained of before its question; what was said meanwhile, of something else, stays to be read.
export class Latest {
  constructor(name, panel, {show, error, fail = error, busy = () => {}}) {
    Object.assign(this, {name, panel, show, error, fail, busy, flight: null, waiting: null});
  }

  ask(body) {
    const {flight} = this;
    if (!flight) this.#fly(body);
    else if (flight.body.model !== body.model || performance.now() - flight.began > 400) {
      this.waiting = null;
      flight.controller.abort();
      this.#fly(body);
    } else this.waiting = body;
  }

  cancel() {
    this.waiting = null;
    this.flight?.controller.abort();
    this.flight = null;
    this.busy(false);
  }

  async #fly(body) {
    const flight = this.flight = {body, began: performance.now(), heard: this.error.said, controller: new AbortController()};
    const timer = setTimeout(() => flight === this.flight && this.busy(true), 200);
    try {
      const told = await ask(this.name, body, {panel: this.panel, signal: flight.controller.signal});
      if (flight === this.flight) {
        if (flight.heard === this.error.said) this.error('');
        this.show(told, body);
      }
    } catch (error) {
      if (flight === this.flight && !(error instanceof Superseded)) this.fail(error.message);
    }
    clearTimeout(timer);
    if (flight !== this.flight) return;
    this.flight = null;
    this.busy(false);
    if (this.waiting) { const next = this.waiting; this.waiting = null; this.#fly(next); }
  }
}

// --- building ----------------------------------------------------------------------------------------------------------

// el('p.soft#id', {onclick, 'aria-label': ...}, 'text', child, ...)
export function el(spec, props = {}, ...children) {
  const [, tag, id, classes] = spec.match(/^(\w+)(?:#([\w-]+))?((?:\.[\w-]+)*)$/);
  const node = document.createElement(tag);
  if (id) node.id = id;
  if (classes) node.className = classes.slice(1).replaceAll('.', ' ');
  for (const [name, value] of Object.entries(props)) {
    if (name in node && !name.startsWith('aria')) node[name] = value;
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return node;
}

let ids = 0;
export const freshId = () => `c${++ids}`;

export function field(label, control, hint) {
  control.id ||= freshId();
  const told = hint && el('small.soft', {id: `${control.id}-hint`}, hint);
  if (told) control.setAttribute('aria-describedby', told.id);
  return el('div.field', {}, el('label', {htmlFor: control.id}, label), control, told);
}

export const tidy = value => String(Math.round(value * 1000) / 1000);

// A slider with its name, its value and, where `mixed` is given, a box that leaves the value to the data.
export function slider(label, {min, max, step, value, oninput, hint, mixed}) {
  const input = el('input', {type: 'range', id: freshId(), min, max, step, value});
  const output = el('output', {htmlFor: input.id});
  const box = mixed === undefined ? null : el('input', {type: 'checkbox', id: freshId(), checked: mixed});
  const say = () => {
    output.textContent = box?.checked ? '' : tidy(input.valueAsNumber);
    row.classList.toggle('mixed', !!box?.checked);
    input.setAttribute('aria-valuetext', output.textContent || 'mixed, as in the data');
  };
  input.addEventListener('input', () => { if (box) box.checked = false; say(); oninput(); });
  box?.addEventListener('change', () => { say(); oninput(); });
  const told = hint && el('small.soft', {id: `${input.id}-hint`}, hint);
  if (told) input.setAttribute('aria-describedby', told.id);
  const mix = box && el('label.mix', {htmlFor: box.id}, box, el('span', {}, 'mixed', el('span.unseen', {}, `: ${label} as in the data`)));
  const row = el('div.slider', {}, el('label', {htmlFor: input.id}, label), output, input, mix, told);
  say();
  return {
    row, input,
    get value() { return box?.checked ? null : input.valueAsNumber; },
    set value(given) { if (box) box.checked = given === null; if (given !== null) input.value = given; say(); },
  };
}

// A row of choices of which one holds, as radio buttons.
export function choices(legend, values, chosen, onchange) {
  const name = freshId();
  const boxes = values.map(([value, label]) => el('input', {type: 'radio', name, value, checked: value === chosen, id: freshId(), onchange}));
  const parts = boxes.flatMap((box, i) => [box, el('label', {htmlFor: box.id}, values[i][1])]);
  return {
    row: el('fieldset.choices', {}, el('legend', {}, legend), el('div', {}, parts)),
    get value() { return boxes.find(box => box.checked).value; },
    set value(given) { for (const box of boxes) box.checked = box.value === given; },
  };
}

export const button = (label, onclick, props = {}) => el('button', {type: 'button', onclick, ...props}, label);

// Where a panel says what went wrong. Call it with '' when all is well again. `said` counts the calls.
export function complaint() {
  const node = el('p.error', {role: 'alert', hidden: true});
  const say = text => { node.hidden = !text; node.textContent = text; say.said++; };
  return Object.assign(say, {node, said: 0});
}

// --- keeping what is shown ---------------------------------------------------------------------------------------------

export function save(name, uri) {
  const link = el('a', {href: uri, download: name});
  document.body.append(link);
  link.click();
  link.remove();
}

export const asUri = (text, kind) => URL.createObjectURL(new Blob([text], {type: kind}));

async function copy(text, code) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // a page that is not served securely may not use the clipboard: select it at least
    getSelection().selectAllChildren(code);
    return document.execCommand('copy');
  }
  return true;
}

// The command line that makes what is shown again, and links that download it.
export function keepsake(downloads = []) {
  const code = el('code', {tabIndex: 0, role: 'textbox', 'aria-readonly': 'true', 'aria-label': 'Command line that makes this again'});
  const said = el('span.soft', {role: 'status'});
  const copier = button('Copy', async () => {
    said.textContent = await copy(code.textContent, code) ? 'Copied.' : 'Selected: copy it with your keyboard.';
    setTimeout(() => { said.textContent = ''; }, 2500);
  }, {'aria-label': 'Copy the command line'});
  const node = el('div.keepsake', {hidden: true}, el('span.soft', {}, 'Makes this again'), code, el('div.row', {}, copier, ...downloads, said));
  return {node, set command(text) {
    node.hidden = !text;
    if (text !== code.textContent) code.replaceChildren(...text.split(' ').flatMap((word, i) => [i ? ' ' : '', el('span', {}, word)]));  // no break after a dash
  }, get command() { return code.textContent; }};
}

// --- charts and tables of the reports, in a shadow of their own so that their style stays theirs ------------------------

let hover;
export async function report(host, html) {
  const root = host.shadowRoot || host.attachShadow({mode: 'open'});
  if (!root.querySelector('link')) root.append(el('link', {rel: 'stylesheet', href: 'report.css'}), el('link', {rel: 'stylesheet', href: 'inset.css'}), el('div'));
  root.querySelector('div').innerHTML = html;
  hover ||= (await import('./hover.js')).hover;
  hover({
    querySelectorAll: selector => root.querySelectorAll(selector), body: root,
    createElement: tag => document.createElement(tag), createElementNS: (space, tag) => document.createElementNS(space, tag),
  });
}
