// Generate: faces by number, attributes and truncation; keep the ones you like.

import {Latest, ask, button, choices, complaint, el, field, keepsake, save, slider} from './common.js';

export const inWords = face => [`Face ${face.seed}`, ...Object.entries(face.attributes).map(([name, value]) => `${name} ${value}`)].join(', ');

export function generate(root, shared) {
  const seed = el('input', {type: 'number', min: 0, step: 1, value: 0, inputMode: 'numeric', oninput: () => draw()});
  const step = by => { seed.value = Math.max(0, (seed.valueAsNumber || 0) + by * count()); draw(); };
  const many = choices('Faces', [['1', '1'], ['4', '4'], ['16', '16'], ['36', '36'], ['64', '64']], '16', () => draw());
  const count = () => Number(many.value);
  const truncation = slider('Truncation', {min: 0, max: 1.5, step: 0.05, value: 1, oninput: () => draw(), hint: 'Less: more typical faces, more alike.'});
  const pixels = choices('Pixels', [['smooth', 'smooth'], ['crisp', 'crisp']], 'smooth', () => root.classList.toggle('crisp', pixels.value === 'crisp'));
  const attributes = el('fieldset.sliders', {hidden: true}, el('legend', {}, 'Attributes'));
  const controls = el('div.controls', {},
    el('div', {}, field('First face', seed), el('div.row', {},
      button('Back', () => step(-1), {'aria-label': 'Faces before these'}), button('Next', () => step(1), {'aria-label': 'Faces after these'}),
      button('Random', () => { seed.value = Math.floor(Math.random() * 1e6); draw(); }))),
    attributes, truncation.row, many.row, pixels.row);

  const error = complaint();
  const faces = el('div.faces', {role: 'group', 'aria-label': 'Faces'});
  const detail = el('aside.detail', {'aria-label': 'Chosen face', hidden: true});
  const kept = el('div.shelf', {hidden: true});
  const again = keepsake([button('Download PNG', download)]);
  const welcome = el('div.welcome', {hidden: true});
  const stage = el('div.stage', {}, error.node, welcome, el('div.pair', {}, faces, detail), again.node, kept);
  root.append(stage, controls);
  root.classList.add('panel', 'afloat');

  let rows = {}, chosen = null, told = [];
  const latest = new Latest('generate', 'generate', {show, error, fail, busy(on) { faces.ariaBusy = on; faces.classList.toggle('busy', on); if (on) shared.say('Drawing …'); else shared.say(''); }});

  function question() {
    const where = Object.fromEntries(Object.entries(rows).filter(([, row]) => row.value !== null).map(([name, row]) => [name, row.value]));
    return {model: shared.about.model, seed: seed.valueAsNumber, count: count(), where, truncation: truncation.value};
  }

  function draw() { if (shared.about && !Number.isNaN(seed.valueAsNumber)) latest.ask(question()); }

  function fail(text) { error(text); told = []; faces.replaceChildren(); again.command = ''; detail.hidden = true; }

  function show(answer) {
    welcome.hidden = true;
    told = answer.faces;
    faces.dataset.count = told.length;
    if (faces.children.length !== told.length) faces.replaceChildren(...told.map((_, i) => el('button.face', {type: 'button', onclick: () => told[i] && pick(told[i])}, el('img'))));
    told.forEach((face, i) => {
      const image = faces.children[i].firstChild;
      image.src = face.png;
      image.alt = inWords(face);
    });
    again.command = answer.command;
    pick(told.find(face => face.seed === chosen?.seed) ?? told[0]);
  }

  // Until the model is loaded: its first faces as training drew them, which are the very ones that it will draw.
  function preview(pictures) {
    if (count() !== pictures.length || seed.valueAsNumber !== 0 || truncation.value !== 1) return;
    told = [];
    welcome.hidden = true;
    detail.hidden = true;
    faces.dataset.count = pictures.length;
    faces.replaceChildren(...pictures.map((src, i) => el('button.face', {type: 'button', onclick: () => told[i] && pick(told[i])}, el('img', {src, alt: `Face ${i}`}))));
  }

  function pick(face) {
    chosen = face;
    told.forEach((each, i) => faces.children[i].setAttribute('aria-pressed', each.seed === face.seed));
    const like = {...face, truncation: truncation.value, id: JSON.stringify([face.seed, face.attributes, truncation.value])};
    const there = shared.favourites.some(each => each.id === like.id);
    const traits = Object.entries(face.attributes).map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, String(value))));
    const active = detail.contains(document.activeElement) ? document.activeElement.textContent : null;
    detail.hidden = false;
    detail.replaceChildren(
      el('img', {src: face.png, alt: inWords(face)}), el('h2', {}, `Face ${face.seed}`), traits.length ? el('dl', {}, traits) : '',
      el('div.stack', {},
        there ? button('Let go', () => { shared.drop(like); pick(face); }) : button('Keep', () => { shared.keep(like); pick(face); }),
        button('Edit this face', () => shared.open('edit', like)),
        button('Take it apart', () => shared.open('ablate', like)),
        button('Morph from it', () => shared.open('morph', like))));
    if (active) [...detail.querySelectorAll('button')].find(each => each.textContent === active || active === 'Keep' || active === 'Let go')?.focus();
  }

  function favourites() {
    kept.hidden = !shared.favourites.length;
    kept.replaceChildren(el('h2', {}, 'Kept'), el('div.row', {}, shared.favourites.map(face =>
      el('button.face', {type: 'button', onclick: () => back(face)}, el('img', {src: face.png, alt: `Kept: ${inWords(face)}`})))));
  }

  function back(face) {
    seed.value = face.seed;
    truncation.value = face.truncation;
    for (const [name, row] of Object.entries(rows)) row.value = face.attributes[name] ?? null;
    chosen = face;
    many.value = '1';
    draw();
  }

  async function download() {
    try {
      const {png, name} = await ask('sheet', question());
      save(name, png);
    } catch (failure) { error(failure.message); }
  }

  function greet(start) {
    if (start.given || shared.about) return;  // there is something to look at
    welcome.hidden = false;
    controls.hidden = true;
    const cards = start.models.map(model => el('button.card', {type: 'button', onclick: () => shared.choose(model.model)}, el('strong', {}, model.title),
      el('span.soft', {}, model.kind === 'bundled' ? 'came with mien' : model.model)));
    welcome.replaceChildren(
      el('h2', {}, cards.length ? 'Choose a model' : 'No model yet'),
      el('p', {}, cards.length ? 'A model draws the faces. These are at hand:' : `No trained run was found in ${start.runs_folder}. Train one: on your own prepared data, or on drawn toy faces, in some minutes.`),
      el('div.cards', {}, cards),
      button('Train a new one', () => shared.open('train'), {className: cards.length ? '' : 'primary'}));
  }

  return {
    start: greet,
    async shown() { if (!shared.about && shared.start) greet(await shared.refreshModels()); },
    failed: fail,
    favourites,
    model(about) {
      rows = Object.fromEntries(about.attributes.map(name => [name, slider(name.replaceAll('_', ' '), {min: -0.5, max: 1.5, step: 0.05, value: 0.5, mixed: true, oninput: () => draw()})]));
      attributes.hidden = !about.attributes.length;
      attributes.replaceChildren(el('legend', {}, 'Attributes'), ...Object.values(rows).map(row => row.row));
      error('');
      controls.hidden = false;
      favourites();
      preview(about.preview);
      draw();
    },
  };
}
